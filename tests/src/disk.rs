//! Disks of guests that have ended.

use std::{path::Path, process::Command};

/// Asserts that the ext4 file system on the second partition of a raw disk was unmounted: it is clean, and its journal
/// has nothing to recover.
///
/// # Panics
///
/// If it is not, or sfdisk or e2fsprogs are missing.
#[track_caller]
pub fn assert_root_is_clean(image: &Path) {
    let table = Command::new("sfdisk").arg("--json").arg(image).output().expect("sfdisk runs");
    let table: serde_json::Value = serde_json::from_slice(&table.stdout).expect("a partition table");
    let start = table["partitiontable"]["partitions"][1]["start"].as_u64().expect("a second partition");
    let place = format!("{}?offset={}", image.display(), start * 512);

    let superblock = Command::new("/usr/sbin/dumpe2fs").args(["-h", &place]).output().expect("dumpe2fs runs");
    let superblock = String::from_utf8_lossy(&superblock.stdout);
    let field = |name: &str| {
        let value = superblock.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_else(|| panic!("no `{name}` in:\n{superblock}")).trim()
    };
    assert_eq!(field("Filesystem state:"), "clean", "{superblock}");
    let features = field("Filesystem features:");
    assert!(!features.split_whitespace().any(|feature| feature == "needs_recovery"), "{features}");

    let check = Command::new("/usr/sbin/e2fsck").args(["-fn", &place]).output().expect("e2fsck runs");
    assert!(check.status.success(), "{check:?}");
}
