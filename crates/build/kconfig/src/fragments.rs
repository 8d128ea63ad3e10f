//! The curated configuration: TOML files in which each symbol has a value and a reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use miette::{Diagnostic, NamedSource, SourceSpan};
use serde::{Deserialize, Deserializer, de};
use thiserror::Error;
use toml::Spanned;

use crate::{Host, Selection, Value, Workload};

/// The name under which the audit rules lie beside the fragments; it is none of them.
const AUDIT: &str = "audit.toml";

/// A fragment file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    workload: Workload,
    symbols: BTreeMap<Spanned<String>, OneOrMany>,
}

/// A symbol's entry: usually one table, several where kernel series differ.
struct OneOrMany(Vec<Entry>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    value: Spanned<Value>,
    why: Spanned<String>,
    series: Option<BTreeSet<String>>,
    hosts: Option<BTreeSet<Host>>,
    may_differ: Option<String>,
    #[serde(default)]
    needs: Vec<String>,
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table with `value` and `why`, or an array of such tables")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<OneOrMany, A::Error> {
                Entry::deserialize(de::value::MapAccessDeserializer::new(map)).map(|e| OneOrMany(vec![e]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<OneOrMany, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(OneOrMany)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// A place in a fragment file.
#[derive(Clone, Debug, Error, Diagnostic)]
#[error("{message}")]
pub struct Place {
    message: String,
    #[source_code]
    text: NamedSource<Arc<str>>,
    #[label("here")]
    span: SourceSpan,
}

impl Place {
    fn new(message: impl Into<String>, text: &NamedSource<Arc<str>>, span: Range<usize>) -> Self {
        Self { message: message.into(), text: text.clone(), span: span.into() }
    }
}

/// Fragments that cannot be used.
#[derive(Debug, Error, Diagnostic)]
pub enum FragmentError {
    /// The directory or a file of it.
    #[error("cannot read the configuration fragments in {}", .path.display())]
    #[diagnostic(help("the fragments are the .toml files of kernel/config in vmmlinux's source tree"))]
    Read {
        /// Directory or file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No fragment at all.
    #[error("{} holds no configuration fragment", .path.display())]
    #[diagnostic(help("the fragments are the .toml files of kernel/config in vmmlinux's source tree"))]
    None {
        /// The directory.
        path: PathBuf,
    },
    /// Not TOML, or not a fragment's schema; an entry that appears twice in a file is one of these.
    #[error("{file}: {message}")]
    #[diagnostic(help(
        "an entry is NAME = {{ value = \"y\", why = \"…\" }}, with series, hosts, needs, may_differ if need be"
    ))]
    Schema {
        /// The file.
        file: String,
        /// What the TOML reader said.
        message: String,
        /// Where.
        #[related]
        place: Vec<Place>,
    },
    /// An entry says nothing, or nothing useful.
    #[error("the entry of {symbol} {problem}")]
    Entry {
        /// The symbol.
        symbol: String,
        /// What is wrong with it.
        problem: &'static str,
        /// Where.
        #[related]
        place: Vec<Place>,
    },
    /// Two entries that can apply at the same time want different values.
    #[error("{symbol} is wanted as {first} and as {second} at the same time")]
    #[diagnostic(help(
        "every selection must make sense: give the entries different series, or agree on a value"
    ))]
    Contradiction {
        /// The symbol.
        symbol: String,
        /// One value.
        first: Value,
        /// The other.
        second: Value,
        /// Where both stand.
        #[related]
        places: Vec<Place>,
    },
    /// The same request twice in one workload, or in `core` and again elsewhere.
    #[error("{symbol} is requested twice")]
    #[diagnostic(help("core is part of every selection; a workload lists only what it adds to core"))]
    Duplicate {
        /// The symbol.
        symbol: String,
        /// Where both stand.
        #[related]
        places: Vec<Place>,
    },
}

/// Why a symbol is requested.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The symbol, without `CONFIG_`.
    pub symbol: String,
    /// The value.
    pub value: Value,
    /// The reason.
    pub why: String,
    /// The workload that wants it.
    pub workload: Workload,
    /// The kernel series that it is for; none for all.
    pub series: Option<BTreeSet<String>>,
    /// The hosts that it is for; none for all.
    pub hosts: Option<BTreeSet<Host>>,
    /// Why a resolution may end with another value, if it may.
    pub may_differ: Option<String>,
    /// Modules and aliases by which the symbol's users ask at run time, as `crypto-xts(aes)`: what `why` promises.
    pub needs: Vec<String>,
    place: Place,
}

impl Origin {
    /// Whether a selection asks for this.
    pub fn applies(&self, selection: &Selection) -> bool {
        selection.wants(self.workload)
            && self.series.as_ref().is_none_or(|series| series.contains(&selection.series))
            && self.hosts.as_ref().is_none_or(|hosts| !hosts.is_disjoint(&selection.hosts))
    }

    fn shares_series(&self, other: &Self) -> bool {
        match (&self.series, &other.series) {
            (Some(ours), Some(theirs)) => !ours.is_disjoint(theirs),
            _ => true,
        }
    }

    fn shares_hosts(&self, other: &Self) -> bool {
        match (&self.hosts, &other.hosts) {
            (Some(ours), Some(theirs)) => !ours.is_disjoint(theirs),
            _ => true,
        }
    }
}

/// `SMP=y in core, for hosts 8.0: because …`
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={} in {}", self.symbol, self.value, self.workload)?;
        if let Some(hosts) = &self.hosts {
            let hosts: Vec<_> = hosts.iter().map(|h| h.as_str()).collect();
            write!(f, ", for hosts {}", hosts.join(", "))?;
        }
        if let Some(series) = &self.series {
            let series: Vec<_> = series.iter().map(String::as_str).collect();
            write!(f, ", for series {}", series.join(", "))?;
        }
        write!(f, ": {}", self.why)
    }
}

/// A symbol that a selection requests.
#[derive(Clone, Debug)]
pub struct Request {
    /// The value that must come out.
    pub value: Value,
    /// The entries that ask for it, `core` first; never empty.
    pub origins: Vec<Origin>,
}

impl Request {
    /// Why the outcome may differ, if an entry allows it.
    pub fn may_differ(&self) -> Option<&str> {
        self.origins.iter().find_map(|origin| origin.may_differ.as_deref())
    }
}

/// What a selection requests, by symbol.
#[derive(Clone, Debug, Default)]
pub struct Requests(BTreeMap<String, Request>);

impl Requests {
    /// The request for a symbol.
    pub fn get(&self, symbol: &str) -> Option<&Request> {
        self.0.get(symbol)
    }

    /// All requests, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Request)> {
        self.0.iter().map(|(symbol, request)| (symbol.as_str(), request))
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is requested.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The requests as the file that the kernel's `KCONFIG_ALLCONFIG` takes.
    pub fn to_config(&self) -> String {
        self.iter().map(|(symbol, request)| request.value.line(symbol) + "\n").collect()
    }
}

/// All fragments, read and checked.
#[derive(Clone, Debug)]
pub struct Fragments(Vec<Origin>);

impl Fragments {
    /// Reads every fragment of a directory.
    pub fn load(dir: &Path) -> Result<Self, FragmentError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| FragmentError::Read { path, source }
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).map_err(unreadable(dir))? {
            let path = entry.map_err(unreadable(dir))?.path();
            if path.extension().is_some_and(|e| e == "toml") && path.file_name().is_some_and(|n| n != AUDIT) {
                let text = fs::read_to_string(&path).map_err(unreadable(&path))?;
                files.push((path.display().to_string(), text));
            }
        }
        if files.is_empty() {
            return Err(FragmentError::None { path: dir.to_owned() });
        }
        files.sort();
        Self::parse(&files)
    }

    /// The fragments that this program was built with.
    pub fn builtin() -> Result<Self, FragmentError> {
        macro_rules! fragment {
            ($name:literal) => {
                ($name, include_str!(concat!("../../../../kernel/config/", $name)))
            };
        }
        Self::parse(&[
            fragment!("core.toml"),
            fragment!("systemd.toml"),
            fragment!("containers.toml"),
            fragment!("vpn.toml"),
            fragment!("firewall.toml"),
            fragment!("roots.toml"),
            fragment!("filesystems.toml"),
            fragment!("debug.toml"),
        ])
    }

    /// Reads fragments from pairs of name and text.
    pub fn parse<N: AsRef<str>, T: AsRef<str>>(files: &[(N, T)]) -> Result<Self, FragmentError> {
        let mut origins = Vec::new();
        for (name, text) in files {
            parse_file(name.as_ref(), text.as_ref(), &mut origins)?;
        }
        // Core first, so that its reasons come first and pairs are found in a fixed order.
        origins.sort_by(|a, b| (&a.symbol, a.workload).cmp(&(&b.symbol, b.workload)));
        for group in origins.chunk_by(|a, b| a.symbol == b.symbol) {
            for (index, first) in group.iter().enumerate() {
                for second in &group[index + 1..] {
                    check_pair(first, second)?;
                }
            }
        }
        Ok(Self(origins))
    }

    /// Every entry, by symbol and then workload.
    pub fn entries(&self) -> &[Origin] {
        &self.0
    }

    /// Every entry of one symbol, whether a selection asks for it or not.
    pub fn of<'a>(&'a self, symbol: &'a str) -> impl Iterator<Item = &'a Origin> {
        self.0.iter().filter(move |origin| origin.symbol == symbol)
    }

    /// Every selection of a series that requests something else than the ones before it: each host generation and
    /// all together, with each workload and all together. What all of these resolve, every selection does.
    pub fn selections(&self, series: &str) -> Vec<Selection> {
        let mut hosts: Vec<BTreeSet<Host>> = Host::ALL.into_iter().map(|host| [host].into()).collect();
        hosts.push(Host::ALL.into());
        let mut workloads: Vec<BTreeSet<Workload>> = Workload::ALL.into_iter().map(|w| [w].into()).collect();
        workloads.push(Workload::ALL.into());
        let mut seen = BTreeSet::new();
        let all = hosts.iter().flat_map(|hosts| workloads.iter().map(move |workloads| (hosts, workloads)));
        all.map(|(hosts, workloads)| Selection {
            series: series.to_owned(),
            hosts: hosts.clone(),
            workloads: workloads.clone(),
        })
        .filter(|selection| seen.insert(self.requests(selection).to_config()))
        .collect()
    }

    /// What a selection requests. Where workloads want `m` and `y` of a symbol, it is `y`.
    pub fn requests(&self, selection: &Selection) -> Requests {
        let mut requests = BTreeMap::<String, Request>::new();
        for origin in self.0.iter().filter(|origin| origin.applies(selection)) {
            requests
                .entry(origin.symbol.clone())
                .and_modify(|request| {
                    request.value = request.value.clone().max(origin.value.clone());
                    request.origins.push(origin.clone());
                })
                .or_insert_with(|| Request { value: origin.value.clone(), origins: vec![origin.clone()] });
        }
        Requests(requests)
    }
}

fn parse_file(name: &str, text: &str, origins: &mut Vec<Origin>) -> Result<(), FragmentError> {
    let source = NamedSource::new(name, Arc::<str>::from(text)).with_language("toml");
    let file: File = toml::from_str(text).map_err(|error| FragmentError::Schema {
        file: name.to_owned(),
        message: error.message().to_owned(),
        place: vec![Place::new("this does not fit the schema", &source, error.span().unwrap_or(0..0))],
    })?;
    for (symbol, OneOrMany(entries)) in file.symbols {
        let span = symbol.span();
        let symbol = symbol.into_inner();
        let wrong = |problem, span| FragmentError::Entry {
            symbol: symbol.clone(),
            problem,
            place: vec![Place::new("this entry", &source, span)],
        };
        if symbol.starts_with("CONFIG_") {
            return Err(wrong("must be named without CONFIG_", span));
        }
        if symbol.is_empty() || !symbol.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(wrong("is not named as a Kconfig symbol can be", span));
        }
        for entry in entries {
            if entry.why.get_ref().trim().is_empty() {
                return Err(wrong("gives no reason", entry.why.span()));
            }
            if entry.series.as_ref().is_some_and(BTreeSet::is_empty)
                || entry.hosts.as_ref().is_some_and(BTreeSet::is_empty)
            {
                return Err(wrong("applies nowhere: its series or hosts are empty", span));
            }
            let place = Place::new(
                format!("{} in {}", entry.value.get_ref(), file.workload),
                &source,
                entry.value.span(),
            );
            origins.push(Origin {
                symbol: symbol.clone(),
                value: entry.value.into_inner(),
                why: entry.why.into_inner(),
                workload: file.workload,
                series: entry.series,
                hosts: entry.hosts,
                may_differ: entry.may_differ,
                needs: entry.needs,
                place,
            });
        }
    }
    Ok(())
}

/// Two entries of one symbol must not contradict each other under any selection, nor say the same twice.
fn check_pair(first: &Origin, second: &Origin) -> Result<(), FragmentError> {
    if !first.shares_series(second) {
        return Ok(());
    }
    let places = vec![first.place.clone(), second.place.clone()];
    let symbol = first.symbol.clone();
    let tristate = |value: &Value| matches!(value, Value::Module | Value::Yes);
    let (a, b) = (first.value.clone(), second.value.clone());
    if a != b && !(tristate(&a) && tristate(&b)) {
        return Err(FragmentError::Contradiction { symbol, first: a, second: b, places });
    }
    let same_room = first.workload == second.workload || first.workload == Workload::Core;
    if a == b && same_room && first.shares_hosts(second) {
        return Err(FragmentError::Duplicate { symbol, places });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(files: &[&str]) -> Result<Fragments, FragmentError> {
        let files: Vec<_> = files.iter().enumerate().map(|(i, text)| (format!("{i}.toml"), text)).collect();
        Fragments::parse(&files)
    }

    fn selection(series: &str, hosts: &[Host], workloads: &[Workload]) -> Selection {
        Selection {
            series: series.into(),
            hosts: hosts.iter().copied().collect(),
            workloads: workloads.iter().copied().collect(),
        }
    }

    #[test]
    fn series_hosts_and_workloads_select() {
        let fragments = parse(&[
            "workload = \"core\"\n[symbols]\nA = { value = \"y\", why = \"w\" }\n\
             B = { value = \"y\", hosts = [\"8.0\"], why = \"w\" }\n\
             C = [{ value = 1, series = [\"7.3\"], why = \"w\" }, { value = 2, series = [\"6.12\"], why = \"w\" }]\n",
            "workload = \"vpn\"\n[symbols.D]\nvalue = \"m\"\nwhy = \"w\"\n",
            "workload = \"debug\"\n[symbols]\nD = { value = \"y\", why = \"w\" }\n",
        ])
        .unwrap();
        let names = |s: &Selection| fragments.requests(s).to_config();
        assert_eq!(names(&selection("7.3", &[Host::V7_8], &[])), "CONFIG_A=y\nCONFIG_C=1\n");
        assert_eq!(
            names(&selection("6.12", &[Host::V7_8, Host::V8_0], &[Workload::Vpn])),
            "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=2\nCONFIG_D=m\n"
        );
        assert!(
            names(&selection("6.12", &[Host::V7_8], &[Workload::Vpn, Workload::Debug]))
                .ends_with("CONFIG_D=y\n")
        );
    }

    #[test]
    fn contradictions_are_found_whatever_is_selected() {
        let error = parse(&[
            "workload = \"core\"\n[symbols]\nA = { value = \"y\", hosts = [\"8.0\"], why = \"w\" }\n",
            "workload = \"debug\"\n[symbols]\nA = { value = \"n\", hosts = [\"7.7\"], why = \"w\" }\n",
        ])
        .unwrap_err();
        assert_eq!(error.to_string(), "A is wanted as y and as n at the same time");
        assert!(matches!(error, FragmentError::Contradiction { places, .. } if places.len() == 2));
    }

    #[test]
    fn duplicates_are_found() {
        let a = "[symbols]\nA = { value = \"y\", why = \"w\" }\n";
        let core = format!("workload = \"core\"\n{a}");
        for other in ["core", "systemd"] {
            let other = format!("workload = \"{other}\"\n{a}");
            assert!(matches!(parse(&[&core, &other]), Err(FragmentError::Duplicate { .. })));
        }
        assert!(matches!(
            parse(&[&format!("{core}A = {{ value = \"y\", why = \"w\" }}\n")]),
            Err(FragmentError::Schema { .. })
        ));
        // Two workloads beside core may each need the same: either can be chosen without the other.
        parse(&[&format!("workload = \"vpn\"\n{a}"), &format!("workload = \"containers\"\n{a}")]).unwrap();
    }

    #[test]
    fn schema_errors_point_at_the_place() {
        for (text, message) in [
            ("workload = \"core\"\n[symbols]\nA = { value = \"y\" }\n", "missing field `why`"),
            (
                "workload = \"core\"\n[symbols]\nA = { value = \"y\", why = \"w\", whom = 1 }\n",
                "unknown field `whom`",
            ),
            ("workload = \"games\"\n[symbols]\n", "unknown variant `games`"),
            (
                "workload = \"core\"\n[symbols]\nA = { value = \"y\", why = \"w\", hosts = [\"6.0\"] }\n",
                "unknown variant `6.0`",
            ),
            ("workload = \"core\"\n[symbols]\nA = { value = 1.5, why = \"w\" }\n", "invalid type"),
        ] {
            let error = parse(&[text]).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
            let FragmentError::Schema { place, .. } = error else { panic!("{error}") };
            assert!(!place[0].span.is_empty(), "{message}");
        }
    }

    #[test]
    fn entries_without_sense_are_refused() {
        for (entry, message) in [
            ("A = { value = \"y\", why = \" \" }", "gives no reason"),
            ("CONFIG_A = { value = \"y\", why = \"w\" }", "without CONFIG_"),
            ("\"A B\" = { value = \"y\", why = \"w\" }", "not named"),
            ("A = { value = \"y\", hosts = [], why = \"w\" }", "applies nowhere"),
        ] {
            let error = parse(&[&format!("workload = \"core\"\n[symbols]\n{entry}\n")]).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn the_built_in_fragments_are_sound() {
        let fragments = Fragments::builtin().unwrap();
        for origin in fragments.entries() {
            assert!(origin.why.len() > 9 && origin.why.ends_with('.'), "{}: {}", origin.symbol, origin.why);
        }
    }

    /// What the scripts of docker (moby 00148c88eaeb) and k3s (06441e848938) call necessary; `NF_NAT` follows.
    #[test]
    fn what_docker_and_k3s_call_necessary_is_requested() {
        const NECESSARY: &str = "NAMESPACES NET_NS PID_NS IPC_NS UTS_NS CGROUPS CGROUP_SCHED CGROUP_PIDS CGROUP_CPUACCT \
            CGROUP_DEVICE CGROUP_FREEZER CGROUP_BPF CPUSETS MEMCG SECCOMP KEYS VETH BRIDGE BRIDGE_NETFILTER POSIX_MQUEUE \
            IP_NF_FILTER IP_NF_MANGLE IP_NF_NAT IP_NF_RAW IP_NF_TARGET_MASQUERADE IP_NF_TARGET_REJECT \
            IP6_NF_FILTER IP6_NF_MANGLE IP6_NF_NAT IP6_NF_RAW IP6_NF_TARGET_MASQUERADE \
            NETFILTER_XT_MARK NETFILTER_XT_MATCH_ADDRTYPE NETFILTER_XT_MATCH_COMMENT NETFILTER_XT_MATCH_CONNTRACK \
            NETFILTER_XT_MATCH_IPVS NETFILTER_XT_MATCH_MULTIPORT NETFILTER_XT_MATCH_STATISTIC";
        let fragments = Fragments::builtin().unwrap();
        for selection in [Selection::new("7.3"), Selection::new("6.12"), Selection::packaged("7.3")] {
            let requests = fragments.requests(&selection);
            let missing: Vec<_> = NECESSARY
                .split_whitespace()
                .filter(|symbol| requests.get(symbol).is_none_or(|request| !request.value.is_set()))
                .collect();
            assert_eq!(missing, [""; 0], "{selection}");
        }
    }

    #[test]
    fn a_directory_without_fragments_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Fragments::load(dir.path()), Err(FragmentError::None { .. })));
        assert!(matches!(Fragments::load(&dir.path().join("none")), Err(FragmentError::Read { .. })));
    }
}
