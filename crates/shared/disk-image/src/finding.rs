//! What is said about an image.

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// vmd takes the image, but the guest does not boot or lacks something.
    Warning,
    /// vmd refuses the image, or the VM dies of it.
    Error,
}

/// Something to say about an image. Its texts have no control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is; names the file.
    pub message: String,
    /// What vmd or the guest does about it, in a few words.
    pub effect: String,
    /// What to do.
    pub help: String,
}

impl Finding {
    pub(crate) fn error(
        message: impl Into<String>,
        effect: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Error, message: message.into(), effect: effect.into(), help: help.into() }
    }

    pub(crate) fn warning(
        message: impl Into<String>,
        effect: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message, effect, help) }
    }
}
