//! The display of progress.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use indicatif::ProgressStyle;
use support::progress::Progress;

/// Progress on standard error: a bar on a terminal, a line for each phase elsewhere.
pub(crate) struct ProgressBar {
    bar: indicatif::ProgressBar,
    /// Tenths of the current phase that were reported, without a terminal.
    tenths: AtomicU64,
}

impl ProgressBar {
    pub(crate) fn new() -> Self {
        let bar = indicatif::ProgressBar::new_spinner();
        bar.set_style(spinner());
        Self { bar, tenths: AtomicU64::new(0) }
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix} {wide_msg}").expect("a valid template")
}

fn counted() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} [{bar:30}] {percent}% ({pos}/{len}, {eta} left) {wide_msg}")
        .expect("a valid template")
        .progress_chars("=> ")
}

impl Progress for ProgressBar {
    fn phase(&self, what: &str) {
        if self.bar.is_hidden() {
            support::note!("{what}");
        }
        self.tenths.store(0, Ordering::Relaxed);
        self.bar.set_style(spinner());
        self.bar.reset();
        self.bar.set_prefix(what.to_owned());
        self.bar.set_message("");
        self.bar.enable_steady_tick(Duration::from_millis(120));
    }

    fn step(&self, done: u64, total: u64, current: &str) {
        if total > 0 && self.bar.is_hidden() {
            let tenths = done * 10 / total;
            if self.tenths.fetch_max(tenths, Ordering::Relaxed) < tenths {
                support::note!("  {}%", tenths * 10);
            }
        } else if total > 0 {
            if self.bar.length() != Some(total) {
                self.bar.set_style(counted());
                self.bar.set_length(total);
            }
            self.bar.set_position(done);
        }
        self.bar.set_message(current.to_owned());
    }

    fn note(&self, what: &str) {
        if self.bar.is_hidden() {
            support::note!("{what}");
        } else {
            self.bar.println(what);
        }
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
