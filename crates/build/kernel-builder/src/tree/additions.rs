//! The changes to a pristine tree: patches and the overlay.

use std::path::{Path, PathBuf};

use kernel_series::Stack;
use serde::{Deserialize, Serialize};
use support::hash::{Hash, hash_file};

use crate::{
    patch,
    tree::{error::Result, overlay},
};

/// The origin of a tree's source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// `debian`, `kernel.org` or the path of the user's directory.
    pub origin: String,
    /// The release as its origin names it.
    pub version: String,
    /// SHA-256 of the archive or, for a directory, over its files' names, sizes and times.
    pub sha256: String,
}

/// A patch or a file of the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Its file name, relative to its directory.
    pub name: String,
    /// The SHA-256 of its content.
    pub sha256: String,
    /// Whether the user's tree contained the patch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub already_there: bool,
}

/// The changes to a pristine tree.
#[derive(Default)]
pub(crate) struct Additions {
    pub(crate) patch_dir: PathBuf,
    pub(crate) patches: Vec<Piece>,
    pub(crate) overlay_dir: PathBuf,
    pub(crate) overlay: Vec<Piece>,
}

impl Additions {
    /// A series' patches of the stack, and the overlay of the kernel directory.
    pub(crate) fn of_series(kernel_dir: &Path, stack: &Stack, series: &str) -> Result<Self> {
        let patch_dir = stack.dir().to_owned();
        let overlay_dir = kernel_dir.join(overlay::DIR);
        let piece = |dir: &Path, file: &Path| -> Result<Piece> {
            Ok(Piece {
                name: file.display().to_string(),
                sha256: hash_file(&dir.join(file))?,
                already_there: false,
            })
        };
        let patches = stack
            .product(series)
            .iter()
            .map(|patch| piece(&patch_dir, Path::new(&patch.path)))
            .collect::<Result<_>>()?;
        let overlay = overlay::files(&overlay_dir)?
            .iter()
            .map(|file| piece(&overlay_dir, file))
            .collect::<Result<_>>()?;
        Ok(Self { patch_dir, patches, overlay_dir, overlay })
    }

    /// The hash over the source and these changes.
    pub(crate) fn hash(&self, source: &Source) -> String {
        let mut hash = Hash::new();
        hash.field(&source.sha256);
        for (kind, pieces) in [("patch", &self.patches), ("overlay", &self.overlay)] {
            for piece in pieces {
                hash.field(kind).field(&piece.name).field(&piece.sha256);
            }
        }
        hash.hex()
    }

    /// Applies the patches and lays the overlay over the tree. With `skip_applied`, patches that the tree contains are
    /// marked instead.
    pub(crate) fn apply(&mut self, tree: &Path, version: &str, skip_applied: bool) -> Result<()> {
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
