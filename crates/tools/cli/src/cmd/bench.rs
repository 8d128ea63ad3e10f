//! `vmmlinux bench`: measures kernels side by side on emulated vmd hardware.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use bench::{Baseline, Kernel, Report, Runner, build::Subject};
use clap::ValueEnum;
use miette::{IntoDiagnostic, WrapErr, miette};
use support::cache::Cache;
use vmd_release::Generation;

use crate::{args::Accel, progress_bar::ProgressBar};

/// The output directory of `make kernel`.
const OURS: &str = "out/7.3";

/// Arguments of `vmmlinux bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Benchmark to run
    #[arg(value_enum)]
    what: What,
    /// Kernel to measure: a bzImage or a build directory, with virtio and ext4 built in (may be repeated) [default: ours=out/7.3]
    #[arg(long, value_name = "NAME=PATH", value_parser = named)]
    kernel: Vec<(String, PathBuf)>,
    /// Debian cloud kernels to compare with; ratios are relative to the last one [default: 7.3; for clock 6.12 and 7.3]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "VERSION")]
    against: Vec<Against>,
    /// OpenBSD release whose vmd to emulate [default: 7.8; for clock all, for net 7.9]
    #[arg(long, value_delimiter = ',', value_name = "RELEASE")]
    host: Vec<Generation>,
    /// Runs of each kernel, in turns [default: 5]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// clock: minutes for which clocks are compared
    #[arg(long, value_name = "N", default_value = "10")]
    minutes: f64,
    /// clock: rates of the host's clock interrupt; clocks are compared at the first rate only
    #[arg(long, value_delimiter = ',', value_name = "HZ", default_value = "100,1000")]
    host_hz: Vec<u32>,
    /// clock, idle: seconds for which an idle guest is measured [default: 30]
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u64>,
    /// idle: seconds for which a guest settles before it is measured [default: 150]
    #[arg(long, value_name = "SECONDS")]
    settle: Option<u64>,
    /// build: workload of our configuration to build
    #[arg(long, default_value = "core")]
    workload: String,
    /// build: configuration to build for comparison, as for `vmmlinux build --config` (may be repeated)
    #[arg(long, value_name = "NAME=FILE[,FILE]", value_parser = configured)]
    config: Vec<(String, String)>,
    /// build: also measure each step
    #[arg(long)]
    profile: bool,
    /// Smoke test: one round of a few seconds
    #[arg(long)]
    quick: bool,
    /// Directory for the reports WHAT.json and WHAT.html
    #[arg(long, value_name = "DIR", default_value = "out/bench")]
    out: PathBuf,
    /// Where the VM's KVM is
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accel,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Guest clocks against the host's, sleeps, suspends
    Clock,
    /// Exits, time and memory until init runs and the guest is ready
    Boot,
    /// Interrupts and exits of an idle guest
    Idle,
    /// Exits per disk read
    Disk,
    /// Exits per TCP request and per MiB received and sent
    Net,
    /// Sizes of kernels and modules in bytes
    Size,
    /// CPU time of a build without caches
    Build,
    /// All except build and clock, which take long
    All,
}

/// A Debian kernel to compare with, or none.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Against {
    /// Debian 12's
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's
    #[value(name = "6.12")]
    V6_12,
    /// The backport for Debian 13
    #[value(name = "7.3")]
    V7_3,
    /// No comparison
    None,
}

impl Against {
    const fn baseline(self) -> Option<Baseline> {
        match self {
            Self::V6_1 => Some(Baseline::V6_1),
            Self::V6_12 => Some(Baseline::V6_12),
            Self::V7_3 => Some(Baseline::V7_3),
            Self::None => None,
        }
    }
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("write a kernel as NAME=PATH, such as ours=out/7.3".to_owned()),
    }
}

fn configured(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, files)) if !name.is_empty() && !files.is_empty() => {
            Ok((name.to_owned(), files.to_owned()))
        }
        _ => Err("write a configuration as NAME=FILE, such as theirs=their.config".to_owned()),
    }
}

impl Args {
    /// Measures and reports.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let program =
            env::current_exe().into_diagnostic().wrap_err("cannot find the path of this program")?;
        // Resolved once, for all runs and the report.
        let accel = runner::resolve_accel(self.accel.into())?;
        let runner = Runner::new(&program, accel.as_str(), Box::new(|what| support::note!("{what}")))?;
        let everything = [What::Boot, What::Idle, What::Disk, What::Net, What::Size];
        let benches = if self.what == What::All { &everything[..] } else { &[self.what] };
        for &what in benches {
            let report = self.bench(what, &runner)?;
            write(&self.out, &report)?;
            support::print(&format!("{report}\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn bench(&self, what: What, runner: &Runner) -> miette::Result<Report> {
        let rounds = self.rounds.unwrap_or(if self.quick { 1 } else { 5 });
        let idle = Duration::from_secs(self.idle.unwrap_or(if self.quick { 3 } else { 30 }));
        let host = |otherwise| self.host.first().copied().unwrap_or(otherwise);
        if what == What::Build {
            return Ok(bench::build::run(runner, &self.subjects(), self.profile)?);
        }
        let kernels = self.kernels(what)?;
        Ok(match what {
            What::Clock => bench::clock::run(runner, &self.clock(kernels, idle))?,
            What::Boot => bench::boot::run(runner, &kernels, host(Generation::V7_8), rounds)?,
            What::Idle => {
                let settle = Duration::from_secs(self.settle.unwrap_or(if self.quick { 0 } else { 150 }));
                let times = bench::idle::Times { settle, watch: idle };
                bench::idle::run(runner, &kernels, host(Generation::V7_8), rounds, times)?
            }
            What::Disk => bench::io::disk(runner, &kernels, host(Generation::V7_8), rounds)?,
            // On 7.8, stock kernels have no network: they negotiate features that vmd does not implement.
            What::Net => bench::io::net(runner, &kernels, host(Generation::V7_9), rounds)?,
            What::Size => bench::size::run(runner, &kernels)?,
            What::Build | What::All => unreachable!("handled above"),
        })
    }

    fn subjects(&self) -> Vec<Subject> {
        let mut arguments = vec!["--workload".to_owned(), self.workload.clone()];
        if !self.host.is_empty() {
            let hosts: Vec<String> = self.host.iter().map(ToString::to_string).collect();
            arguments.extend(["--host".to_owned(), hosts.join(",")]);
        }
        let ours = Subject { name: self.workload.clone(), arguments };
        let given = self.config.iter().map(|(name, files)| Subject {
            name: name.clone(),
            arguments: vec!["--no-patches".to_owned(), "--config".to_owned(), files.clone()],
        });
        std::iter::once(ours).chain(given).collect()
    }

    fn clock(&self, kernels: Vec<Kernel>, idle: Duration) -> bench::clock::Options {
        let generations = match (&self.host[..], self.quick) {
            ([], true) => vec![Generation::V7_8],
            ([], false) => Generation::ALL.to_vec(),
            (named, _) => named.to_vec(),
        };
        let minutes = if self.quick { 0.25 } else { self.minutes };
        bench::clock::Options {
            kernels,
            generations,
            host_hz: if self.quick { self.host_hz[..1].to_vec() } else { self.host_hz.clone() },
            compare: Duration::try_from_secs_f64(minutes * 60.0).unwrap_or_default(),
            sleeps: if self.quick { 8 } else { 40 },
            idle,
            disturbances: true,
        }
    }

    fn kernels(&self, what: What) -> miette::Result<Vec<Kernel>> {
        let ours = [("ours".to_owned(), PathBuf::from(OURS))];
        let chosen = if self.kernel.is_empty() { &ours[..] } else { &self.kernel };
        let mut kernels: Vec<Kernel> =
            chosen.iter().map(|(name, path)| Kernel::built_in(name, path)).collect::<bench::Result<_>>()?;
        let against = match (&self.against[..], what) {
            ([], What::Clock) => &[Against::V6_12, Against::V7_3][..],
            ([], _) => &[Against::V7_3],
            (named, _) => named,
        };
        let (cache, bar) = (Cache::user()?, ProgressBar::new());
        for baseline in against.iter().filter_map(|against| against.baseline()) {
            kernels.push(baseline.kernel(&cache, &bar)?);
        }
        let mut names: Vec<&str> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(miette!(
                help = "give each kernel its own name, such as --kernel new=out/new",
                "two kernels have the same name"
            ));
        }
        Ok(kernels)
    }
}

fn write(out: &Path, report: &Report) -> miette::Result<()> {
    fs::create_dir_all(out).into_diagnostic().wrap_err_with(|| format!("cannot create {}", out.display()))?;
    for (extension, text) in [("json", report.json()), ("html", report.html()?)] {
        let path = out.join(&report.bench).with_extension(extension);
        support::file::write_atomically(&path, text.as_bytes())?;
        support::note!("{}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        super::super::parse(&format!("bench {line}"))
    }

    #[test]
    fn kernels_and_hosts_are_lists() {
        let args = parse("clock --kernel a=x --kernel b=y=z --against 6.12,7.3 --host 7.7,8.0 --minutes 0.5")
            .unwrap();
        assert_eq!(args.kernel[1], ("b".to_owned(), PathBuf::from("y=z")));
        assert_eq!(args.host, [Generation::V7_7, Generation::V8_0]);
        assert!(args.against == [Against::V6_12, Against::V7_3]);
        for wrong in
            ["", "fly", "boot --kernel x", "boot --kernel =x", "boot --against 5.10", "idle --host 6"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ours_is_built_for_the_named_hosts_and_given_configurations_without_our_patches() {
        let line = "build --host 7.7,7.8 --config tiny=tinyconfig,a.config --config fc=b.config --profile";
        let subjects: Vec<_> = parse(line)
            .unwrap()
            .subjects()
            .into_iter()
            .map(|subject| format!("{}: {}", subject.name, subject.arguments.join(" ")))
            .collect();
        assert_eq!(
            subjects,
            [
                "core: --workload core --host 7.7,7.8",
                "tiny: --no-patches --config tinyconfig,a.config",
                "fc: --no-patches --config b.config",
            ]
        );
        assert!(parse("build --config a.config").is_err());
    }

    #[test]
    fn a_clock_bench_is_on_all_generations_unless_it_is_quick() {
        let options = |line| parse(line).unwrap().clock(Vec::new(), Duration::ZERO);
        assert_eq!(options("clock").generations.len(), 4);
        assert_eq!(options("clock").compare, Duration::from_mins(10));
        let quick = options("clock --quick");
        assert_eq!((quick.generations.len(), quick.host_hz.len()), (1, 1));
    }
}
