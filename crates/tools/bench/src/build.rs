//! `bench build`: what cold builds cost, ours and those of given configurations of the same source.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use kernel_builder::Step;
use serde::Serialize;
use support::cache::Cache;

use crate::{Error, Report, Result, Runner, Table};

const HOW: [&str; 2] = [
    "A build under a name of its own, from a source that is fetched and unpacked already, without ccache. Processor \
     time is that of the build and all that it starts, user and system, from /proc; it depends on the processor, and \
     on what else it does.",
    "Given configurations are completed by the kernel's own make and built from the released source, without our \
     patches and drivers, in the same way otherwise.",
];

/// Clock ticks per second in `/proc`, for every x86-64 Linux.
const TICKS: f64 = 100.0;

/// How many of the dearest steps are told.
const DEAREST: usize = 20;

/// What to build.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What it is called in the report.
    pub name: String,
    /// Arguments of `vmmlinux build` that choose it.
    pub arguments: Vec<String>,
}

/// A build's cost.
#[derive(Clone, Debug, Serialize)]
struct Cost {
    kernel: String,
    cpu_seconds: f64,
    symbols: usize,
    image: u64,
    parts: Vec<Part>,
    dearest: Vec<Step>,
}

/// What a part of a build cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Part {
    name: String,
    steps: usize,
    seconds: f64,
}

/// Builds the subjects one after the other. With `profile`, what each step costs is told too, for some milliseconds a step.
pub fn run(runner: &Runner, subjects: &[Subject], profile: bool) -> Result<Report> {
    let costs: Vec<Cost> =
        subjects.iter().map(|subject| build(runner, subject, profile)).collect::<Result<_>>()?;
    let last = costs.last();
    let reference = format!("of {}", last.map_or("", |cost| &cost.kernel));
    let columns = ["kernel", "CPU seconds", &reference, "symbols set", "bzImage bytes", &reference];
    let mut table = Table::new("Cold build", &columns);
    let ratio = |part: f64, whole: f64| format!("{:.2}", part / whole.max(1.0));
    #[expect(clippy::cast_precision_loss, reason = "a kernel is smaller than 2^52 bytes")]
    for cost in &costs {
        table.row([
            cost.kernel.clone(),
            format!("{:.0}", cost.cpu_seconds),
            ratio(cost.cpu_seconds, last.map_or(0.0, |last| last.cpu_seconds)),
            cost.symbols.to_string(),
            cost.image.to_string(),
            ratio(cost.image as f64, last.map_or(0.0, |last| last.image as f64)),
        ]);
    }
    let mut report = Report::new("build", &runner.accel, &HOW, &costs);
    report.tables = vec![table];
    for cost in costs.iter().filter(|_| profile) {
        let mut table =
            Table::new(format!("Where it goes: {}", cost.kernel), &["part", "steps", "CPU seconds"]);
        for part in &cost.parts {
            table.row([part.name.clone(), part.steps.to_string(), format!("{:.1}", part.seconds)]);
        }
        report.tables.push(table);
        let mut table =
            Table::new(format!("The dearest steps: {}", cost.kernel), &["tool", "makes", "CPU seconds"]);
        for step in &cost.dearest {
            table.row([step.tool.clone(), step.target.clone(), format!("{:.1}", step.seconds)]);
        }
        report.tables.push(table);
    }
    Ok(report)
}

fn build(runner: &Runner, subject: &Subject, profile: bool) -> Result<Cost> {
    let name = format!("bench-cold-{}", std::process::id());
    let out = runner.scratch.path().join("built");
    let noted = runner.scratch.path().join("profile");
    let before = children()?;
    runner.say(&format!("cold build of {}", subject.name));
    let mut command = Command::new(&runner.program);
    command.arg("build").args(&subject.arguments).args(["--name", &name, "--out"]).arg(&out);
    if profile {
        command.arg("--profile").arg(&noted);
    }
    let output = command.env("CCACHE_DISABLE", "1").output().map_err(Error::io("run", &runner.program))?;
    let left = remove_objects(&name);
    if !output.status.success() {
        return Err(Error::Program {
            program: format!("vmmlinux build {}", subject.arguments.join(" ")),
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
            help: "run it by hand to see more".to_owned(),
        });
    }
    left?;
    let cpu_seconds = children()? - before;
    let built = out.join(&name);
    let config = fs::read_to_string(built.join("config")).map_err(Error::io("read", built.join("config")))?;
    let image = fs::metadata(built.join("bzImage")).map_err(Error::io("read", built.join("bzImage")))?.len();
    let symbols = config.lines().filter(|line| line.starts_with("CONFIG_")).count();
    let mut steps = Vec::new();
    if profile {
        let text = fs::read_to_string(&noted).map_err(Error::io("read", &noted))?;
        steps = text.lines().filter_map(Step::parse).collect();
    }
    fs::remove_dir_all(&out).map_err(Error::io("remove", &out))?;
    let parts = parts(&steps, cpu_seconds);
    steps.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    steps.truncate(DEAREST);
    Ok(Cost { kernel: subject.name.clone(), cpu_seconds, symbols, image, parts, dearest: steps })
}

/// Removes the build directories of a name from the cache: no build uses them again.
fn remove_objects(name: &str) -> Result<()> {
    let builds = Cache::user()?.root().join("builds");
    for entry in fs::read_dir(&builds).map_err(Error::io("read", &builds))? {
        let path = entry.map_err(Error::io("read", &builds))?.path();
        let is_ours = |file: &std::ffi::OsStr| file.to_string_lossy().starts_with(&format!("{name}-"));
        if path.file_name().is_some_and(is_ours) {
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Sums by part, the dearest first; the last is what no step accounts for.
fn parts(steps: &[Step], whole: f64) -> Vec<Part> {
    let mut sums: BTreeMap<String, (usize, f64)> = BTreeMap::new();
    for step in steps {
        let sum = sums.entry(part_of(step)).or_default();
        sum.0 += 1;
        sum.1 += step.seconds;
    }
    let mut parts: Vec<Part> =
        sums.into_iter().map(|(name, (steps, seconds))| Part { name, steps, seconds }).collect();
    parts.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let known: f64 = parts.iter().map(|part| part.seconds).sum();
    parts.push(Part {
        name: "make, its shells, configuration, packing".to_owned(),
        steps: 0,
        seconds: (whole - known).max(0.0),
    });
    parts
}

fn part_of(step: &Step) -> String {
    let path = Path::new(&step.target);
    let top = path
        .components()
        .next()
        .map_or_else(String::new, |top| top.as_os_str().to_string_lossy().into_owned());
    let tool = step.tool.split(' ').next().unwrap_or_default();
    match tool {
        "CC" | "AS" if path.components().count() > 1 => format!("C and assembly: {top}/"),
        _ if top == "rust" || tool.starts_with("RUST") => {
            "Rust: its core, bindings, the kernel crate, drivers".to_owned()
        }
        _ if tool.starts_with("HOST") => "programs that the build runs".to_owned(),
        _ => "archives, linking, symbols, compression".to_owned(),
    }
}

/// Seconds of processor time of all children that were waited for, and theirs.
fn children() -> Result<f64> {
    let path = "/proc/self/stat";
    let stat = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(child_time(&stat))
}

fn child_time(stat: &str) -> f64 {
    // The program's name, in parentheses, may hold anything; cutime and cstime are the 16th and 17th field.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u32 = fields.skip(13).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    f64::from(ticks) / TICKS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_childrens_time_is_found_behind_any_name() {
        let stat = "1 (a) b 2) S 0 1 1 0 -1 4194560 100 200 0 0 11 12 350 50 20 0 1 0 5 0 0";
        assert!((child_time(stat) - 4.0).abs() < 1e-9);
    }

    #[test]
    fn every_step_belongs_to_a_part_and_the_rest_is_told() {
        let lines = "2.000\tRUSTC L\trust/core.o\n1.500\tBINDGEN\trust/uapi/uapi_generated.rs\n0.500\tCC\tfs/ext4/inode.o\n\
                     0.250\tCC [M]\tfs/fuse/dev.o\n0.125\tHOSTCC\tscripts/kallsyms\n4.000\tZSTD22\tarch/x86/boot/compressed/vmlinux.bin.zst\n\
                     0.250\tCC\t.vmlinux.export.o\nbroken\n";
        let steps: Vec<Step> = lines.lines().filter_map(Step::parse).collect();
        assert_eq!(steps.len(), 7);
        let found = parts(&steps, 10.0);
        let told: Vec<_> = found.iter().map(|part| (part.name.as_str(), part.steps, part.seconds)).collect();
        assert_eq!(
            told,
            [
                ("archives, linking, symbols, compression", 2, 4.25),
                ("Rust: its core, bindings, the kernel crate, drivers", 2, 3.5),
                ("C and assembly: fs/", 2, 0.75),
                ("programs that the build runs", 1, 0.125),
                ("make, its shells, configuration, packing", 0, 1.375),
            ]
        );
    }
}
