//! The configuration of a kernel, as the builder sees it.

use std::path::Path;

use miette::Diagnostic;

/// A configuration. The builder compares it by its identity and does not know its content.
pub trait Configuration {
    /// A text that is the same only for the same configuration.
    fn identity(&self) -> std::result::Result<String, BoxedDiagnostic>;

    /// Writes `.config` to a build directory by the tree's own make with these variables on its command line.
    fn configure(
        &self,
        tree: &Path,
        build_dir: &Path,
        make_vars: &[(String, String)],
    ) -> std::result::Result<(), BoxedDiagnostic>;
}

/// The error of a configuration.
pub type BoxedDiagnostic = Box<dyn Diagnostic + Send + Sync + 'static>;
