//! The programs, libraries and files that have to be on the machine: a table of them, how each is found, and their
//! installation (`vmmlinux setup`).

mod error;
mod finder;
mod missing;
mod setup;
mod tools;

pub use crate::{
    error::{Error, Result},
    finder::{Finder, Found},
    missing::Missing,
    setup::{Plan, Setup},
    tools::{Purpose, TOOLS, Tool},
};
