//! Initramfs archives for the guests of these tests.

use std::{
    fs::File,
    io::{self, BufWriter},
    path::Path,
};

use helper_vm::Archive;

/// An archive being written.
#[derive(Debug)]
pub struct Initramfs(Archive<BufWriter<File>>);

impl Initramfs {
    /// An archive in the file `to`, with the directories that a guest mounts on, `dirs`, and `/dev/console`.
    pub fn create(to: &Path, dirs: &[&str]) -> io::Result<Self> {
        let dirs: Vec<&str> = ["proc", "sys", "modules"].iter().chain(dirs).copied().collect();
        let file = BufWriter::new(File::create(to)?);
        Archive::new(file, to, &dirs).map(Self).map_err(io::Error::other)
    }

    /// Adds the file `from`, executable, as `name`.
    pub fn copy(&mut self, name: &str, from: &Path) -> io::Result<()> {
        self.0.copy(name, 0o755, from).map_err(io::Error::other)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.0.link(name, target).map_err(io::Error::other)
    }

    /// Ends the archive.
    pub fn finish(self) -> io::Result<()> {
        self.0.finish().map(drop).map_err(io::Error::other)
    }
}
