//! Prepared trees: a pristine tree with its series' patches and the drivers overlay.
//!
//! A prepared tree is made of hard links to the pristine one, so that it costs inodes of directories only and takes a
//! second or two; git and the overlay replace files, never write into them. Each source has one prepared tree at a
//! fixed path. When patches or overlay change, a new tree is made beside it and takes its place, and only the files
//! that differ get a new modification time: make then rebuilds what the change touches and nothing else.

use std::{
    collections::BTreeSet,
    fs::{self, File, FileTimes},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::{RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use crate::{
    Forge,
    cache::{Hash, Lock, hash_file, hold, temp_dir},
    error::{Error, Result},
    overlay, patch, run,
};

/// A kernel tree ready to be configured and built. It stays as it is while this value lives.
#[derive(Debug)]
pub struct PreparedTree {
    /// The tree.
    pub path: PathBuf,
    /// The series it was prepared for.
    pub series: String,
    /// The release its Makefile says: `7.3.4`.
    pub version: String,
    /// SHA-256 over the source, the patches and the overlay.
    pub hash: String,
    /// What the tree was made of.
    pub source: Source,
    /// The patches, in the order they were applied.
    pub patches: Vec<Piece>,
    /// The overlay's files.
    pub overlay: Vec<Piece>,
    /// The source's date, in seconds since 1970: that of its top Makefile, the last file a release touches.
    pub epoch: i64,
    /// Changes when the tree at this path begins anew, so that objects built from its predecessor are not trusted.
    pub instance: String,
    _lock: File,
}

/// Where a tree's source came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// `debian`, `kernel.org` or the user's directory.
    pub origin: String,
    /// The release in its origin's words.
    pub version: String,
    /// SHA-256 of the archive or, for a directory, over its files' names, sizes and times.
    pub sha256: String,
}

/// A patch or overlay file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Its file name, relative to its directory.
    pub name: String,
    /// The SHA-256 of its content.
    pub sha256: String,
    /// Whether a user's tree had the patch already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub already_there: bool,
}

/// What is put on top of a pristine tree.
#[derive(Default)]
pub(crate) struct Additions {
    pub(crate) patch_dir: PathBuf,
    pub(crate) patches: Vec<Piece>,
    pub(crate) overlay_dir: PathBuf,
    pub(crate) overlay: Vec<Piece>,
}

impl Additions {
    /// The series' patches and the drivers overlay of the kernel directory.
    pub(crate) fn of_series(kernel_dir: &Path, series: &str) -> Result<Self> {
        let patch_dir = kernel_dir.join("patches").join(series);
        let overlay_dir = kernel_dir.join("drivers");
        let piece = |dir: &Path, file: &Path| -> Result<Piece> {
            Ok(Piece {
                name: file.display().to_string(),
                sha256: hash_file(&dir.join(file))?,
                already_there: false,
            })
        };
        let patches = patch::list(&patch_dir)?
            .iter()
            .map(|path| piece(&patch_dir, Path::new(path.file_name().expect("a listed file"))))
            .collect::<Result<_>>()?;
        let overlay = overlay::files(&overlay_dir)?
            .iter()
            .map(|file| piece(&overlay_dir, file))
            .collect::<Result<_>>()?;
        Ok(Self { patch_dir, patches, overlay_dir, overlay })
    }

    fn hash(&self, source: &Source) -> String {
        let mut hash = Hash::new();
        hash.field(&source.sha256);
        for (kind, pieces) in [("patch", &self.patches), ("overlay", &self.overlay)] {
            for piece in pieces {
                hash.field(kind).field(&piece.name).field(&piece.sha256);
            }
        }
        hash.hex()
    }

    fn apply(&mut self, tree: &Path, version: &str, skip_applied: bool) -> Result<()> {
        for piece in &mut self.patches {
            let path = self.patch_dir.join(&piece.name);
            if skip_applied && patch::is_applied(tree, &path)? {
                piece.already_there = true;
            } else {
                patch::apply(tree, &path, version)?;
            }
        }
        let files: Vec<PathBuf> = self.overlay.iter().map(|piece| PathBuf::from(&piece.name)).collect();
        overlay::lay(&self.overlay_dir, &files, tree)
    }
}

/// Lies in a prepared tree and says what it is.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    hash: String,
    instance: String,
    patches: Vec<Piece>,
    /// Files that differ from the pristine tree, or are missing from it.
    touched: BTreeSet<PathBuf>,
}

const MARKER: &str = ".vmmlinux-tree.json";

impl Marker {
    fn read(tree: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(tree.join(MARKER)).ok()?).ok()
    }
}

/// The prepared tree of a pristine one, made now or found in place.
///
/// `slot` names its place in the cache; `skip_applied` lets a user's tree have some of the patches already.
pub(crate) fn prepare(
    forge: &Forge,
    series: &str,
    source: Source,
    slot: &str,
    pristine: &Path,
    mut additions: Additions,
    skip_applied: bool,
) -> Result<PreparedTree> {
    let hash = additions.hash(&source);
    let path = forge.cache.dir("trees")?.join(slot);
    let version = kernel_version(pristine)?;
    let lock = forge.cache.lock(&format!("tree-{slot}"), Lock::Shared, &*forge.progress)?;
    let mut marker = Marker::read(&path).filter(|marker| marker.hash == hash);
    if marker.is_none() {
        // Nobody may be building from the tree while it is replaced.
        hold(&lock, &path, Lock::Exclusive, &*forge.progress)?;
        marker = Marker::read(&path).filter(|marker| marker.hash == hash);
    }
    let marker = if let Some(marker) = marker {
        marker
    } else {
        forge.progress.phase(&format!("preparing Linux {version} with {} patches", additions.patches.len()));
        make(&path, &hash, pristine, &mut additions, &version, skip_applied)?
    };
    hold(&lock, &path, Lock::Shared, &*forge.progress)?;
    let makefile = pristine.join("Makefile");
    let epoch = fs::metadata(&makefile).map_err(|e| Error::io("read", &makefile, e))?.mtime();
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

/// Makes a tree under a temporary name and puts it in its place.
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
        run::stdout(run::command("make").arg("-C").arg(&tree).args(["ARCH=x86_64", "mrproper"]))?;
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
    fs::write(&marker_path, text).map_err(|e| Error::io("write", &marker_path, e))?;
    put(&tree, path)?;
    Ok(marker)
}

/// Whether nothing was built or configured inside a tree: the kernel refuses to build elsewhere what was.
fn is_clean(tree: &Path) -> bool {
    ![".config", "include/config", "arch/x86/include/generated"].iter().any(|left| tree.join(left).exists())
}

/// Moves a directory to a place that may be taken; what was there is left under the old name.
pub(crate) fn put(new: &Path, place: &Path) -> Result<()> {
    let cwd = rustix::fs::CWD;
    match renameat_with(cwd, new, cwd, place, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::NOENT) => fs::rename(new, place).map_err(|e| Error::io("create", place, e)),
        Err(e) => Err(Error::io("replace", place, e.into())),
    }
}

fn new_instance() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}", now.as_nanos())
}

/// Links every file of a tree into a new one; where the file system cannot link, copies.
fn link_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in WalkDir::new(from) {
        let entry = entry.map_err(|e| Error::io("read", from, e.into()))?;
        let target = to.join(entry.path().strip_prefix(from).expect("below the tree"));
        let made = if entry.file_type().is_dir() {
            fs::create_dir(&target)
        } else if entry.file_type().is_symlink() {
            fs::read_link(entry.path()).and_then(|link| std::os::unix::fs::symlink(link, &target))
        } else {
            fs::hard_link(entry.path(), &target).or_else(|_| copy_with_times(entry.path(), &target))
        };
        made.map_err(|e| Error::io("create", &target, e))?;
    }
    Ok(())
}

/// Copies a file with its permissions and modification time.
pub(crate) fn copy_with_times(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    set_modified(to, fs::metadata(from)?.modified()?)
}

fn set_modified(path: &Path, time: SystemTime) -> io::Result<()> {
    File::open(path)?.set_times(FileTimes::new().set_modified(time))
}

/// Files of the tree that are not the pristine tree's, and files of that which the tree lacks.
fn differences(pristine: &Path, tree: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut touched = BTreeSet::new();
    for (walked, other) in [(tree, pristine), (pristine, tree)] {
        for entry in WalkDir::new(walked) {
            let entry = entry.map_err(|e| Error::io("read", walked, e.into()))?;
            if entry.file_type().is_dir() {
                continue;
            }
            let relative = entry.path().strip_prefix(walked).expect("below the tree");
            let own = entry.metadata().map_err(|e| Error::io("read", entry.path(), e.into()))?;
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

/// Gives each file its old time if it is the same as in the old tree and a new one if it is not, even when it has
/// become the pristine file again, whose time lies before that of the objects made from its patched predecessor.
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
        settle().map_err(|e| Error::io("set the time of", &new, e))?;
    }
    Ok(())
}

/// The release a tree's top Makefile says: VERSION.PATCHLEVEL.SUBLEVEL and EXTRAVERSION.
fn kernel_version(tree: &Path) -> Result<String> {
    let makefile = tree.join("Makefile");
    let text = fs::read_to_string(&makefile).map_err(|_| Error::NotAKernel {
        path: tree.to_owned(),
        problem: "no Makefile at the top of the tree".to_owned(),
    })?;
    let field = |name: &str| {
        text.lines()
            .take(20)
            .find_map(|line| Some(line.strip_prefix(name)?.trim_start().strip_prefix('=')?.trim().to_owned()))
    };
    match (field("VERSION"), field("PATCHLEVEL"), field("SUBLEVEL")) {
        (Some(version), Some(patch), Some(sub)) if !version.is_empty() => {
            Ok(format!("{version}.{patch}.{sub}{}", field("EXTRAVERSION").unwrap_or_default()))
        }
        _ => Err(Error::NotAKernel {
            path: tree.to_owned(),
            problem: "its Makefile does not say VERSION, PATCHLEVEL and SUBLEVEL".to_owned(),
        }),
    }
}
