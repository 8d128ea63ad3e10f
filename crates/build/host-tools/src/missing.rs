//! Reports of missing tools.

use miette::Diagnostic;
use thiserror::Error;

use crate::{
    finder::{Finder, Found},
    tools::Tool,
};

/// A tool or resource that is missing or insufficient.
#[derive(Debug, Error, Diagnostic)]
#[error("{what} ({why})")]
pub struct Missing {
    /// The tool and its problem.
    pub what: String,
    /// Its purpose.
    pub why: String,
    /// The remedy.
    #[help]
    pub remedy: String,
}

impl Missing {
    /// The report for a tool that is absent, unusable or too old; `None` if it is present.
    pub fn of(tool: &Tool, finder: &Finder) -> Option<Self> {
        let name = tool.name;
        let what = match finder.probe(tool) {
            Found::Yes(_) => return None,
            Found::Old(version) => {
                format!("{name} {version} is too old: {} or newer is needed", tool.min.unwrap_or_default())
            }
            Found::No(None) => format!("{name} is missing"),
            Found::No(Some(reason)) => format!("{name} is missing: {reason}"),
        };
        Some(Self { what, why: tool.why.to_owned(), remedy: remedy(tool) })
    }
}

fn remedy(tool: &Tool) -> String {
    match (tool.name, tool.debian) {
        ("rustc", _) => "`rustup toolchain install stable`".to_owned(),
        ("rust-src", _) => {
            "`vmmlinux setup`, or `rustup component add rust-src`, or set RUST_LIB_SRC to a library/ \
                            directory of the same version"
                .to_owned()
        }
        ("bindgen", _) => "`vmmlinux setup`, or `cargo install bindgen-cli`".to_owned(),
        (_, Some(package)) => format!("`vmmlinux setup`, or `apt-get install {package}` on Debian"),
        (name, None) => format!("install {name}"),
    }
}
