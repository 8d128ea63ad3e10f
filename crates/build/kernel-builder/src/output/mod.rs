//! The output directory of a build, `out/<name>/`.

pub(crate) mod directory;
pub(crate) mod error;
pub(crate) mod manifest;
pub(crate) mod package;
pub(crate) mod staging;
