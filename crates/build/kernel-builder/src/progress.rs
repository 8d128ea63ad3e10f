//! How long work tells where it is. The command line draws it; the library only reports.

/// A listener to what the forge is doing.
pub trait Progress: Send + Sync {
    /// A phase begins: one short line, such as `downloading linux-source-7.3 7.3.4-1 (159 MB)`.
    fn phase(&self, what: &str);
    /// `done` of `total` steps are over (0 when the total is unknown); `current` is being worked on.
    fn step(&self, done: u64, total: u64, current: &str);
    /// Something worth a line that stays: a fallback that was taken, a file that was left alone.
    fn note(&self, what: &str);
}

/// Reports to nobody.
#[derive(Debug, Default, Clone, Copy)]
pub struct Quiet;

impl Progress for Quiet {
    fn phase(&self, _: &str) {}
    fn step(&self, _: u64, _: u64, _: &str) {}
    fn note(&self, _: &str) {}
}
