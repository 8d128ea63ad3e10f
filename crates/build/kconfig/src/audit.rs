//! Judging any kernel's configuration as that of a vmd guest.
//!
//! The rules are data (`kernel/config/audit.toml`): a Kconfig expression over the configuration, what it means
//! when it holds, on which host generations and kernel versions, why, and where that is known from.

use std::{collections::BTreeSet, fs, io, path::Path, path::PathBuf};

use miette::Diagnostic;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{DotConfig, Expr, Host, Tristate};

/// How bad a finding is, worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Works; could be smaller, faster or easier to look into, or bites only those who ask for it.
    Note,
    /// Boots, but something that vmd offers does not work, or works badly.
    Harm,
    /// Does not boot, cannot be seen, or its VM dies.
    Fatal,
}

impl Severity {
    /// `fatal`, `harm` or `note`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Harm => "harm",
            Self::Fatal => "fatal",
        }
    }
}

/// What sort of finding it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Something that a vmd guest needs is missing.
    Lacks,
    /// Something is there that does not go with vmd.
    Hurts,
    /// Something is built in that no vmd guest can use.
    DeadWeight,
}

impl Class {
    /// `lacks`, `hurts` or `dead weight`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lacks => "lacks",
            Self::Hurts => "hurts",
            Self::DeadWeight => "dead weight",
        }
    }
}

/// A kernel version as far as rules look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    class: Class,
    severity: Severity,
    when: String,
    hosts: Option<BTreeSet<Host>>,
    since: Option<String>,
    until: Option<String>,
    what: String,
    why: String,
    remedy: Option<String>,
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesText {
    rule: toml::Table,
}

/// One thing to look at.
#[derive(Clone, Debug)]
struct Rule {
    name: String,
    class: Class,
    severity: Severity,
    when: Expr,
    hosts: BTreeSet<Host>,
    since: Option<Version>,
    until: Option<Version>,
    what: String,
    why: String,
    remedy: Option<String>,
    source: String,
}

/// The audit rules.
#[derive(Clone, Debug)]
pub struct Rules(Vec<Rule>);

/// Rules that cannot be used.
#[derive(Debug, Error, Diagnostic)]
pub enum RulesError {
    /// The file.
    #[error("cannot read the audit rules {}", .path.display())]
    #[diagnostic(help("they are kernel/config/audit.toml in vmmlinux's source tree"))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The schema.
    #[error("audit rules: {message}")]
    #[diagnostic(help("see the head of kernel/config/audit.toml for the fields of a rule"))]
    Schema {
        /// What is wrong.
        message: String,
    },
}

/// A rule that holds for the configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The rule's name.
    pub rule: String,
    /// What sort of finding it is.
    pub class: Class,
    /// How bad it is.
    pub severity: Severity,
    /// The audited host generations that it concerns.
    pub hosts: BTreeSet<Host>,
    /// The symbols that the rule looked at, with their values.
    pub symbols: Vec<(String, String)>,
    /// What was found.
    pub what: String,
    /// Why it matters under vmd.
    pub why: String,
    /// What to do about it.
    pub remedy: Option<String>,
    /// Where that is known from.
    pub source: String,
}

/// What an audit found.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    /// The kernel's version, from the configuration's header.
    pub kernel: Option<String>,
    /// The host generations that were asked about.
    pub hosts: BTreeSet<Host>,
    /// Whether the file was a whole configuration; of a part, only what it says is judged.
    pub whole: bool,
    /// The findings, worst first.
    pub findings: Vec<Finding>,
}

impl Audit {
    /// The worst finding that concerns a host.
    pub fn worst(&self, host: Host) -> Option<Severity> {
        self.findings.iter().filter(|f| f.hosts.contains(&host)).map(|f| f.severity).max()
    }

    /// Number of findings of a severity that concern a host.
    pub fn count(&self, host: Host, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.severity == severity && f.hosts.contains(&host)).count()
    }
}

impl Rules {
    /// Reads rules from a file.
    pub fn load(path: &Path) -> Result<Self, RulesError> {
        let text =
            fs::read_to_string(path).map_err(|source| RulesError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// The rules that this program was built with.
    pub fn builtin() -> Result<Self, RulesError> {
        Self::parse(include_str!("../../../../kernel/config/audit.toml"))
    }

    /// Reads rules from TOML.
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let schema = |message: String| RulesError::Schema { message };
        let table: RulesText = toml::from_str(text).map_err(|error| schema(error.to_string()))?;
        let mut rules = Vec::new();
        for (name, rule) in table.rule {
            let rule: RuleText = rule.try_into().map_err(|error| schema(format!("{name}: {error}")))?;
            let version = |text: &Option<String>| match text {
                None => Ok(None),
                Some(text) => Version::parse(text)
                    .map(Some)
                    .ok_or_else(|| schema(format!("{name}: `{text}` is not a kernel version"))),
            };
            let when = Expr::parse(&rule.when)
                .ok_or_else(|| schema(format!("{name}: `{}` is not a Kconfig expression", rule.when)))?;
            if [&rule.what, &rule.why, &rule.source].iter().any(|text| text.trim().is_empty()) {
                return Err(schema(format!("{name}: what, why and source must say something")));
            }
            rules.push(Rule {
                since: version(&rule.since)?,
                until: version(&rule.until)?,
                hosts: rule.hosts.unwrap_or_else(|| Host::ALL.into()),
                when,
                class: rule.class,
                severity: rule.severity,
                what: rule.what,
                why: rule.why,
                remedy: rule.remedy,
                source: rule.source,
                name,
            });
        }
        Ok(Self(rules))
    }

    /// Judges a configuration for host generations. Of a file that is not a whole one, only what it says counts: a rule holds
    /// if it does whatever the symbols are that the file does not mention. A rule for certain kernel versions holds for a
    /// configuration without a version too: rather one warning too many.
    pub fn audit(&self, config: &DotConfig, hosts: &BTreeSet<Host>) -> Audit {
        let version = config.version().and_then(Version::parse);
        let whole = config.is_whole();
        let mut findings: Vec<Finding> = self
            .0
            .iter()
            .filter_map(|rule| {
                let concerned: BTreeSet<Host> = rule.hosts.intersection(hosts).copied().collect();
                let in_range = version.is_none_or(|version| {
                    rule.since.is_none_or(|since| version >= since)
                        && rule.until.is_none_or(|until| version <= until)
                });
                let value = if whole { rule.when.value(config) } else { rule.when.value_over_part(config) };
                let holds = value.is_some_and(|value| value > Tristate::No);
                (holds && in_range && !concerned.is_empty()).then(|| Finding {
                    rule: rule.name.clone(),
                    class: rule.class,
                    severity: rule.severity,
                    hosts: concerned,
                    symbols: rule
                        .when
                        .symbols()
                        .into_iter()
                        .filter(|symbol| whole || config.said(symbol).is_some())
                        .map(|symbol| (symbol.to_owned(), config.value(symbol).to_string()))
                        .collect(),
                    what: rule.what.clone(),
                    why: rule.why.clone(),
                    remedy: rule.remedy.clone(),
                    source: rule.source.clone(),
                })
            })
            .collect();
        findings.sort_by(|a, b| (b.severity, a.class, &a.rule).cmp(&(a.severity, b.class, &b.rule)));
        Audit { kernel: config.version().map(str::to_owned), hosts: hosts.clone(), whole, findings }
    }

    /// Every symbol that a rule looks at, with the rule's name.
    pub fn symbols(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|rule| rule.when.symbols().into_iter().map(|s| (rule.name.as_str(), s)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the audit says of an excerpt that was written after a published configuration, one line a finding.
    fn told(excerpt: &str) -> String {
        let config = DotConfig::parse(excerpt).unwrap();
        let audit = Rules::builtin().unwrap().audit(&config, &Host::ALL.into());
        let line = |f: &Finding| {
            let hosts: Vec<_> = f.hosts.iter().map(|h| h.as_str()).collect();
            format!(
                "{:5} {:11} {:17} {}: {}\n",
                f.severity.as_str(),
                f.class.as_str(),
                hosts.join(" "),
                f.rule,
                f.what
            )
        };
        audit.findings.iter().map(line).collect()
    }

    #[test]
    fn debian_cloud_6_12() {
        insta::assert_snapshot!(told(include_str!("../tests/configs/debian-6.12-cloud.config")));
    }

    #[test]
    fn debian_generic_7_3() {
        insta::assert_snapshot!(told(include_str!("../tests/configs/debian-7.3.config")));
    }

    #[test]
    fn debian_cloud_6_1() {
        insta::assert_snapshot!(told(include_str!("../tests/configs/debian-6.1-cloud.config")));
    }

    #[test]
    fn a_configuration_without_anything_lacks_everything() {
        let text = told("# Linux/x86 7.3.4 Kernel Configuration\nCONFIG_X86=y\n");
        assert!(text.lines().filter(|line| line.starts_with("fatal lacks")).count() >= 4, "{text}");
    }

    #[test]
    fn a_part_of_a_configuration_is_judged_by_what_it_says() {
        let text = told("CONFIG_SMP=y\n# CONFIG_VIRTIO_BLK is not set\nCONFIG_PTP_1588_CLOCK_KVM=y\n");
        let rules: Vec<_> =
            text.lines().filter_map(|line| line.split(':').next()?.split(' ').next_back()).collect();
        assert_eq!(rules, ["virtio-blk", "ptp-kvm", "smp-old-hosts"], "{text}");
    }

    #[test]
    fn hosts_and_versions_limit_the_rules() {
        let rules = Rules::builtin().unwrap();
        let text = "CONFIG_CPU_SUP_AMD=y\nCONFIG_PTP_1588_CLOCK_KVM=y\n";
        let of = |version: &str, host: Host| {
            let text = format!("# Linux/x86 {version} Kernel Configuration\n{text}");
            let audit = rules.audit(&DotConfig::parse(&text).unwrap(), &[host].into());
            let rules: Vec<_> = audit.findings.into_iter().map(|f| f.rule).collect();
            move |name: &str| rules.iter().any(|rule| rule == name)
        };
        assert!(of("7.3.4", Host::V7_8)("s5-reset-status"));
        assert!(!of("6.12.107", Host::V7_8)("s5-reset-status"));
        assert!(!of("7.3.4", Host::V8_0)("s5-reset-status"));
        assert!(of("6.12.107", Host::V7_8)("ptp-kvm"));
        assert!(!of("6.12.107", Host::V7_7)("ptp-kvm"));
    }

    #[test]
    fn bad_rules_are_refused() {
        let rule = |when: &str, extra: &str| {
            format!(
                "[rule.x]\nclass = \"lacks\"\nseverity = \"harm\"\nwhen = '{when}'\nwhat = \"w\"\nwhy = \"w\"\nsource = \"s\"\n{extra}"
            )
        };
        assert!(Rules::parse(&rule("!A", "")).is_ok());
        for (text, message) in [
            (rule("A &&", ""), "not a Kconfig expression"),
            (rule("A", "since = \"new\""), "not a kernel version"),
            (rule("A", "colour = 1"), "unknown field"),
            (rule("A", "").replace("why = \"w\"", "why = \"\""), "must say something"),
        ] {
            let error = Rules::parse(&text).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
