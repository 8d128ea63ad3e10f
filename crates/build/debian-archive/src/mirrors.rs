//! The system's apt configuration: which mirrors carry Debian's archive.

use std::{fs, path::PathBuf};

use support::{file, run};

use crate::deb822::stanzas;

/// One source of packages in the system's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// Options that decide which signatures apt accepts, copied unchanged.
    trust: Vec<(&'static str, String)>,
}

/// The mirrors of Debian's archive and of its security archive.
#[derive(Debug)]
pub(crate) struct Mirrors {
    main: Source,
    security: Option<Source>,
}

impl Mirrors {
    /// The mirrors of the system's apt; `None` if it has none of Debian's.
    pub(crate) fn of_system() -> file::Result<Option<Self>> {
        // A system without apt: sources can come from elsewhere.
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
            let text = fs::read_to_string(file).map_err(|e| file::Error::new("read", file, e))?;
            match file.extension().and_then(|e| e.to_str()) {
                Some("list") => sources.extend(text.lines().filter_map(parse_one_line)),
                Some("sources") => sources.extend(stanzas(&text).filter_map(|s| from_stanza(&s))),
                _ => {}
            }
        }
        let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        Ok(Self::choose(&sources, &os_release, &debian_uris()))
    }

    /// Debian's mirrors among the system's sources: those whose lists name Debian as their origin or, if no lists were
    /// fetched yet, those that carry the release in /etc/os-release of a Debian system.
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

    /// The deb822 source stanza of a suite; `None` for a security suite without a security mirror.
    pub(crate) fn stanza(&self, suite: &str) -> Option<String> {
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

/// The URIs of repositories whose fetched lists name Debian as their origin.
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
}
