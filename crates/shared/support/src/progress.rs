//! Progress of long operations: libraries report it, the command line draws it.

/// A listener to the progress of an operation.
pub trait Progress: Send + Sync {
    /// A phase begins: one short line, such as `downloading linux-source-7.3 7.3.4-1 (159 MB)`.
    fn phase(&self, what: &str);
    /// `done` of `total` steps are complete (`total` is 0 if unknown); `current` is in progress.
    fn step(&self, done: u64, total: u64, current: &str);
    /// A message that stays visible, such as a fallback or a file that was left unchanged.
    fn note(&self, what: &str);
}

/// A listener that ignores everything.
#[derive(Debug, Default, Clone, Copy)]
pub struct Quiet;

impl Progress for Quiet {
    fn phase(&self, _: &str) {}
    fn step(&self, _: u64, _: u64, _: &str) {}
    fn note(&self, _: &str) {}
}
