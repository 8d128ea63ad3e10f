//! Initramfs archives in cpio's newc format, uncompressed: unpacking costs time on the emulated processor.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use cpio::{NewcBuilder, newc};

use crate::{Error, Result};

const DIRECTORY: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Maximum size of a file in bytes: newc's size field has 32 bits and Linux reads it as signed.
const LARGEST: u64 = i32::MAX as u64;

/// A newc archive under construction.
#[derive(Debug)]
pub struct Archive<W> {
    to: W,
    path: PathBuf,
}

impl<W: Write> Archive<W> {
    /// An archive with the directories `dirs`, and `/dev/console`, which Linux opens for init. Errors name the archive
    /// `path`.
    pub fn new(to: W, path: &Path, dirs: &[&str]) -> Result<Self> {
        let mut archive = Self { to, path: path.to_owned() };
        for dir in ["dev"].iter().chain(dirs) {
            archive.entry(NewcBuilder::new(dir).mode(DIRECTORY), &[])?;
        }
        archive
            .entry(NewcBuilder::new("dev/console").mode(CHARACTER_DEVICE).rdev_major(5).rdev_minor(1), &[])?;
        Ok(archive)
    }

    /// Adds a file from memory.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> Result<()> {
        if content.len() as u64 > LARGEST {
            return Err(Error::TooLarge { path: name.into(), size: content.len() as u64 });
        }
        self.entry(NewcBuilder::new(name).mode(0o100_000 | permissions), content)
    }

    /// Adds a file from the disk.
    pub fn copy(&mut self, name: &str, permissions: u32, from: &Path) -> Result<()> {
        let mut file = File::open(from).map_err(|e| Error::io("open", from, e))?;
        let size = file.metadata().map_err(|e| Error::io("read", from, e))?.len();
        let small = u32::try_from(size).ok().filter(|_| size <= LARGEST);
        let Some(size) = small else { return Err(Error::TooLarge { path: from.to_owned(), size }) };
        let mut writer = NewcBuilder::new(name).mode(0o100_000 | permissions).write(&mut self.to, size);
        io::copy(&mut file, &mut writer)
            .and_then(|_| writer.finish())
            .map_err(|e| Error::io("pack", from, e))?;
        Ok(())
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(NewcBuilder::new(name).mode(0o120_777), target.as_bytes())
    }

    /// Writes the trailer and returns the writer.
    pub fn finish(self) -> Result<W> {
        let mut to = newc::trailer(self.to).map_err(|e| Error::io("write", &self.path, e))?;
        to.flush().map_err(|e| Error::io("write", &self.path, e))?;
        Ok(to)
    }

    fn entry(&mut self, entry: NewcBuilder, content: &[u8]) -> Result<()> {
        let size =
            u32::try_from(content.len()).map_err(|e| Error::io("write", &self.path, io::Error::other(e)))?;
        let mut writer = entry.write(&mut self.to, size);
        writer
            .write_all(content)
            .and_then(|()| writer.finish().map(drop))
            .map_err(|e| Error::io("write", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use cpio::NewcReader;

    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("bzImage");
        std::fs::write(&kernel, [7; 1001]).unwrap();
        let mut archive = Archive::new(Vec::new(), Path::new("initramfs"), &["job"]).unwrap();
        archive.file("init", 0o755, b"program").unwrap();
        archive.copy("job/kernel", 0o400, &kernel).unwrap();
        archive.link("job/init", "../init").unwrap();
        let bytes = archive.finish().unwrap();

        let mut rest = &bytes[..];
        let mut found = Vec::new();
        loop {
            let mut reader = NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            rest = reader.finish().unwrap();
            found.push((name, mode, content));
        }
        assert!(found.iter().any(|(name, mode, _)| name == "dev/console" && *mode == 0o020_600));
        assert!(found.contains(&("init".to_owned(), 0o100_755, b"program".to_vec())));
        assert!(found.contains(&("job/init".to_owned(), 0o120_777, b"../init".to_vec())));
        assert!(found.contains(&("job/kernel".to_owned(), 0o100_400, vec![7; 1001])));
    }

    #[test]
    fn a_file_that_is_gone_is_named() {
        let mut archive = Archive::new(Vec::new(), Path::new("initramfs"), &["job"]).unwrap();
        let error = archive.copy("job/initrd", 0o400, Path::new("/nonexistent/initrd.img")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/initrd.img"));
    }
}
