//! Findings, and how they are shown.

use std::{collections::BTreeMap, fmt::Write as _};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::{Guest, Host};

/// Severity of a finding, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// Something does not work, or works badly.
    Warning,
    /// The guest dies of it or is unusable.
    Fatal,
}

impl Severity {
    /// `ok`, `note`, `warning` or `fatal`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Fatal => "fatal",
        }
    }

    const fn style(self) -> Style {
        let colour = match self {
            Self::Ok => AnsiColor::Green,
            Self::Note => AnsiColor::Cyan,
            Self::Warning => AnsiColor::Yellow,
            Self::Fatal => AnsiColor::Red,
        };
        colour.on_default().bold()
    }
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The topic that it belongs to.
    pub topic: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, in one sentence.
    pub what: String,
    /// What that was seen from, and what follows.
    pub evidence: Vec<String>,
    /// What to do: a command, or a file and what to change in it.
    pub remedy: Option<String>,
    /// What was measured, by name; units are part of the names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, f64>,
}

impl Finding {
    /// A finding without evidence yet.
    pub fn new(topic: &'static str, severity: Severity, what: impl Into<String>) -> Self {
        Self {
            topic,
            severity,
            what: what.into(),
            evidence: Vec::new(),
            remedy: None,
            figures: BTreeMap::new(),
        }
    }

    /// With a further piece of evidence.
    #[must_use]
    pub fn seen(mut self, evidence: impl Into<String>) -> Self {
        self.evidence.push(evidence.into());
        self
    }

    /// With what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// With something measured. The unit is part of the name.
    #[must_use]
    pub fn figure(mut self, name: impl Into<String>, value: f64) -> Self {
        self.figures.insert(name.into(), value);
        self
    }
}

/// All findings of an examination.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of this program.
    pub version: &'static str,
    /// The kernel's release, as `uname -r`.
    pub kernel: String,
    /// The host.
    pub host: Host,
    /// The worst severity there is.
    pub worst: Severity,
    /// The findings, by topic.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The report about a guest.
    pub fn new(guest: &Guest, findings: Vec<Finding>) -> Self {
        let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok);
        for finding in &findings {
            let is_told = finding.remedy.is_some() || finding.severity < Severity::Warning;
            debug_assert!(is_told, "no remedy for: {}", finding.what);
        }
        Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel: guest.kernel.release.clone(),
            host: guest.host.clone(),
            worst,
            findings,
        }
    }

    /// 0 if nothing is worse than a note, 2 after warnings, 3 if something is fatal, as `vmmlinux config audit` has it; 1 if
    /// the host is not vmd and the guest was not examined.
    pub fn exit_status(&self) -> u8 {
        match self.worst {
            _ if !self.host.is_vmd() => 1,
            Severity::Ok | Severity::Note => 0,
            Severity::Warning => 2,
            Severity::Fatal => 3,
        }
    }

    /// Returns the report as text, `width` columns wide, with colours that the output stream strips where unsupported.
    pub fn in_words(&self, min: Severity, width: usize) -> String {
        let mut text = format!("Linux {}, {}\n", self.kernel, self.host);
        let bold = Style::new().bold();
        let mut topic = "";
        for finding in self.findings.iter().filter(|finding| finding.severity >= min) {
            if topic != finding.topic {
                topic = finding.topic;
                let _ = writeln!(text, "\n{bold}{topic}{bold:#}");
            }
            let style = finding.severity.style();
            let label = format!("{style}{:<8}{style:#}", finding.severity.as_str());
            wrap(&mut text, &format!("  {label} "), 11, &finding.what, width);
            for evidence in &finding.evidence {
                wrap(&mut text, "           - ", 13, evidence, width);
            }
            if let Some(remedy) = &finding.remedy {
                for line in remedy.lines() {
                    wrap(&mut text, "        -> ", 11, line, width);
                }
            }
        }
        let count = |severity| self.findings.iter().filter(|finding| finding.severity == severity).count();
        let tally = [Severity::Fatal, Severity::Warning, Severity::Note, Severity::Ok]
            .map(|severity| format!("{} {}", count(severity), severity.as_str()));
        let style = self.worst.style();
        let _ = writeln!(text, "\n{style}{}{style:#}", tally.join(", "));
        text
    }
}

/// Adds a text whose first line begins with `first`, which looks `indent` columns wide, and the others with spaces.
fn wrap(into: &mut String, first: &str, indent: usize, text: &str, width: usize) {
    let columns = width.saturating_sub(indent).max(20);
    // Commands are to be copied: their words stay whole.
    let options = textwrap::Options::new(columns)
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .word_separator(textwrap::WordSeparator::AsciiSpace);
    for (index, line) in textwrap::wrap(text, options).iter().enumerate() {
        if index == 0 {
            let _ = writeln!(into, "{first}{line}");
        } else {
            let _ = writeln!(into, "{:indent$}{line}", "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Interrupts, Measured, Rate, Sleep, examine, fixture};

    fn report() -> Report {
        let mut guest = fixture::recorded().guest();
        let sleep = |wanted, median| Sleep { wanted, median, longest: median + 10.0 };
        guest.measured = Some(Measured {
            rate: Some(Rate { ppm: -1.4, error: 0.6, seconds: 60.0 }),
            sleeps: vec![sleep(1, 39.9), sleep(10, 39.7), sleep(50, 79.9)],
            interrupts: Some(Interrupts { total: 25.0, sources: vec![("0 XT-PIC timer".into(), 25.0)] }),
        });
        examine(&guest)
    }

    #[test]
    fn people_get_a_tree_without_colours_where_there_are_none() {
        let words = report().in_words(Severity::Ok, 100);
        insta::assert_snapshot!(anstream::adapter::strip_str(&words));
    }

    #[test]
    fn less_can_be_shown_and_the_exit_status_is_that_of_all() {
        let report = report();
        let words = report.in_words(Severity::Warning, 60);
        assert!(!words.contains("note     ") && words.contains("reboot=t"), "{words}");
        assert_eq!(report.exit_status(), 2);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["worst"], &json["host"]["vmd"][0]), (&"warning".into(), &"7.8".into()));
    }
}
