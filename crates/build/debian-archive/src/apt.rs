//! Packages of any suite of Debian's archive, fetched by apt with directories of its own.
//!
//! Mirror, keyring and components are those of the system's apt; the suites are the caller's. A bookworm machine can thus
//! build trixie's kernel while its system's apt does not know trixie. apt checks the signatures.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use support::{
    cache::{Cache, Lock, hold},
    file::{self, write_atomically},
    hash::Hash,
    progress::Progress,
    run,
};

use crate::{
    deb822::stanzas,
    error::{Error, Result},
    mirrors::Mirrors,
};

/// A package version that the archive offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The package's name.
    pub package: String,
    /// Its version, as dpkg compares it.
    pub version: String,
    /// The SHA-256 of its file.
    pub sha256: String,
    /// The size of its file in bytes.
    pub size: u64,
    /// The name of its file, without directories.
    pub file: String,
    /// Names of the packages it depends on, alternatives included, without versions.
    pub depends: Vec<String>,
}

/// apt restricted to a set of suites. Other runs wait until this one is dropped: apt itself fails where another one fetches
/// the same lists, and finds no package while they are replaced.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
    _lock: File,
}

impl Apt {
    /// apt for these suites of Debian's archive; `None` if the system's apt has no mirror of Debian. Waiting for another run
    /// is reported as a phase.
    pub fn new(cache: &Cache, suites: &[String], progress: &dyn Progress) -> Result<Option<Self>> {
        let Some(mirrors) = Mirrors::of_system()? else { return Ok(None) };
        let sources: Vec<String> = suites.iter().filter_map(|suite| mirrors.stanza(suite)).collect();
        if sources.is_empty() {
            return Ok(None);
        }
        let sources = sources.join("\n");
        let mut hash = Hash::new();
        hash.field(&sources);
        let dir = cache.dir(&format!("apt/{}", &hash.hex()[..16]))?;
        Self::open(dir, &sources, progress).map(Some)
    }

    /// apt with its files in a directory.
    fn open(dir: PathBuf, sources: &str, progress: &dyn Progress) -> Result<Self> {
        let path = dir.join("apt.lock");
        let lock = File::create(&path).map_err(|e| file::Error::new("open the lock", &path, e))?;
        hold(&lock, &path, Lock::Exclusive, progress)?;
        for sub in ["lists/partial", "cache/archives/partial"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).map_err(|e| file::Error::new("create", &sub, e))?;
        }
        write_atomically(&dir.join("debian.sources"), sources.as_bytes())?;
        Ok(Self { dir, _lock: lock })
    }

    /// Fetches the package lists of the suites.
    pub fn update(&self) -> Result<()> {
        let mut apt = self.command("apt-get");
        let output = run::output(apt.args(["--quiet=2", "update"]))?;
        if output.status.success() {
            return Ok(());
        }
        let help = "check the network; `apt-get update` shows the mirrors of the system; --offline builds from the cache";
        Err(run::failed(&apt, &output, Some(help.to_owned())).into())
    }

    /// All versions of a package that the suites offer, oldest first.
    pub fn offers(&self, package: &str) -> Result<Vec<Offer>> {
        let output = run::output(self.command("apt-cache").args(["--quiet", "show", package]))?;
        let mut offers = parse_offers(&String::from_utf8_lossy(&output.stdout));
        // dpkg compares versions.
        let mut sorted: Vec<Offer> = Vec::with_capacity(offers.len());
        for offer in offers.drain(..) {
            let mut at = sorted.len();
            while at > 0 && version_lt(&offer.version, &sorted[at - 1].version)? {
                at -= 1;
            }
            sorted.insert(at, offer);
        }
        Ok(sorted)
    }

    /// Downloads a package into the cache and returns its file.
    ///
    /// `what` names the temporary directory: a caller with the lock of that name removes what killed runs left.
    pub fn download(
        &self,
        cache: &Cache,
        offer: &Offer,
        what: &str,
        progress: &dyn Progress,
    ) -> Result<PathBuf> {
        if let Some(file) = cache.download(&offer.sha256, &offer.file)? {
            return Ok(file);
        }
        progress.phase(&format!(
            "downloading {} {} ({} MB)",
            offer.package,
            offer.version,
            offer.size / 1_000_000
        ));
        let incoming = cache.incoming(what)?;
        let mut apt = self.command("apt-get");
        apt.args(["--quiet=2", "download"])
            .arg(format!("{}={}", offer.package, offer.version))
            .current_dir(incoming.path());
        run::download(&mut apt, incoming.path(), offer.size, progress)?;
        let file = fs::read_dir(incoming.path())
            .map_err(|e| file::Error::new("read", incoming.path(), e))?
            .filter_map(std::result::Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .ok_or_else(|| Error::NotDownloaded {
                package: offer.package.clone(),
                version: offer.version.clone(),
            })?;
        Ok(cache.keep_download(&file, &offer.sha256, &offer.file)?)
    }

    /// A program of apt that uses only these suites.
    pub fn command(&self, program: &str) -> Command {
        let mut command = run::command(program);
        let mut option = |name: &str, value: &Path| {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        };
        option("Dir::State::lists", &self.dir.join("lists"));
        option("Dir::Cache", &self.dir.join("cache"));
        option("Dir::Etc::sourcelist", &self.dir.join("debian.sources"));
        option("Dir::Etc::sourceparts", Path::new("/dev/null"));
        option("Dir::Etc::preferences", Path::new("/dev/null"));
        option("Dir::Etc::preferencesparts", Path::new("/dev/null"));
        // The user _apt cannot write to the cache below a home directory.
        option("APT::Sandbox::User", Path::new("root"));
        option("Acquire::Languages", Path::new("none"));
        command
    }
}

/// Whether Debian version `a` is older than `b`.
pub fn version_lt(a: &str, b: &str) -> Result<bool> {
    Ok(run::output(run::command("dpkg").args(["--compare-versions", a, "lt", b]))?.status.success())
}

fn parse_offers(show: &str) -> Vec<Offer> {
    stanzas(show)
        .filter_map(|stanza| {
            let get = |name: &str| stanza.iter().find(|(n, _)| n == name).map(|(_, v)| v.trim().to_owned());
            Some(Offer {
                package: get("Package")?,
                version: get("Version")?,
                sha256: get("SHA256")?,
                size: get("Size")?.parse().ok()?,
                file: get("Filename")?.rsplit('/').next()?.to_owned(),
                depends: get("Depends")
                    .unwrap_or_default()
                    .split([',', '|'])
                    .filter_map(|dependency| Some(dependency.split_whitespace().next()?.to_owned()))
                    .collect(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{SyncSender, sync_channel},
        thread,
    };

    use support::progress::Quiet;

    use super::*;

    /// Sends phases to a channel.
    struct Reporter(SyncSender<String>);

    impl Progress for Reporter {
        fn phase(&self, what: &str) {
            self.0.send(what.to_owned()).unwrap();
        }
        fn step(&self, _: u64, _: u64, _: &str) {}
        fn note(&self, _: &str) {}
    }

    #[test]
    fn runs_with_the_same_suites_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let open = |progress: &dyn Progress| Apt::open(dir.path().to_owned(), "", progress).unwrap();
        let (sender, phases) = sync_channel(1);
        let reporter = Reporter(sender);
        let first = open(&Quiet);
        thread::scope(|scope| {
            let second = scope.spawn(|| open(&reporter));

            let said = phases.recv().unwrap();
            drop(first);

            assert!(said.contains("waiting for another run") && said.contains("apt.lock"), "{said}");
            second.join().unwrap();
        });
    }

    #[test]
    fn offers_are_read_from_apt_cache_show() {
        let show = "Package: linux-source-7.3\nVersion: 7.3.4-1\nDescription: a\n b\nSize: 42\nFilename: pool/l/x_7.3.4.deb\n\
                    SHA256: ab\n\nPackage: linux-source-7.3\nVersion: broken\n";
        let offers = parse_offers(show);
        assert_eq!(offers.len(), 1);
        assert_eq!((offers[0].file.as_str(), offers[0].size), ("x_7.3.4.deb", 42));
    }
}
