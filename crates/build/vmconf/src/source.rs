//! Files that were read, and places in them.

use std::{fmt, ops::Deref, sync::Arc};

use miette::{MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents};
use serde::Serialize;

/// A file that was read.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name, as it was given or included, fit for a terminal.
    pub name: String,
    /// What is in it.
    pub text: Arc<str>,
    /// The same, fit for a terminal; every character has as many bytes as in `text`.
    shown: Arc<str>,
    /// The offsets at which its lines begin.
    lines: Arc<[usize]>,
}

impl Source {
    /// A file with this name and contents.
    pub fn new(name: &str, text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        let shown = if text.contains(is_control) {
            text.chars().map(stand_in).collect::<String>().into()
        } else {
            text.clone()
        };
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name: printable(name), text, shown, lines }
    }

    /// The place of the byte at `offset`.
    pub fn place(&self, offset: usize) -> Place {
        let line = self.line(offset);
        let before = self.text.get(self.lines[line]..offset).unwrap_or_default();
        Place { file: self.name.clone(), line: line + 1, column: before.chars().count() + 1 }
    }

    /// The line that the byte at `offset` is on, from 0.
    fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset) - 1
    }
}

impl Default for Source {
    fn default() -> Self {
        Self::new("", "")
    }
}

/// Reads the lines around a place only: a report costs the same at the end of a long file as at its beginning.
impl SourceCode for Source {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let first = self.line(span.offset()).saturating_sub(before);
        let last = self.line(span.offset() + span.len()) + after;
        let start = self.lines[first];
        let end = self.lines.get(last + 1).copied().unwrap_or(self.shown.len());
        let excerpt = self.shown.get(start..end).ok_or(MietteError::OutOfBounds)?;
        let shifted = SourceSpan::new((span.offset() - start).into(), span.len());
        let contents = excerpt.read_span(&shifted, before, after)?;
        let (offset, length) = (start + contents.span().offset(), contents.span().len());
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            &self.shown.as_bytes()[offset..offset + length],
            (offset, length).into(),
            first + contents.line(),
            contents.column(),
            contents.line_count(),
        )))
    }
}

/// Whether a terminal may act on the character instead of showing it; a newline and a tab are not counted.
pub(crate) fn is_control(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t') || is_direction(c)
}

/// Whether the character changes the direction of the text around it.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A harmless character with as many bytes as a harmful one; every other as it is.
fn stand_in(c: char) -> char {
    match c.len_utf8() {
        _ if !is_control(c) => c,
        1 => '?',
        2 => '\u{bf}',
        _ => char::REPLACEMENT_CHARACTER,
    }
}

/// A text with its control characters escaped, so that a terminal shows them and does not act on them.
pub fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if is_control(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
        shown
    })
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

/// Bytes of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Which of the configuration's sources.
    pub source: usize,
    /// The first byte.
    pub start: usize,
    /// The byte after the last one.
    pub end: usize,
}

impl Span {
    pub(crate) fn to(self, end: Self) -> Self {
        Self { end: end.end.max(self.start), ..self }
    }
}

/// Something and where it was read. Two are equal if the things are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spanned<T> {
    /// The thing.
    pub value: T,
    /// Where it was.
    pub at: Span,
}

impl<T> Spanned<T> {
    pub(crate) fn new(value: T, at: Span) -> Self {
        Self { value, at }
    }
}

/// Something that was not read anywhere.
impl<T> From<T> for Spanned<T> {
    fn from(value: T) -> Self {
        Self { value, at: Span::default() }
    }
}

impl From<&str> for Spanned<String> {
    fn from(value: &str) -> Self {
        value.to_owned().into()
    }
}

impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T> Deref for Spanned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}
