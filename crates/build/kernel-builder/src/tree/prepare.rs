//! Prepared trees: pristine trees with the patches of a series and the drivers overlay.
//!
//! A prepared tree consists of hard links to the pristine one: it needs inodes for directories only and is made in a
//! second or two. git and the overlay replace files and never write into them. Each source has one prepared tree at a
//! fixed path. If patches or overlay change, a new tree is made beside it and replaces it. Only the files that differ
//! get a new modification time, so that make rebuilds what depends on them and nothing else.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use support::{
    cache::{Cache, Lock, hold},
    file::{self, mirror_tree, replace_dir, temp_dir},
    make::kernel_make,
    progress::Progress,
    run,
};
use walkdir::WalkDir;

use crate::tree::{
    additions::{Additions, Piece, Source},
    error::Result,
    files::{copy_with_times, set_modified},
    version::kernel_version,
};

/// A kernel tree that can be configured and built. It is locked against changes until this value is dropped.
#[derive(Debug)]
pub struct PreparedTree {
    /// The tree.
    pub path: PathBuf,
    /// The series it was prepared for.
    pub series: String,
    /// The release in its Makefile: `7.3.4`.
    pub version: String,
    /// SHA-256 over the source, the patches and the overlay.
    pub hash: String,
    /// The origin of its source.
    pub source: Source,
    /// The patches, in the order they were applied.
    pub patches: Vec<Piece>,
    /// The overlay's files.
    pub overlay: Vec<Piece>,
    /// The date of the source in seconds since 1970: that of the top Makefile, which every release changes last.
    pub epoch: i64,
    /// Identifies the tree at this path: objects built from a tree with another instance are not reused.
    pub instance: String,
    _lock: File,
}

/// The file in a prepared tree that describes it.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    hash: String,
    instance: String,
    patches: Vec<Piece>,
    /// Files that differ from the pristine tree or are only in one of the two.
    touched: BTreeSet<PathBuf>,
}

const MARKER: &str = ".vmmlinux-tree.json";

impl Marker {
    fn read(tree: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(tree.join(MARKER)).ok()?).ok()
    }
}

/// The ingredients of a prepared tree.
pub(crate) struct Ingredients<'a> {
    pub(crate) series: &'a str,
    pub(crate) source: Source,
    /// The name of the tree's directory in the cache.
    pub(crate) slot: &'a str,
    pub(crate) pristine: &'a Path,
    pub(crate) additions: Additions,
    /// Whether the pristine tree, a user's, may contain some of the patches.
    pub(crate) skip_applied: bool,
}

/// The prepared tree of a pristine one, made if the cache does not have it.
pub(crate) fn prepare(
    cache: &Cache,
    progress: &dyn Progress,
    ingredients: Ingredients<'_>,
) -> Result<PreparedTree> {
    let Ingredients { series, source, slot, pristine, mut additions, skip_applied } = ingredients;
    let hash = additions.hash(&source);
    let path = cache.dir("trees")?.join(slot);
    let version = kernel_version(pristine)?;
    let lock = cache.lock(&format!("tree-{slot}"), Lock::Shared, progress)?;
    let mut marker = Marker::read(&path).filter(|marker| marker.hash == hash);
    if marker.is_none() {
        // No other run may build from the tree while it is replaced.
        hold(&lock, &path, Lock::Exclusive, progress)?;
        marker = Marker::read(&path).filter(|marker| marker.hash == hash);
    }
    let marker = if let Some(marker) = marker {
        marker
    } else {
        progress.phase(&format!("preparing Linux {version} with {} patches", additions.patches.len()));
        make(&path, &hash, pristine, &mut additions, &version, skip_applied)?
    };
    hold(&lock, &path, Lock::Shared, progress)?;
    let makefile = pristine.join("Makefile");
    let epoch = fs::metadata(&makefile).map_err(|e| file::Error::new("read", &makefile, e))?.mtime();
    Ok(PreparedTree {
        path,
        series: series.to_owned(),
        version,
        hash,
        source,
        patches: marker.patches,
        overlay: additions.overlay,
        epoch,
        instance: marker.instance,
        _lock: lock,
    })
}

/// Makes a tree under a temporary name and moves it to `path`.
fn make(
    path: &Path,
    hash: &str,
    pristine: &Path,
    additions: &mut Additions,
    version: &str,
    skip_applied: bool,
) -> Result<Marker> {
    let parent = path.parent().expect("a tree lies in the cache");
    let slot = path.file_name().expect("a tree has a name").display();
    let temp = temp_dir(parent, &format!(".preparing-{slot}-"))?;
    let tree = temp.path().join("tree");
    link_tree(pristine, &tree)?;
    if !is_clean(&tree) {
        run::stdout(kernel_make(&tree, None, [("ARCH", "x86_64")]).arg("mrproper"))?;
    }
    additions.apply(&tree, version, skip_applied)?;
    let touched = differences(pristine, &tree)?;
    let old = Marker::read(path);
    if let Some(old) = &old {
        settle_times(path, &tree, touched.union(&old.touched))?;
    }
    let instance = old.map_or_else(new_instance, |old| old.instance);
    let marker = Marker { hash: hash.to_owned(), instance, patches: additions.patches.clone(), touched };
    let text = serde_json::to_vec(&marker).expect("a marker serialises");
    let marker_path = tree.join(MARKER);
    fs::write(&marker_path, text).map_err(|e| file::Error::new("write", &marker_path, e))?;
    replace_dir(&tree, path)?;
    Ok(marker)
}

/// Whether a tree has no configuration or objects in it; the kernel refuses `O=` otherwise.
fn is_clean(tree: &Path) -> bool {
    ![".config", "include/config", "arch/x86/include/generated"].iter().any(|left| tree.join(left).exists())
}

fn new_instance() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}", now.as_nanos())
}

/// Hard-links every file of a tree into a new tree, or copies it if the file system cannot link.
fn link_tree(from: &Path, to: &Path) -> Result<()> {
    let link = |from: &Path, to: &Path| fs::hard_link(from, to).or_else(|_| copy_with_times(from, to));
    Ok(mirror_tree(from, to, |_| true, link)?)
}

/// The files that differ between the two trees or are only in one of them.
fn differences(pristine: &Path, tree: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut touched = BTreeSet::new();
    for (walked, other) in [(tree, pristine), (pristine, tree)] {
        for entry in WalkDir::new(walked) {
            let entry = entry.map_err(|e| file::Error::new("read", walked, e))?;
            if entry.file_type().is_dir() {
                continue;
            }
            let relative = entry.path().strip_prefix(walked).expect("below the tree");
            let own = entry.metadata().map_err(|e| file::Error::new("read", entry.path(), e))?;
            let same = fs::symlink_metadata(other.join(relative)).is_ok_and(|o| {
                o.ino() == own.ino()
                    || (o.len() == own.len()
                        && o.mtime() == own.mtime()
                        && o.mtime_nsec() == own.mtime_nsec())
                    || own.is_symlink()
            });
            if !same {
                touched.insert(relative.to_owned());
            }
        }
    }
    Ok(touched)
}

/// Gives each file that is the same in the old tree its time there, and every other file the current time. That
/// includes a file that is the pristine one again: its own time is older than the objects built from the patched file.
fn settle_times<'a>(old: &Path, new: &Path, files: impl Iterator<Item = &'a PathBuf>) -> Result<()> {
    let now = SystemTime::now();
    for file in files {
        let (old, new) = (old.join(file), new.join(file));
        if !new.is_file() {
            continue;
        }
        let settle = || -> io::Result<()> {
            let same = old.is_file() && fs::read(&old)? == fs::read(&new)?;
            let time = if same { fs::metadata(&old)?.modified()? } else { now };
            if fs::metadata(&new)?.nlink() > 1 {
                let copy = new.with_extension("vmmlinux-copy");
                fs::copy(&new, &copy)?;
                fs::rename(&copy, &new)?;
            }
            set_modified(&new, time)
        };
        settle().map_err(|e| file::Error::new("set the time of", &new, e))?;
    }
    Ok(())
}
