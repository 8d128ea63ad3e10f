//! Initramfs archives for the guests of these tests.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

use cpio::{NewcBuilder, newc};

/// A newc archive being written.
pub struct Initramfs(BufWriter<File>);

impl Initramfs {
    /// An archive in the file `to`, with the directories that a guest mounts on, `dirs`, and `/dev/console`.
    pub fn create(to: &Path, dirs: &[&str]) -> io::Result<Self> {
        let mut archive = Self(BufWriter::new(File::create(to)?));
        for dir in ["dev", "proc", "sys", "modules"].iter().chain(dirs) {
            archive.add(NewcBuilder::new(dir).mode(0o040_755), &[])?;
        }
        archive.add(NewcBuilder::new("dev/console").mode(0o020_600).rdev_major(5).rdev_minor(1), &[])?;
        Ok(archive)
    }

    /// Adds the file `from`, executable, as `name`.
    pub fn copy(&mut self, name: &str, from: &Path) -> io::Result<()> {
        let content =
            fs::read(from).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", from.display())))?;
        self.add(NewcBuilder::new(name).mode(0o100_755), &content)
    }

    /// Ends the archive.
    pub fn finish(self) -> io::Result<()> {
        newc::trailer(self.0)?.flush()
    }

    fn add(&mut self, entry: NewcBuilder, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let mut writer = entry.write(&mut self.0, size);
        writer.write_all(content)?;
        writer.finish().map(drop)
    }
}
