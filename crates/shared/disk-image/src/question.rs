//! What is asked about an image.

use std::{fs::File, io, path::Path};

use vmd_release::DiskFormat;

/// An image to judge.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The image's path: messages name it, and base images are relative to it.
    pub path: &'a Path,
    /// The format that vmd is told, if any.
    pub format: Option<DiskFormat>,
    /// Whether the firmware boots from the disk.
    pub boots: bool,
    /// Opens base images.
    pub open: &'a dyn Fn(&Path) -> io::Result<File>,
}
