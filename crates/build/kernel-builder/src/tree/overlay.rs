//! The overlay: files of `kernel/overlay/` that are copied to the tree, and drivers hooked into its Kconfig and Makefile.
//!
//! A file has the path that it would have upstream: `kernel/overlay/drivers/virt/vmmci/{Kconfig,Makefile,…}` becomes
//! `drivers/virt/vmmci/`. Each overlay directory below `drivers/` that the tree lacks is a driver: the directory above
//! sources its `Kconfig` and builds it. Files below `Documentation/` need no hook. Files of the tree are changed by
//! patches, never by the overlay.
//!
//! A symbolic link is replaced by the file or directory it points to, so that a driver can share source with the crates
//! of the workspace.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use support::file::{self, write_atomically};
use walkdir::WalkDir;

use crate::tree::error::{Result, TreeError};

/// The overlay's directory in the kernel directory.
pub(crate) const DIR: &str = "overlay";

/// The directories of a tree that the overlay may add files to.
const TOPS: [&str; 2] = ["drivers", "Documentation"];

/// The overlay's files, relative to its directory, sorted; none if there is no such directory.
pub(crate) fn files(overlay: &Path) -> Result<Vec<PathBuf>> {
    if !overlay.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in WalkDir::new(overlay).follow_links(true).sort_by_file_name() {
        let entry = entry.map_err(|e| {
            let path = e.path().unwrap_or(overlay).to_owned();
            file::Error::new("read", path, e)
        })?;
        if entry.file_type().is_file() {
            files.push(entry.path().strip_prefix(overlay).expect("below the overlay").to_owned());
        }
    }
    Ok(files)
}

/// Copies the overlay's files to a tree and hooks new directories of `drivers/` in.
pub(crate) fn lay(overlay: &Path, files: &[PathBuf], tree: &Path) -> Result<()> {
    let refused = |file: &Path, problem: String| TreeError::Overlay {
        file: overlay.join(file),
        problem,
        help: Some("change existing files by a patch in kernel/patches/".to_owned()),
    };
    // The topmost directory that the tree lacks is the driver's; it builds those below it itself.
    let missing = |file: &PathBuf| {
        file.ancestors().skip(1).take_while(|dir| !tree.join(dir).is_dir()).last().map(Path::to_owned)
    };
    let new_dirs: BTreeSet<PathBuf> = files.iter().filter_map(missing).collect();
    for file in files {
        if !TOPS.iter().any(|top| file.starts_with(top)) {
            return Err(refused(file, format!("its directory is none of {}", TOPS.join(", "))));
        }
        let target = tree.join(file);
        if target.exists() {
            return Err(refused(file, format!("the tree already has {}", file.display())));
        }
        let parent = target.parent().expect("a file has a parent");
        fs::create_dir_all(parent).map_err(|e| file::Error::new("create", parent, e))?;
        fs::copy(overlay.join(file), &target).map_err(|e| file::Error::new("create", &target, e))?;
    }
    for dir in new_dirs.iter().filter(|dir| dir.starts_with("drivers")) {
        hook(overlay, tree, dir)?;
    }
    Ok(())
}

/// Adds a driver's directory to the Kconfig and Makefile of the directory above it.
fn hook(overlay: &Path, tree: &Path, dir: &Path) -> Result<()> {
    let name = dir.file_name().expect("a directory below drivers").to_string_lossy();
    let own = tree.join(dir);
    let above = own.parent().expect("below drivers");
    let lacks = |what: &str| TreeError::Overlay {
        file: overlay.join(dir),
        problem: format!("no {what} in it"),
        help: Some(
            "a driver's directory needs a Kconfig with its symbols and a Makefile with its objects"
                .to_owned(),
        ),
    };
    if !own.join("Kconfig").is_file() {
        return Err(lacks("Kconfig"));
    }
    if !own.join("Makefile").is_file() && !own.join("Kbuild").is_file() {
        return Err(lacks("Makefile"));
    }
    let kconfig = above.join("Kconfig");
    let text = read_hooked(&kconfig, overlay, dir)?;
    let source = format!("source \"{}/Kconfig\"", dir.display());
    write_atomically(&kconfig, insert_source(&text, &source).as_bytes())?;
    let makefile = above.join("Makefile");
    let mut text = read_hooked(&makefile, overlay, dir)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.extend(["obj-y += ", &name, "/\n"]);
    Ok(write_atomically(&makefile, text.as_bytes())?)
}

fn read_hooked(path: &Path, overlay: &Path, dir: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|_| TreeError::Overlay {
        file: overlay.join(dir),
        problem: format!("the tree has no {} to hook it into", path.display()),
        help: Some(
            "put the driver below a directory of drivers/ that has a Kconfig and a Makefile".to_owned(),
        ),
    })
}

/// Adds a `source` line at the end of the last menu or condition of a Kconfig, so that the driver has the same conditions
/// as its neighbours.
fn insert_source(kconfig: &str, source: &str) -> String {
    let lines: Vec<&str> = kconfig.lines().collect();
    let closes = |line: &&str| matches!(line.trim(), "endmenu" | "endif");
    let end = lines.iter().rposition(closes).unwrap_or(lines.len());
    let mut out: Vec<&str> = lines[..end].to_vec();
    while out.last().is_some_and(|line| line.is_empty()) {
        out.pop();
    }
    out.extend(["", source, ""]);
    out.extend(&lines[end..]);
    let mut text = out.join("\n").trim_end().to_owned();
    text.push('\n');
    text
}
