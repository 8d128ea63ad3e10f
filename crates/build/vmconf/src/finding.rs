//! What is wrong with a configuration, and where.

use std::fmt;

use miette::{Diagnostic, LabeledSpan};
use serde::Serialize;

use crate::source::{Place, Source, Span, Spanned, printable};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// The guest works badly or not at all.
    Warning,
    /// vmd refuses the file or the VM.
    Error,
}

/// Something to say about a place in a configuration. Its texts have no control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Where it is.
    pub at: Span,
    /// What to write at the place.
    pub label: String,
}

impl Finding {
    pub(crate) fn new(
        severity: Severity,
        at: Span,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            message: printable(&message.into()),
            help: None,
            at,
            label: printable(&label.into()),
        }
    }

    pub(crate) fn error(at: Span, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self::new(Severity::Error, at, message, label)
    }

    pub(crate) fn warning(at: Span, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self::new(Severity::Warning, at, message, label)
    }

    pub(crate) fn note(at: Span, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self::new(Severity::Note, at, message, label)
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(printable(&help.into()));
        self
    }

    /// The finding with the text that it is about, for miette to print.
    pub fn located(&self, sources: &[Source]) -> Located {
        Located { text: sources.get(self.at.source).cloned().unwrap_or_default(), finding: self.clone() }
    }

    /// The file, line and column of it.
    pub fn place(&self, sources: &[Source]) -> Place {
        sources.get(self.at.source).map_or_else(Place::default, |source| source.place(self.at.start))
    }
}

/// What vmd makes of a path that does not begin at the root directory. `None` for one that does.
pub(crate) fn relative_path(path: &Spanned<String>) -> Option<Finding> {
    if path.starts_with('/') {
        return None;
    }
    Some(if path.starts_with('~') {
        Finding::error(path.at, "vmd does not expand `~`", "vmd looks for a directory of this name")
            .help("write the path from the root: \"/home/…\"")
    } else {
        Finding::new(Severity::Warning, path.at, "not a whole path", "vmd looks for it in `/`")
            .help("the daemon runs in `/`, and `vmd -n` in the directory of its caller: write the path from the root")
    })
}

/// A [`Finding`] with its text: a diagnostic of miette's.
#[derive(Debug)]
pub struct Located {
    finding: Finding,
    text: Source,
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.finding.message)
    }
}

impl std::error::Error for Located {}

impl Diagnostic for Located {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.finding.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
            Severity::Note => miette::Severity::Advice,
        })
    }

    fn help(&self) -> Option<Box<dyn fmt::Display + '_>> {
        self.finding.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&self.text)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let at = self.finding.at;
        let label = LabeledSpan::new(Some(self.finding.label.clone()), at.start, at.end - at.start);
        Some(Box::new(std::iter::once(label)))
    }
}
