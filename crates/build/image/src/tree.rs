//! A directory tree that exists only as a tar archive, so that owners, modes and device nodes do not depend
//! on the user who builds it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use tar::{Builder, EntryType, Header};

use crate::error::{Error, Result};

enum Node {
    Directory { mode: u32 },
    File { mode: u32, group: u32, content: Content },
    Symlink { target: PathBuf },
    Character { mode: u32, major: u32, minor: u32 },
}

enum Content {
    Bytes(Vec<u8>),
    Path(PathBuf),
}

/// The tree. Paths are relative to its root; everything belongs to root, and but for single files to root's group.
#[derive(Default)]
pub(crate) struct Tree {
    // Sorted, which puts a directory before what is in it and makes the archive the same every time.
    nodes: BTreeMap<PathBuf, Node>,
}

impl Tree {
    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        self.insert(path, Node::Directory { mode });
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) {
        self.file_of_group(path, mode, 0, content);
    }

    /// A file that belongs to root and a group, by its number.
    pub(crate) fn file_of_group(&mut self, path: &str, mode: u32, group: u32, content: impl Into<Vec<u8>>) {
        self.insert(path, Node::File { mode, group, content: Content::Bytes(content.into()) });
    }

    /// A copy of a file of this machine.
    pub(crate) fn copy(&mut self, path: impl AsRef<Path>, mode: u32, from: &Path) {
        self.insert(path, Node::File { mode, group: 0, content: Content::Path(from.to_owned()) });
    }

    pub(crate) fn symlink(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) {
        self.insert(path, Node::Symlink { target: target.into() });
    }

    pub(crate) fn character_device(&mut self, path: &str, mode: u32, (major, minor): (u32, u32)) {
        self.insert(path, Node::Character { mode, major, minor });
    }

    /// A copy of a directory of this machine; its symlinks that lead out of it are left out.
    pub(crate) fn copy_directory(&mut self, path: &Path, from: &Path) -> Result<()> {
        let read = Error::io;
        for entry in fs::read_dir(from).map_err(read("read", from))? {
            let entry = entry.map_err(read("read", from))?;
            let (source, path) = (entry.path(), path.join(entry.file_name()));
            let metadata = entry.metadata().map_err(read("read", &source))?;
            if metadata.is_dir() {
                self.copy_directory(&path, &source)?;
            } else if metadata.is_file() {
                self.copy(&path, metadata.permissions().mode() & 0o755, &source);
            } else if metadata.is_symlink() {
                let target = fs::read_link(&source).map_err(read("read", &source))?;
                if target.is_relative() {
                    self.symlink(&path, target);
                }
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.nodes.keys().cloned().collect()
    }

    fn insert(&mut self, path: impl AsRef<Path>, node: Node) {
        let path = path.as_ref();
        debug_assert!(path.is_relative(), "{}", path.display());
        for parent in path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
            let parent = self.nodes.entry(parent.to_owned()).or_insert(Node::Directory { mode: 0o755 });
            debug_assert!(matches!(parent, Node::Directory { .. }), "{} is below a file", path.display());
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// Writes the archive, every entry stamped with `time`.
    pub(crate) fn write_tar(&self, output: &Path, time: u64) -> Result<()> {
        let file = File::create(output).map_err(Error::io("create", output))?;
        let mut tar = Builder::new(BufWriter::new(file));
        for (path, node) in &self.nodes {
            let mut header = Header::new_gnu();
            header.set_mtime(time);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            let written = Error::io("write", output);
            match node {
                Node::Directory { mode } => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(*mode);
                    tar.append_data(&mut header, path, &[][..]).map_err(written)?;
                }
                Node::File { mode, group, content } => {
                    header.set_mode(*mode);
                    header.set_gid(u64::from(*group));
                    match content {
                        Content::Bytes(bytes) => {
                            header.set_size(bytes.len() as u64);
                            tar.append_data(&mut header, path, &bytes[..]).map_err(written)?;
                        }
                        Content::Path(from) => {
                            let bytes = fs::read(from).map_err(Error::io("read", from))?;
                            header.set_size(bytes.len() as u64);
                            tar.append_data(&mut header, path, &bytes[..]).map_err(written)?;
                        }
                    }
                }
                Node::Symlink { target } => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    tar.append_link(&mut header, path, target).map_err(written)?;
                }
                Node::Character { mode, major, minor } => {
                    header.set_entry_type(EntryType::Char);
                    header.set_mode(*mode);
                    header
                        .set_device_major(*major)
                        .and_then(|()| header.set_device_minor(*minor))
                        .map_err(Error::io("write", output))?;
                    tar.append_data(&mut header, path, &[][..]).map_err(written)?;
                }
            }
        }
        let mut file = tar.into_inner().map_err(Error::io("write", output))?;
        file.flush().map_err(Error::io("write", output))
    }
}

/// What an archive's contents need on ext4 with blocks of 4 KiB, in bytes; one block each for what is not a file, at
/// most.
pub(crate) fn space_needed(archive: &Path) -> Result<u64> {
    let file = File::open(archive).map_err(Error::io("read", archive))?;
    let mut needed = 0;
    for entry in tar::Archive::new(file).entries_with_seek().map_err(Error::io("read", archive))? {
        let entry = entry.map_err(Error::io("read", archive))?;
        needed += match entry.header().entry_type() {
            EntryType::Symlink | EntryType::Link | EntryType::Char | EntryType::Block => 0,
            EntryType::Directory => 4096,
            _ => entry.size().next_multiple_of(4096),
        };
    }
    Ok(needed)
}

/// An extended attribute of a file in an archive.
pub(crate) struct Attribute {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
}

/// All the extended attributes in an archive of the POSIX format, from the records that GNU tar writes them to.
pub(crate) fn attributes(archive: &Path) -> Result<Vec<Attribute>> {
    let failed = |e| Error::io("read", archive)(e);
    let file = File::open(archive).map_err(failed)?;
    let mut found = Vec::new();
    let mut records = Vec::new();
    for entry in tar::Archive::new(file).entries_with_seek().map_err(failed)?.raw(true) {
        let mut entry = entry.map_err(failed)?;
        let header = entry.header().entry_type().is_pax_local_extensions();
        if header {
            entry.read_to_end(&mut records).map_err(failed)?;
            continue;
        }
        let records = std::mem::take(&mut records);
        let Some(records) = pax_records(&records) else {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "a malformed extended header")));
        };
        let path = match records.iter().find(|(key, _)| *key == "path") {
            Some((_, path)) => PathBuf::from(OsStr::from_bytes(path)),
            None => entry.path().map_err(failed)?.into_owned(),
        };
        for (key, value) in records {
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                let path = path.strip_prefix(".").unwrap_or(&path).to_owned();
                found.push(Attribute { path, name: name.to_owned(), value: value.to_owned() });
            }
        }
    }
    Ok(found)
}

/// Splits an extended header: "LENGTH KEY=VALUE\n" each, the length counting all of it. (The tar crate's own reader
/// splits at newlines, which a capability's bits may well contain.)
fn pax_records(mut bytes: &[u8]) -> Option<Vec<(&str, &[u8])>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|b| *b == b' ')?;
        let length: usize = str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let (record, rest) = bytes.split_at_checked(length)?;
        let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|b| *b == b'=')?;
        records.push((str::from_utf8(&record[..equals]).ok()?, &record[equals + 1..]));
        bytes = rest;
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.symlink("usr/sbin", "bin");
        tree.file("usr/bin/hello", 0o755, "hi");
        tree.directory("tmp", 0o1777);
        tree.character_device("dev/console", 0o600, (5, 1));
        tree
    }

    #[test]
    fn a_tree_becomes_an_archive_of_roots_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        tree().write_tar(&path, 1_700_000_000).unwrap();
        let mut seen = Vec::new();
        for entry in tar::Archive::new(File::open(&path).unwrap()).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!(
                (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()),
                (0, 0, 1_700_000_000)
            );
            seen.push((entry.path().unwrap().display().to_string(), header.mode().unwrap()));
        }
        let expected = [
            ("dev", 0o755),
            ("dev/console", 0o600),
            ("tmp", 0o1777),
            ("usr", 0o755),
            ("usr/bin", 0o755),
            ("usr/bin/hello", 0o755),
            ("usr/sbin", 0o777),
        ];
        assert_eq!(seen, expected.map(|(path, mode)| (path.to_owned(), mode)));
        assert_eq!(space_needed(&path).unwrap(), 5 * 4096);
    }

    #[test]
    fn extended_attributes_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        let mut tar = Builder::new(File::create(&path).unwrap());
        let record = ("SCHILY.xattr.security.capability", &b"\x01\0\n\xff="[..]);
        tar.append_pax_extensions([record, ("mtime", b"1.5")]).unwrap();
        for name in ["./usr/bin/ping", "./usr/bin/ls"] {
            let mut header = Header::new_gnu();
            header.set_size(0);
            tar.append_data(&mut header, name, &[][..]).unwrap();
        }
        tar.into_inner().unwrap();
        let found = attributes(&path).unwrap();
        for bad in [&b"x"[..], b"5 a=b", b"9999 a=b\n", b"6 ab=\xff", b"5 ab\n", b"1 a=b\n"] {
            assert_eq!(pax_records(bad), None, "{bad:?}");
        }
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].path.to_str(), found[0].name.as_str()),
            (Some("usr/bin/ping"), "security.capability")
        );
        assert_eq!(found[0].value, b"\x01\0\n\xff=");
    }

    #[test]
    fn a_directory_is_copied_without_the_links_that_lead_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("sub")).unwrap();
        fs::write(source.join("sub/file"), "x").unwrap();
        std::os::unix::fs::symlink("/usr/src", source.join("build")).unwrap();
        std::os::unix::fs::symlink("sub/file", source.join("link")).unwrap();
        let mut tree = Tree::default();
        tree.copy_directory(Path::new("lib"), &source).unwrap();
        let paths: Vec<_> = tree.nodes.keys().map(|p| p.display().to_string()).collect();
        assert_eq!(paths, ["lib", "lib/link", "lib/sub", "lib/sub/file"]);
    }
}
