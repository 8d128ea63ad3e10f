//! `bench build`: what a cold build of our kernel costs.

use std::{fs, process::Command};

use serde::Serialize;

use crate::{Error, Lab, Report, Result, Table};

const HOW: [&str; 1] = [
    "A build under a name of its own, from a source that is fetched and unpacked already, without ccache. Processor \
     time is that of the build and all that it starts, user and system, from /proc; it depends on the processor.",
];

/// Clock ticks per second in `/proc`, for every x86-64 Linux.
const TICKS: f64 = 100.0;

/// A build's cost.
#[derive(Clone, Debug, Serialize)]
struct Cost {
    workload: String,
    cpu_seconds: f64,
    symbols: usize,
    image: u64,
}

/// Builds a workload of our configuration.
pub fn run(lab: &Lab, workload: &str) -> Result<Report> {
    let name = format!("bench-cold-{}", std::process::id());
    let out = lab.scratch.path().join("built");
    let before = children()?;
    lab.say(&format!("cold build of {workload}"));
    let output = Command::new(&lab.program)
        .args(["build", "--workload", workload, "--name", &name, "--out"])
        .arg(&out)
        .env("CCACHE_DISABLE", "1")
        .output()
        .map_err(Error::io("run", &lab.program))?;
    if !output.status.success() {
        return Err(Error::Program {
            program: format!("vmmlinux build --workload {workload}"),
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
            help: "run it by hand to see more".to_owned(),
        });
    }
    let cpu_seconds = children()? - before;
    let built = if out.join("bzImage").is_file() { out } else { out.join(&name) };
    let config = fs::read_to_string(built.join("config")).map_err(Error::io("read", built.join("config")))?;
    let image = fs::metadata(built.join("bzImage")).map_err(Error::io("read", built.join("bzImage")))?.len();
    let symbols = config.lines().filter(|line| line.starts_with("CONFIG_")).count();
    let cost = Cost { workload: workload.to_owned(), cpu_seconds, symbols, image };
    let mut table = Table::new("Cold build", &["workload", "CPU minutes", "symbols set", "bzImage bytes"]);
    table.row([
        cost.workload.clone(),
        format!("{:.1}", cpu_seconds / 60.0),
        symbols.to_string(),
        image.to_string(),
    ]);
    let mut report = Report::new("build", &lab.accel, &HOW, &cost);
    report.tables = vec![table];
    Ok(report)
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
}
