//! Kernel trees with patches and drivers, ready to be configured and built.

pub(crate) mod additions;
pub(crate) mod error;
mod files;
pub(crate) mod overlay;
pub(crate) mod prepare;
pub(crate) mod user_tree;
pub(crate) mod version;
