//! The contents of a root file system's archive: which files there are, and the text of those that decide whether the
//! guest can be used.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use crate::error::{Error, Result};

/// Files whose text is kept.
const TEXTS: [&str; 5] = ["etc/inittab", "etc/passwd", "etc/resolv.conf", "etc/securetty", "etc/shadow"];
/// Symbolic links that are followed for one path, as in Linux.
const MAX_LINKS: usize = 40;
/// Bytes of a text that are kept.
const MAX_TEXT: u64 = 1 << 20;

/// Calls `each` for everything in an archive with its path, relative and without dots.
pub(super) fn visit(
    archive: &Path,
    mut each: impl FnMut(&Path, &mut tar::Entry<'_, File>) -> Result<()>,
) -> Result<()> {
    let read = |e: io::Error| Error::io("read", archive)(e);
    let file = File::open(archive).map_err(read)?;
    for entry in tar::Archive::new(file).entries_with_seek().map_err(read)? {
        let mut entry = entry.map_err(read)?;
        let path = normal(&entry.path().map_err(read)?);
        each(&path, &mut entry)?;
    }
    Ok(())
}

/// A path without its root, dots and parents.
fn normal(path: &Path) -> PathBuf {
    path.components().filter(|component| matches!(component, Component::Normal(_))).collect()
}

/// Something in an archive.
enum Node {
    Link(PathBuf),
    Other,
}

/// A file whose text is kept.
pub(super) struct Text {
    /// Its content; bytes that are not UTF-8 are replaced.
    pub(super) content: String,
    /// Its permissions.
    pub(super) mode: u32,
    /// Its group.
    pub(super) group: u32,
}

/// What an archive holds.
pub(super) struct Contents {
    nodes: BTreeMap<PathBuf, Node>,
    texts: BTreeMap<PathBuf, Text>,
}

impl Contents {
    pub(super) fn read(archive: &Path) -> Result<Self> {
        let (mut nodes, mut texts) = (BTreeMap::new(), BTreeMap::new());
        visit(archive, |path, entry| {
            let failed = |e: io::Error| Error::io("read", archive)(e);
            let link = entry.header().entry_type().is_symlink().then(|| entry.link_name()).transpose();
            let node = match link.map_err(failed)?.flatten() {
                Some(target) => Node::Link(target.into_owned()),
                None => Node::Other,
            };
            nodes.insert(path.to_owned(), node);
            for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
                nodes.entry(parent.to_owned()).or_insert(Node::Other);
            }
            if TEXTS.iter().any(|text| path == Path::new(text)) && entry.header().entry_type().is_file() {
                let (mode, gid) = (entry.header().mode(), entry.header().gid());
                let (mode, gid) = (mode.map_err(failed)?, gid.map_err(failed)?);
                let mut bytes = Vec::new();
                entry.take(MAX_TEXT).read_to_end(&mut bytes).map_err(failed)?;
                let content = String::from_utf8_lossy(&bytes).into_owned();
                let group = u32::try_from(gid).unwrap_or_default();
                texts.insert(path.to_owned(), Text { content, mode: mode & 0o7777, group });
            }
            Ok(())
        })?;
        Ok(Self { nodes, texts })
    }

    /// The text of a file in [`TEXTS`].
    pub(super) fn text(&self, path: &str) -> Option<&Text> {
        self.texts.get(Path::new(path))
    }

    /// Whether the path is a symbolic link.
    pub(super) fn is_link(&self, path: &str) -> bool {
        matches!(self.nodes.get(Path::new(path)), Some(Node::Link(_)))
    }

    /// Whether there is something at the path itself, if only a link that leads nowhere, as services are enabled by.
    pub(super) fn has(&self, path: impl AsRef<Path>) -> bool {
        self.nodes.contains_key(path.as_ref())
    }

    /// Whether there is a file or link of this name in a directory of `parent`, as services are enabled by.
    pub(super) fn has_below(&self, parent: &str, name: &str) -> bool {
        let parent = Path::new(parent);
        let below = self.nodes.range(parent.to_owned()..).map(|(path, _)| path);
        below.take_while(|path| path.starts_with(parent)).any(|path| {
            path.file_name().is_some_and(|found| found == name) && path.ancestors().nth(2) == Some(parent)
        })
    }

    /// Where a path leads after all links. `None` if it leads nowhere.
    pub(super) fn resolve(&self, path: &str) -> Option<PathBuf> {
        let mut rest: Vec<_> = parts(Path::new(path));
        let mut at = PathBuf::new();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == ".." {
                at.pop();
                continue;
            }
            let next = at.join(part);
            match self.nodes.get(&next) {
                Some(Node::Link(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    if target.is_absolute() {
                        at.clear();
                    }
                    rest.extend(parts(target));
                }
                _ => at = next,
            }
        }
        self.nodes.contains_key(&at).then_some(at)
    }

    /// Whether a path leads to something.
    pub(super) fn leads(&self, path: &str) -> bool {
        self.resolve(path).is_some()
    }
}

/// The parts of a path, the first one last.
fn parts(path: &Path) -> Vec<std::ffi::OsString> {
    let mut parts: Vec<_> = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
        .collect();
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn contents() -> Contents {
        let link = |target: &str| Node::Link(target.into());
        let nodes = [
            ("sbin", link("usr/sbin")),
            ("usr/sbin/init", link("../lib/systemd/systemd")),
            ("usr/lib/systemd/systemd", Node::Other),
            ("loop", link("loop")),
            ("etc/init", link("/gone")),
            ("etc/systemd/system/multi-user.target.wants/a.service", link("/gone")),
        ];
        Contents {
            nodes: nodes.into_iter().map(|(path, node)| (path.into(), node)).collect(),
            texts: BTreeMap::new(),
        }
    }

    #[rstest]
    #[case::through_links("/sbin/init", Some("usr/lib/systemd/systemd"))]
    #[case::round_and_round("loop", None)]
    #[case::nowhere("etc/init", None)]
    #[case::missing("bin/sh", None)]
    fn paths_lead_where_links_lead(#[case] path: &str, #[case] expected: Option<&str>) {
        assert_eq!(contents().resolve(path), expected.map(PathBuf::from));
    }

    #[test]
    fn an_enabled_service_is_found_in_its_target() {
        assert!(contents().has_below("etc/systemd/system", "a.service"));
        assert!(!contents().has_below("etc/systemd/system", "b.service"));
        assert!(!contents().has_below("etc/systemd", "a.service"));
    }
}
