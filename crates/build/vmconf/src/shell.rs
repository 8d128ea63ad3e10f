//! Words that become commands.

use std::borrow::Cow;

use miette::Diagnostic;
use thiserror::Error;

use crate::source::{is_control, printable};

/// A proposal that cannot be written.
#[derive(Debug, Error, Diagnostic)]
pub enum Unwritable {
    /// A name or path that a terminal or a shell would take for something else.
    #[error("`{0}` has control characters")]
    #[diagnostic(help("rename the file, or choose another name"))]
    Control(String),
    /// A name or path that vm.conf(5) has no way to express.
    #[error("vm.conf(5) cannot express one of these names")]
    #[diagnostic(help("avoid a backslash at the end of a name"))]
    Grammar,
}

/// Text for a script.
pub(crate) type Written = Result<String, Unwritable>;

/// A word for the shell, in quotes where it needs them.
pub(crate) fn quoted(word: &str) -> Written {
    let control = || Unwritable::Control(printable(&word.replace(['\n', '\t'], "?")));
    if word.contains(|c| c == '\n' || c == '\t' || is_control(c)) {
        return Err(control());
    }
    shlex::try_quote(word).map(Cow::into_owned).map_err(|_| control())
}
