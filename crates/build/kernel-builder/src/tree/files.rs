//! Copies of a tree's files that keep their times.

use std::{
    fs::{self, File, FileTimes},
    io,
    path::Path,
    time::SystemTime,
};

/// Copies a file with its permissions and modification time.
pub(crate) fn copy_with_times(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    set_modified(to, fs::metadata(from)?.modified()?)
}

/// Sets the modification time of a file.
pub(crate) fn set_modified(path: &Path, time: SystemTime) -> io::Result<()> {
    File::open(path)?.set_times(FileTimes::new().set_modified(time))
}
