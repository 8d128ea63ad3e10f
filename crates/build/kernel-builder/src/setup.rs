//! Installing what is missing.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    Forge,
    apt::{Apt, version_lt},
    error::{Error, Result},
    run,
    tools::{Finder, Found, Purpose, TOOLS, Tool, rust_src_dir, tools_dir},
};

/// What would have to be done so that everything is there.
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
    /// Whether this system is one whose packages can be installed here.
    pub debian: bool,
}

impl Plan {
    /// Whether nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
    }
}

impl Forge {
    /// What the given purposes need and this machine lacks.
    pub fn missing(&self, purposes: &[Purpose]) -> Vec<&'static Tool> {
        let finder = Finder::new(self.options.path.as_deref(), &self.cache);
        TOOLS
            .iter()
            .filter(|tool| purposes.contains(&tool.purpose))
            .filter(|tool| !matches!(finder.probe(tool), Found::Yes(_)))
            .collect()
    }

    /// What is to be done about what is missing. Fetches apt's lists if there are none.
    pub fn plan(&self, purposes: &[Purpose]) -> Result<Plan> {
        let finder = Finder::new(self.options.path.as_deref(), &self.cache);
        let missing = self.missing(purposes);
        let mut plan =
            Plan { debian: codename().is_some() && finder.find("apt-get").is_some(), ..Plan::default() };
        if !missing.is_empty() && plan.debian {
            self.progress.phase("looking for packages");
            update_lists_if_none()?;
        }
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

    /// Does what a plan says. What cannot be installed by a program of ours (rustc) is left to the toolchain check.
    pub fn install(&self, plan: &Plan) -> Result<()> {
        if !plan.packages.is_empty() {
            self.progress.phase("installing packages");
            let mut apt = apt_get();
            visible(apt.args(["install", "--yes", "--no-install-recommends"]).args(&plan.packages))?;
        }
        if !plan.backports.is_empty() {
            self.install_backports(plan)?;
        }
        // These two use what was just installed.
        if plan.bindgen {
            self.install_bindgen()?;
        }
        if plan.rust_src {
            self.install_rust_src()?;
        }
        Ok(())
    }

    /// Installs from backports with sources of our own: the system's apt does not learn of them.
    fn install_backports(&self, plan: &Plan) -> Result<()> {
        let codename = codename().unwrap_or_default();
        let suites = ["", "-updates", "-security", "-backports"].map(|suffix| format!("{codename}{suffix}"));
        let apt = Apt::new(&self.cache, &suites)?.ok_or_else(|| Error::Unavailable {
            series: plan.backports.iter().copied().collect::<Vec<_>>().join(", "),
            origin: format!("{codename}-backports"),
            problem: "the system's apt has no Debian mirror".to_owned(),
            help: None,
        })?;
        self.progress.phase(&format!("installing packages from {codename}-backports"));
        apt.update()?;
        let mut install = apt.command("apt-get");
        install
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .arg(format!("--target-release={codename}-backports"))
            .args(&plan.backports);
        visible(&mut install)
    }

    fn install_bindgen(&self) -> Result<()> {
        self.progress.phase("building bindgen");
        let dir = self.cache.dir("tools")?;
        let mut cargo = run::command("cargo");
        cargo
            .args(["install", "--quiet", "--locked", "bindgen-cli", "--root"])
            .arg(tools_dir(&self.cache))
            // Not the settings of the checkout: a static program could not load libclang.
            .current_dir(&dir)
            .env("RUSTFLAGS", "")
            .env_remove("CARGO_BUILD_TARGET");
        visible(&mut cargo)
    }

    /// rustup's component where rustup can get it, else Debian's package of exactly the same version, unpacked privately.
    fn install_rust_src(&self) -> Result<()> {
        let finder = Finder::new(self.options.path.as_deref(), &self.cache);
        self.progress.phase("fetching rust-src");
        if finder.find("rustup").is_some()
            && finder
                .command("rustup")
                .args(["component", "add", "rust-src"])
                .output()
                .is_ok_and(|o| o.status.success())
            && finder.rust_src().is_some()
        {
            return Ok(());
        }
        let unavailable = |problem: String| Error::Unavailable {
            series: "rust-src".to_owned(),
            origin: "rustup and Debian".to_owned(),
            problem,
            help: Some(
                "get the source of your rustc and set RUST_LIB_SRC to its library/ directory".to_owned(),
            ),
        };
        let version =
            finder.rustc_version().ok_or_else(|| unavailable("there is no rustc to match".to_owned()))?;
        let apt = Apt::new(&self.cache, &self.series.rust_src_suites)?.ok_or_else(|| {
            unavailable("rustup could not add the component, and apt has no Debian mirror".to_owned())
        })?;
        apt.update()?;
        let offers = apt.offers("rust-src")?;
        let offer = offers
            .iter()
            .rev()
            .find(|offer| {
                offer.version.strip_prefix(&version).is_some_and(|rest| rest.starts_with(['+', '-', '~']))
            })
            .ok_or_else(|| unavailable(format!("Debian has no rust-src {version}")))?;
        let deb = apt.download(&self.cache, offer, "rust-src", &*self.progress)?;
        self.progress.phase(&format!("unpacking rust-src {}", offer.version));
        unpack_rust_src(&deb, &rust_src_dir(&self.cache), &version)
    }
}

fn unpack_rust_src(deb: &Path, into: &Path, version: &str) -> Result<()> {
    fs::create_dir_all(into).map_err(|e| Error::io("create", into, e))?;
    let temp = tempfile::Builder::new()
        .prefix(".unpacking-")
        .tempdir_in(into)
        .map_err(|e| Error::io("create a directory in", into, e))?;
    run::stdout(run::command("dpkg-deb").arg("--extract").arg(deb).arg(temp.path()))?;
    // Of all of rustc's source only the library is needed.
    let keep = temp.path().join("keep");
    let library = temp.path().join(format!("usr/src/rustc-{version}/library"));
    fs::create_dir(&keep).map_err(|e| Error::io("create", &keep, e))?;
    fs::rename(&library, keep.join("library")).map_err(|e| Error::io("find", &library, e))?;
    let place: PathBuf = into.join(version);
    fs::rename(&keep, &place).map_err(|e| Error::io("create", &place, e))
}

/// The release's name, if this is Debian.
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

/// A container's apt starts without lists and would know of no package.
fn update_lists_if_none() -> Result<()> {
    if candidate("make")?.is_none() {
        visible(apt_get().arg("update"))?;
    }
    Ok(())
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

/// Runs a program whose messages are for the user, who asked for something to be installed.
fn visible(command: &mut Command) -> Result<()> {
    let status = command
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .map_err(|source| Error::Spawn { program: run::command_line(command), source })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Program {
        program: run::command_line(command),
        status: status.to_string(),
        output: "its messages are above".to_owned(),
        help: Some(
            "packages are installed by root; `vmmlinux setup --list` says which ones are needed".to_owned(),
        ),
    })
}
