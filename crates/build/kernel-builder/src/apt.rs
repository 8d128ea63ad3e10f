//! Packages from Debian's archive, fetched by apt with directories of our own.
//!
//! The mirror, its keyring and components are the system's; the suites are ours, so a bookworm machine can build trixie's
//! kernel without its own apt ever hearing of trixie. apt checks the signatures.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cache::{Cache, Hash, write_atomically},
    error::{Error, Result},
    fetch::watch_download,
    progress::Progress,
    run,
};

/// A package version that the archive offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) sha256: String,
    /// Bytes.
    pub(crate) size: u64,
    /// The package's file name, without directories.
    pub(crate) file: String,
    /// Names of the packages it depends on, without versions and alternatives' order.
    pub(crate) depends: Vec<String>,
}

/// apt over a set of suites.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// apt over these suites of Debian's archive; `None` if the system's apt is not set up for Debian.
    pub(crate) fn new(cache: &Cache, suites: &[String]) -> Result<Option<Self>> {
        let Some(mirrors) = Mirrors::of_system()? else { return Ok(None) };
        let sources: Vec<String> = suites.iter().filter_map(|suite| mirrors.stanza(suite)).collect();
        if sources.is_empty() {
            return Ok(None);
        }
        let sources = sources.join("\n");
        let mut hash = Hash::new();
        hash.field(&sources);
        let dir = cache.dir(&format!("apt/{}", &hash.hex()[..16]))?;
        for sub in ["lists/partial", "cache/archives/partial"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).map_err(|e| Error::io("create", &sub, e))?;
        }
        write_atomically(&dir.join("debian.sources"), sources.as_bytes())?;
        Ok(Some(Self { dir }))
    }

    /// Fetches the suites' lists.
    pub(crate) fn update(&self) -> Result<()> {
        let mut apt = self.command("apt-get");
        let output = run::output(apt.args(["--quiet=2", "update"]))?;
        if output.status.success() {
            return Ok(());
        }
        let help =
            "is the network up? `apt-get update` by itself tells more; --offline builds from the cache";
        Err(run::failed(&apt, &output, Some(help.to_owned())))
    }

    /// All versions of a package that the suites offer, oldest first.
    pub(crate) fn offers(&self, package: &str) -> Result<Vec<Offer>> {
        let output = run::output(self.command("apt-cache").args(["--quiet", "show", package]))?;
        let mut offers = parse_offers(&String::from_utf8_lossy(&output.stdout));
        // Debian's version order is dpkg's business.
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
    pub(crate) fn download(
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
        watch_download(&mut apt, incoming.path(), offer.size, progress)?;
        let file = fs::read_dir(incoming.path())
            .map_err(|e| Error::io("read", incoming.path(), e))?
            .filter_map(std::result::Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .ok_or_else(|| Error::Unavailable {
                series: offer.package.clone(),
                origin: "Debian".to_owned(),
                problem: format!("apt downloaded no package file of {}", offer.version),
                help: None,
            })?;
        cache.keep_download(&file, &offer.sha256, &offer.file)
    }

    /// A command of apt's that sees only our sources and lists.
    pub(crate) fn command(&self, program: &str) -> Command {
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
        // The user _apt cannot write below somebody's home directory.
        option("APT::Sandbox::User", Path::new("root"));
        option("Acquire::Languages", Path::new("none"));
        command
    }
}

/// Whether Debian version `a` is older than `b`.
pub(crate) fn version_lt(a: &str, b: &str) -> Result<bool> {
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

/// Stanzas of a deb822 text: fields with their values, continuation lines included as they are.
fn stanzas(text: &str) -> impl Iterator<Item = Vec<(String, String)>> {
    let mut all = vec![Vec::<(String, String)>::new()];
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        let current = all.last_mut().expect("never empty");
        if line.trim().is_empty() {
            all.push(Vec::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = current.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            current.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    all.into_iter().filter(|stanza| !stanza.is_empty())
}

/// One source of packages in the system's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// Options that decide whom apt believes, copied as they stand.
    trust: Vec<(&'static str, String)>,
}

/// Where the system gets Debian from.
#[derive(Debug)]
struct Mirrors {
    main: Source,
    security: Option<Source>,
}

impl Mirrors {
    fn of_system() -> Result<Option<Self>> {
        // No apt, no Debian: not an error, the kernel can come from elsewhere.
        let Ok(config) = run::stdout(run::command("apt-config").args([
            "shell",
            "LIST",
            "Dir::Etc::sourcelist/f",
            "PARTS",
            "Dir::Etc::sourceparts/d",
        ])) else {
            return Ok(None);
        };
        let value = |name: &str| {
            config
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix("='")?.strip_suffix('\''))
                .map(PathBuf::from)
        };
        let mut files: Vec<PathBuf> = value("LIST").into_iter().collect();
        if let Some(Ok(parts)) = value("PARTS").map(fs::read_dir) {
            let mut parts: Vec<PathBuf> = parts.filter_map(|e| Some(e.ok()?.path())).collect();
            parts.sort();
            files.extend(parts);
        }
        let mut sources = Vec::new();
        for file in files.iter().filter(|f| f.is_file()) {
            let text = fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
            match file.extension().and_then(|e| e.to_str()) {
                Some("list") => sources.extend(text.lines().filter_map(parse_one_line)),
                Some("sources") => sources.extend(stanzas(&text).filter_map(|s| from_stanza(&s))),
                _ => {}
            }
        }
        let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        Ok(Self::choose(&sources, &os_release, &debian_uris()))
    }

    /// Picks Debian's mirrors out of the system's sources: those whose lists say so, or, where no lists were fetched
    /// yet, those that carry the release a Debian system says it is.
    fn choose(sources: &[Source], os_release: &str, known_debian: &[String]) -> Option<Self> {
        let field = |name: &str| {
            os_release.lines().find_map(|line| {
                Some(line.strip_prefix(name)?.strip_prefix('=')?.trim_matches('"').to_owned())
            })
        };
        let codename = field("VERSION_CODENAME").unwrap_or_default();
        let on_debian = field("ID").as_deref() == Some("debian");
        let is_debian = |source: &&Source| {
            if known_debian.is_empty() {
                on_debian && source.components.iter().any(|c| c == "main")
            } else {
                source.uris.iter().any(|uri| known_debian.iter().any(|known| same_uri(uri, known)))
            }
        };
        let security = |suite: &String| suite.ends_with("-security") || suite.ends_with("/updates");
        let debian: Vec<&Source> = sources.iter().filter(is_debian).collect();
        let named = |s: &&&Source| s.suites.contains(&codename);
        let main = debian
            .iter()
            .find(named)
            .or_else(|| debian.iter().find(|s| !s.suites.iter().any(security)))
            .map(|s| (**s).clone())?;
        let security = debian.iter().find(|s| s.suites.iter().any(security)).map(|s| (**s).clone());
        Some(Self { main, security })
    }

    /// The deb822 stanza of a suite.
    fn stanza(&self, suite: &str) -> Option<String> {
        let source = if suite.ends_with("-security") { self.security.as_ref()? } else { &self.main };
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: {}\nTargets: Packages\n",
            source.uris.join(" "),
            source.components.join(" "),
        );
        for (name, value) in &source.trust {
            text.extend([name, ": ", value, "\n"]);
        }
        Some(text)
    }
}

/// The repositories whose lists, as far as the system has fetched them, say that they are Debian's.
fn debian_uris() -> Vec<String> {
    let listed =
        run::stdout(run::command("apt-get").args(["indextargets", "--format", "$(ORIGIN) $(REPO_URI)"]));
    listed
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.strip_prefix("Debian "))
        .map(str::to_owned)
        .collect()
}

fn same_uri(a: &str, b: &str) -> bool {
    a.trim_end_matches('/') == b.trim_end_matches('/')
}

/// `deb [options] uri suite components…`
fn parse_one_line(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb")?;
    let mut rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let mut trust = Vec::new();
    if let Some(bracketed) = rest.strip_prefix('[') {
        let (options, after) = bracketed.split_once(']')?;
        for option in options.split_whitespace() {
            match option.split_once('=') {
                Some(("signed-by", value)) => trust.push(("Signed-By", value.replace(',', " "))),
                Some(("trusted", value)) => trust.push(("Trusted", value.to_owned())),
                _ => {}
            }
        }
        rest = after;
    }
    let mut words = rest.split('#').next()?.split_whitespace().map(str::to_owned);
    let (uri, suite) = (words.next()?, words.next()?);
    Some(Source { uris: vec![uri], suites: vec![suite], components: words.collect(), trust })
}

fn from_stanza(stanza: &[(String, String)]) -> Option<Source> {
    let get = |name: &str| stanza.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
    let words = |name: &str| -> Vec<String> {
        get(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    if get("Enabled").is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "no" | "false" | "0")) {
        return None;
    }
    if !words("Types").iter().any(|t| t == "deb") {
        return None;
    }
    let trust =
        ["Signed-By", "Trusted"].into_iter().filter_map(|name| Some((name, get(name)?.to_owned()))).collect();
    Some(Source { uris: words("URIs"), suites: words("Suites"), components: words("Components"), trust })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_CODENAME=bookworm\n";

    #[test]
    fn both_formats_of_sources_are_read() {
        let old = parse_one_line(
            "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib # x",
        );
        let text = "# a comment\nTypes: deb deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm\n\
                    Components: main contrib\nSigned-By: /k.gpg\n\nTypes: deb\nEnabled: no\nURIs: http://x\nSuites: y\n";
        let new: Vec<Source> = stanzas(text).filter_map(|s| from_stanza(&s)).collect();
        assert_eq!(new, [old.unwrap()]);
        assert_eq!(parse_one_line("deb-src http://mirror.example/debian bookworm main"), None);
    }

    #[test]
    fn a_key_inside_the_sources_is_carried_over() {
        let text = "Types: deb\nURIs: http://m.example\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN PGP\n .\n abc\n";
        let source = stanzas(text).find_map(|s| from_stanza(&s)).unwrap();
        let stanza = Mirrors { main: source, security: None }.stanza("trixie").unwrap();
        assert!(stanza.contains("Signed-By: \n -----BEGIN PGP\n .\n abc\n"), "{stanza}");
        assert!(stanza.contains("Suites: trixie\n"), "{stanza}");
    }

    fn source(uri: &str, suite: &str) -> Source {
        let words = |s: &str| vec![s.to_owned()];
        Source { uris: words(uri), suites: words(suite), components: words("main"), trust: Vec::new() }
    }

    #[test]
    fn debian_is_told_from_other_archives_by_its_lists() {
        let sources = [
            source("http://other.example/", "bookworm"),
            source("http://security.example/debian-security", "bookworm-security"),
            source("http://mirror.example/debian", "bookworm"),
        ];
        let known = [
            "http://mirror.example/debian/".to_owned(),
            "http://security.example/debian-security/".to_owned(),
        ];
        let mirrors = Mirrors::choose(&sources, BOOKWORM, &known).unwrap();
        assert_eq!(mirrors.main, sources[2]);
        assert_eq!(mirrors.security.as_ref(), Some(&sources[1]));
        assert!(mirrors.stanza("trixie-security").unwrap().contains("http://security.example/"));
    }

    #[test]
    fn without_lists_a_debian_system_says_which_release_its_archive_has() {
        let sources = [source("http://mirror.example/debian", "bookworm")];
        assert!(Mirrors::choose(&sources, BOOKWORM, &[]).is_some());
        let ubuntu = "ID=ubuntu\nVERSION_CODENAME=noble\n";
        assert!(Mirrors::choose(&[source("http://ubuntu.example", "noble")], ubuntu, &[]).is_none());
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
