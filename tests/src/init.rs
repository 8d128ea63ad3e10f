//! What the first process of a small guest does before anything else.

use std::io;

use rustix::mount::{MountFlags, mount};

/// Mounts the kernel's file systems where everybody looks for them.
///
/// # Errors
///
/// If the directories are not there, or have been mounted on.
pub fn mount_usual() -> io::Result<()> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, target, kind, MountFlags::empty(), None)?;
    }
    Ok(())
}
