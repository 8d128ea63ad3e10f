//! What is wrong with a configuration, and where.

use std::{fmt, sync::Arc};

use miette::{Diagnostic, LabeledSpan, NamedSource};
use serde::Serialize;

use crate::model::{Config, Source, Span};

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

/// Something to say about a place in a configuration.
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
        Self { severity, message: message.into(), help: None, at, label: label.into() }
    }

    pub(crate) fn error(at: Span, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self::new(Severity::Error, at, message, label)
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The finding with the text that it is about, for miette to print.
    pub fn located(&self, config: &Config) -> Located {
        let source = config.sources.get(self.at.source).cloned().unwrap_or_default();
        Located { text: NamedSource::new(&source.name, source.text.clone()), finding: self.clone() }
    }

    /// The file, line and column of it.
    pub fn place(&self, config: &Config) -> Place {
        config.sources.get(self.at.source).map_or_else(Place::default, |source| source.place(self.at.start))
    }
}

/// A place in a file, as people count: from 1.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl Source {
    /// The place of the byte at `offset`.
    pub fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place {
            file: self.name.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// A [`Finding`] with its text: a diagnostic of miette's.
#[derive(Debug)]
pub struct Located {
    finding: Finding,
    text: NamedSource<Arc<str>>,
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
