//! The installation of missing tools.
//!
//! Debian packages are installed by root: a user's apt-get is run through sudo. Everything else goes into the cache.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use debian_archive::{Apt, version_lt};
use support::{cache::Cache, file, progress::Progress, run};

use crate::{
    error::{Error, Result},
    finder::{Finder, Found, rust_src_dir, tools_dir},
    tools::{Purpose, TOOLS, Tool},
};

/// The steps that would install everything that is missing.
#[derive(Debug, Default)]
pub struct Plan {
    /// Tools that are missing or too old.
    pub missing: Vec<&'static Tool>,
    /// Debian packages to install from the system's own suites.
    pub packages: BTreeSet<&'static str>,
    /// Debian packages that are recent enough only in the backports of the system's release.
    pub backports: BTreeSet<&'static str>,
    /// Build bindgen from its crate.
    pub bindgen: bool,
    /// Fetch the source of Rust's standard library.
    pub rust_src: bool,
    /// Whether this is a Debian system, whose packages can be installed.
    pub debian: bool,
}

impl Plan {
    /// Whether nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
    }
}

/// Finds and installs tools.
pub struct Setup<'a> {
    finder: Finder,
    cache: &'a Cache,
    progress: &'a dyn Progress,
}

impl<'a> Setup<'a> {
    /// Setup for the programs on PATH, with a cache for what is not a Debian package.
    pub fn new(cache: &'a Cache, progress: &'a dyn Progress) -> Self {
        Self { finder: Finder::new(None, cache), cache, progress }
    }

    /// The tools of these purposes that this machine lacks or has in a version that is too old.
    pub fn missing(&self, purposes: &[Purpose]) -> Vec<&'static Tool> {
        TOOLS
            .iter()
            .filter(|tool| purposes.contains(&tool.purpose))
            .filter(|tool| !matches!(self.finder.probe(tool), Found::Yes(_)))
            .collect()
    }

    /// The steps that install what is missing, by apt's lists as they are.
    pub fn plan(&self, purposes: &[Purpose]) -> Result<Plan> {
        let missing = self.missing(purposes);
        let debian = codename().is_some() && self.finder.find("apt-get").is_some();
        let mut plan = Plan { debian, ..Plan::default() };
        for tool in &missing {
            match (tool.name, tool.debian) {
                ("rust-src", _) => plan.rust_src = true,
                (_, Some(package)) if plan.debian => match (candidate(package)?, tool.min) {
                    (Some(version), Some(min)) if version_lt(upstream(&version), min)? => {
                        if tool.name == "bindgen" {
                            plan.bindgen = true;
                        } else {
                            plan.backports.insert(package);
                        }
                    }
                    (None, _) if tool.name == "bindgen" => plan.bindgen = true,
                    _ => _ = plan.packages.insert(package),
                },
                ("bindgen", _) => plan.bindgen = true,
                _ => {}
            }
        }
        plan.missing = missing;
        Ok(plan)
    }

    /// Fetches apt's lists if a tool is missing and there are none, as in a new container.
    pub fn fetch_lists_if_none(&self, purposes: &[Purpose]) -> Result<()> {
        let has_apt = codename().is_some() && self.finder.find("apt-get").is_some();
        if !has_apt || self.missing(purposes).is_empty() || candidate("make")?.is_some() {
            return Ok(());
        }
        self.progress.phase("looking for packages");
        let mut apt = apt_get();
        apt.arg("update");
        self.run_as_root(apt)
    }

    /// Carries out a plan. `rust_src_suites` are the Debian suites searched, in this order, for the rust-src that matches
    /// the installed rustc. rustc itself is not installed: the toolchain check reports it.
    pub fn install(&self, plan: &Plan, rust_src_suites: &[String]) -> Result<()> {
        if !plan.packages.is_empty() {
            self.progress.phase("installing packages");
            let mut apt = apt_get();
            apt.args(["install", "--yes", "--no-install-recommends"]).args(&plan.packages);
            self.run_as_root(apt)?;
        }
        if !plan.backports.is_empty() {
            self.install_backports(plan)?;
        }
        // These two use the packages that were just installed.
        if plan.bindgen {
            self.install_bindgen()?;
        }
        if plan.rust_src {
            self.install_rust_src(rust_src_suites)?;
        }
        Ok(())
    }

    /// Installs from backports; the system's apt configuration stays unchanged.
    fn install_backports(&self, plan: &Plan) -> Result<()> {
        let codename = codename().unwrap_or_default();
        let suites = ["", "-updates", "-security", "-backports"].map(|suffix| format!("{codename}{suffix}"));
        let apt = Apt::new(self.cache, &suites, self.progress)?.ok_or_else(|| Error::NoMirror {
            packages: plan.backports.iter().copied().collect::<Vec<_>>().join(", "),
            suite: format!("{codename}-backports"),
        })?;
        self.progress.phase(&format!("installing packages from {codename}-backports"));
        apt.update()?;
        let mut install = apt.command("apt-get");
        install
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .arg(format!("--target-release={codename}-backports"))
            .args(&plan.backports);
        self.run_as_root(install)
    }

    fn install_bindgen(&self) -> Result<()> {
        self.progress.phase("building bindgen");
        let dir = self.cache.dir("tools")?;
        let mut cargo = run::command("cargo");
        cargo
            .args(["install", "--quiet", "--locked", "bindgen-cli", "--root"])
            .arg(tools_dir(self.cache))
            // The checkout's settings would make a static program, which cannot load libclang.
            .current_dir(&dir)
            .env("RUSTFLAGS", "")
            .env_remove("CARGO_BUILD_TARGET");
        Ok(run::visible(
            &mut cargo,
            "`cargo install bindgen-cli` shows more; setup looks for bindgen on the PATH",
        )?)
    }

    /// Adds rustup's component or else unpacks Debian's package of exactly the same version in the cache.
    fn install_rust_src(&self, suites: &[String]) -> Result<()> {
        self.progress.phase("fetching rust-src");
        if self.add_rustup_component() {
            return Ok(());
        }
        let unavailable = |problem: String| Error::NoRustSource { problem };
        let version = self
            .finder
            .rustc_version()
            .ok_or_else(|| unavailable("there is no rustc to match".to_owned()))?;
        let apt = Apt::new(self.cache, suites, self.progress)?.ok_or_else(|| {
            unavailable("rustup could not add the component, and apt has no Debian mirror".to_owned())
        })?;
        apt.update()?;
        let is_same = |offered: &str| {
            offered.strip_prefix(&version).is_some_and(|rest| rest.starts_with(['+', '-', '~']))
        };
        let offers = apt.offers("rust-src")?;
        let offer = offers
            .iter()
            .rfind(|offer| is_same(&offer.version))
            .ok_or_else(|| unavailable(format!("Debian has no rust-src {version}")))?;
        let deb = apt.download(self.cache, offer, "rust-src", self.progress)?;
        self.progress.phase(&format!("unpacking rust-src {}", offer.version));
        unpack_rust_src(&deb, &rust_src_dir(self.cache), &version)
    }

    /// Whether rustup has added the component rust-src.
    fn add_rustup_component(&self) -> bool {
        let mut rustup = self.finder.command("rustup");
        rustup.args(["component", "add", "rust-src"]);
        self.finder.find("rustup").is_some()
            && rustup.output().is_ok_and(|output| output.status.success())
            && self.finder.rust_src().is_some()
    }

    /// Runs a command whose messages are for the user as root, through sudo if need be.
    fn run_as_root(&self, command: Command) -> Result<()> {
        let needs_sudo = !rustix::process::geteuid().is_root() && self.finder.find("sudo").is_some();
        let mut command = if needs_sudo { with_sudo(&command) } else { command };
        let help = "packages are installed by root; `vmmlinux setup --list` lists those that are needed";
        Ok(run::visible(&mut command, help)?)
    }
}

/// `sudo env NAME=VALUE… PROGRAM ARGUMENTS…`: sudo itself does not pass the environment on.
fn with_sudo(command: &Command) -> Command {
    let mut sudo = run::command("sudo");
    sudo.arg("env");
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let mut assignment = name.to_owned();
            assignment.push("=");
            assignment.push(value);
            sudo.arg(assignment);
        }
    }
    sudo.arg(command.get_program()).args(command.get_args());
    sudo
}

fn unpack_rust_src(deb: &Path, into: &Path, version: &str) -> Result<()> {
    fs::create_dir_all(into).map_err(|e| file::Error::new("create", into, e))?;
    let temp = tempfile::Builder::new()
        .prefix(".unpacking-")
        .tempdir_in(into)
        .map_err(|e| file::Error::new("create a directory in", into, e))?;
    run::stdout(run::command("dpkg-deb").arg("--extract").arg(deb).arg(temp.path()))?;
    // The kernel needs only the library of rustc's source.
    let keep = temp.path().join("keep");
    let library = temp.path().join(format!("usr/src/rustc-{version}/library"));
    fs::create_dir(&keep).map_err(|e| file::Error::new("create", &keep, e))?;
    fs::rename(&library, keep.join("library")).map_err(|e| file::Error::new("find", &library, e))?;
    let place: PathBuf = into.join(version);
    Ok(fs::rename(&keep, &place).map_err(|e| file::Error::new("create", &place, e))?)
}

/// The code name of the Debian release; `None` on other systems.
fn codename() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let field = |name: &str| {
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).map(|v| v.trim_matches('"'))
    };
    (field("ID") == Some("debian")).then(|| field("VERSION_CODENAME").unwrap_or("stable").to_owned())
}

fn apt_get() -> Command {
    let mut apt = run::command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet");
    apt
}

/// The version of a package that apt would install.
fn candidate(package: &str) -> Result<Option<String>> {
    let policy = run::stdout(run::command("apt-cache").args(["policy", package]))?;
    Ok(policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .map(str::to_owned))
}

/// A Debian version without its epoch.
fn upstream(version: &str) -> &str {
    version.split_once(':').map_or(version, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_runs_the_same_command_in_the_same_environment() {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").env_remove("LANGUAGE").args(["install", "make"]);
        let line = run::command_line(&with_sudo(&command));
        assert_eq!(line, "sudo env DEBIAN_FRONTEND=noninteractive apt-get install make");
    }
}
