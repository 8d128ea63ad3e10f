//! Words, numbers and signs, as vmd's own scanner tells them apart.
//!
//! What it does is odd in places, and people's files depend on it: a backslash joins lines, in comments too, and
//! elsewhere makes the next character a plain one; macros are expanded before words are read, except in quotes; a word
//! begins with a letter, a digit, `:`, `_` or `/` and may have almost any punctuation after that, quotes among it.

use std::{collections::BTreeMap, sync::Arc};

use crate::{finding::Finding, source::Span};

/// Reserved words.
const KEYWORDS: [&str; 39] = [
    "add",
    "agentx",
    "allow",
    "boot",
    "cdrom",
    "context",
    "delay",
    "device",
    "disable",
    "disk",
    "down",
    "enable",
    "format",
    "group",
    "id",
    "include",
    "inet6",
    "instance",
    "interface",
    "interfaces",
    "lladdr",
    "local",
    "locked",
    "memory",
    "net",
    "owner",
    "parallel",
    "path",
    "prefix",
    "rdomain",
    "sev",
    "seves",
    "size",
    "socket",
    "staggered",
    "start",
    "switch",
    "up",
    "vm",
];

/// Characters that a word or string can have: vmd's buffer less its end.
const LONGEST: usize = 8094;

/// The reserved word that `text` is.
pub(crate) fn keyword(text: &str) -> Option<&'static str> {
    KEYWORDS.into_iter().find(|keyword| *keyword == text)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// A word or a quoted string.
    Text(String),
    Number(i64),
    Keyword(&'static str),
    Newline,
    Sign(char),
    /// Something that was complained about already; the rest of its line is gone.
    Bad,
    End,
}

impl Token {
    /// What it is, for a message.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Text(text) if text.len() > 40 => "a string".to_owned(),
            Self::Text(text) => format!("`{text}`"),
            Self::Number(number) => format!("the number {number}"),
            Self::Keyword(word) => format!("the keyword `{word}`"),
            Self::Newline => "the end of the line".to_owned(),
            Self::Sign(sign) => format!("`{}`", sign.escape_debug()),
            Self::Bad => "something else".to_owned(),
            Self::End => "the end of the file".to_owned(),
        }
    }
}

/// A macro: its value, where it was set, and whether it is used.
#[derive(Debug, Clone)]
pub(crate) struct Macro {
    pub(crate) value: String,
    pub(crate) at: Span,
    pub(crate) used: bool,
}

/// Characters that all macros of a configuration together may expand to.
const MOST_EXPANDED: usize = 16 << 20;

/// The macros that are set, and how much they may still expand to.
pub(crate) struct Macros {
    pub(crate) values: BTreeMap<String, Macro>,
    left: usize,
}

impl Macros {
    pub(crate) fn new() -> Self {
        Self { values: BTreeMap::new(), left: MOST_EXPANDED }
    }
}

/// A character that is still to be read: where from, and whether out of a macro.
#[derive(Clone, Copy)]
struct Character {
    c: char,
    at: Span,
    expanded: bool,
}

pub(crate) struct Lexer {
    text: Arc<str>,
    source: usize,
    offset: usize,
    /// Characters that were put back, or came out of a macro; the next one is last.
    pending: Vec<Character>,
    at_end: bool,
}

impl Lexer {
    pub(crate) fn new(text: Arc<str>, source: usize) -> Self {
        Self { text, source, offset: 0, pending: Vec::new(), at_end: false }
    }

    /// Where reading has come to.
    pub(crate) fn here(&self) -> Span {
        Span { source: self.source, start: self.offset, end: self.offset }
    }

    fn raw(&mut self) -> Option<Character> {
        if let Some(character) = self.pending.pop() {
            return Some(character);
        }
        let c = self.text.get(self.offset..)?.chars().next()?;
        let start = self.offset;
        self.offset += c.len_utf8();
        Some(Character { c, at: Span { source: self.source, start, end: self.offset }, expanded: false })
    }

    /// The next character outside of quotes.
    fn get(&mut self) -> Option<Character> {
        loop {
            let character = self.raw()?;
            if character.c != '\\' {
                return Some(character);
            }
            let next = self.raw()?;
            if next.c != '\n' {
                return Some(Character { at: character.at.to(next.at), ..next });
            }
        }
    }

    fn skip_line(&mut self) {
        while let Some(character) = self.get() {
            if character.c == '\n' {
                self.pending.push(character);
                return;
            }
        }
    }

    /// The next token. What is wrong with it goes to `findings`.
    pub(crate) fn next(&mut self, macros: &mut Macros, findings: &mut Vec<Finding>) -> (Token, Span) {
        loop {
            let Some(first) = self.get() else { return self.end() };
            match first.c {
                ' ' | '\t' | '\u{1}' | '\u{2}' => {}
                '#' => self.skip_line(),
                '$' if !first.expanded => {
                    if let Some(token) = self.expand(first.at, macros, findings) {
                        return token;
                    }
                }
                '\n' => return (Token::Newline, first.at),
                '"' | '\'' => return self.quoted(first, findings),
                c if c == '-' || c.is_ascii_digit() => return self.number(first, findings),
                c if begins_word(c) => return self.word(first, findings),
                c => return (Token::Sign(c), first.at),
            }
        }
    }

    /// Passes over the rest of the file.
    fn stop(&mut self) {
        self.pending.clear();
        self.offset = self.text.len();
    }

    /// A file ends with a newline, be there one or not.
    fn end(&mut self) -> (Token, Span) {
        let token = if self.at_end { Token::End } else { Token::Newline };
        self.at_end = true;
        (token, self.here())
    }

    /// Reads a macro's name and puts its value in front of what follows.
    fn expand(
        &mut self,
        dollar: Span,
        macros: &mut Macros,
        findings: &mut Vec<Finding>,
    ) -> Option<(Token, Span)> {
        let mut name = String::new();
        let mut at = dollar;
        while let Some(character) = self.get() {
            if !(character.c.is_ascii_alphanumeric() || character.c == '_') {
                self.pending.push(character);
                break;
            }
            name.push(character.c);
            at = at.to(character.at);
        }
        if let Some(value) = macros.values.get_mut(&name) {
            value.used = true;
            let Some(left) = macros.left.checked_sub(value.value.len()) else {
                findings.push(Finding::error(
                    at,
                    "the macros expand to more than 16 MiB",
                    "not read further",
                ));
                self.stop();
                return Some((Token::Bad, at));
            };
            macros.left = left;
            let characters = value.value.chars().rev().map(|c| Character { c, at, expanded: true });
            self.pending.extend(characters);
            return None;
        }
        findings.push(
            Finding::error(at, format!("there is no macro `{name}`"), "not set above")
                .help("a macro is set, as in `name = \"value\"`, before it is used"),
        );
        Some((Token::Bad, at))
    }

    fn quoted(&mut self, quote: Character, findings: &mut Vec<Finding>) -> (Token, Span) {
        let mut text = String::new();
        let mut at = quote.at;
        loop {
            let Some(character) = self.raw() else {
                findings.push(
                    Finding::error(quote.at, "a quoted string has no end", "begins here")
                        .help("strings may go over several lines: look for the quote that is missing"),
                );
                return (Token::Bad, at);
            };
            at = at.to(character.at);
            match character.c {
                '\n' | '\u{1}' | '\u{2}' => {}
                '\0' => {
                    findings.push(Finding::error(character.at, "a string has a NUL in it", "here"));
                    self.skip_line();
                    return (Token::Bad, at);
                }
                '\\' => match self.raw() {
                    Some(next) if next.c == quote.c || matches!(next.c, ' ' | '\t') => {
                        at = at.to(next.at);
                        text.push(next.c);
                    }
                    Some(next) if next.c == '\n' => {}
                    next => {
                        self.pending.extend(next);
                        text.push('\\');
                    }
                },
                c if c == quote.c => return (Token::Text(text), at),
                c => text.push(c),
            }
            if text.len() > LONGEST {
                return self.too_long(at, findings);
            }
        }
    }

    fn too_long(&mut self, at: Span, findings: &mut Vec<Finding>) -> (Token, Span) {
        findings.push(Finding::error(at, format!("a string has more than {LONGEST} bytes"), "vmd's limit"));
        self.skip_line();
        (Token::Bad, at)
    }

    /// A number, or a word that begins with digits.
    fn number(&mut self, first: Character, findings: &mut Vec<Finding>) -> (Token, Span) {
        let mut read = vec![first];
        let mut after = None;
        while let Some(character) = self.get() {
            if !character.c.is_ascii_digit() {
                after = Some(character);
                break;
            }
            read.push(character);
            if read.len() > LONGEST {
                return self.too_long(first.at, findings);
            }
        }
        self.pending.extend(after);
        let digits = read.len() > usize::from(first.c == '-');
        let ends =
            after.is_none_or(|c| c.c.is_ascii_whitespace() || matches!(c.c, ')' | ',' | '/' | '}' | '='));
        let at = first.at.to(read.last().map_or(first.at, |last| last.at));
        if digits && ends {
            let text: String = read.iter().map(|character| character.c).collect();
            let Ok(number) = text.parse() else {
                findings.push(Finding::error(
                    at,
                    format!("`{text}` is out of vmd's range of numbers"),
                    "here",
                ));
                self.skip_line();
                return (Token::Bad, at);
            };
            return (Token::Number(number), at);
        }
        self.pending.extend(read.drain(1..).rev());
        if first.c == '-' { (Token::Sign('-'), first.at) } else { self.word(first, findings) }
    }

    fn word(&mut self, first: Character, findings: &mut Vec<Finding>) -> (Token, Span) {
        let mut text = String::from(first.c);
        let mut at = first.at;
        while let Some(character) = self.get() {
            if !continues_word(character.c) {
                self.pending.push(character);
                break;
            }
            text.push(character.c);
            at = at.to(character.at);
            if text.len() > LONGEST {
                return self.too_long(at, findings);
            }
        }
        match keyword(&text) {
            Some(keyword) => (Token::Keyword(keyword), at),
            None => (Token::Text(text), at),
        }
    }
}

fn begins_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | '/')
}

fn continues_word(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || c.is_ascii_punctuation() && !matches!(c, '(' | ')' | '{' | '}' | '!' | '=' | '#' | ',')
}
