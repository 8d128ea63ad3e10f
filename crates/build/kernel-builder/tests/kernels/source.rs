//! Sources: fetched, verified, unpacked and patched whole, or not at all.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    process::Command,
};

use crate::fixture::{FILES, PATCH, Place, compress, new_key, tarball};
use kernel_builder::{Error, FetchError, Options, PatchError, TreeError};

#[test]
fn the_newest_release_is_verified_patched_and_locked() {
    let place = Place::new();
    place.patch("0001-sum-subtract.patch", PATCH);
    let tree = place.builder().prepare("7.3").unwrap();
    assert_eq!(tree.version, "7.3.4");
    assert_eq!(tree.epoch, 1_795_000_000);
    assert_eq!(tree.patches[0].name, "test/0001-sum-subtract.patch");
    assert!(fs::read_to_string(tree.path.join("lib/sum.c")).unwrap().contains("a - b"));
    // The pristine tree, which the patched one links to, is as it was.
    let pristine = place.cache().join("pristine").join(&tree.source.sha256);
    assert!(fs::read_to_string(pristine.join("lib/sum.c")).unwrap().contains("a + b"));
    let (linked, own) = (pristine.join("init/main.c"), tree.path.join("init/main.c"));
    assert_eq!(fs::metadata(linked).unwrap().ino(), fs::metadata(own).unwrap().ino());
    let lock = fs::read_to_string(place.kernel_dir().join("series.lock")).unwrap();
    assert!(lock.contains("version = \"7.3.4\"") && lock.contains(&tree.source.sha256), "{lock}");
}

#[test]
fn a_locked_release_stays_until_an_update_is_asked_for() {
    let place = Place::new();
    place.builder().prepare("7.3").unwrap();
    place.offer("7.3.10", &tarball("7.3.10", FILES), &place.key);
    assert_eq!(place.builder().prepare("7.3").unwrap().source.version, "7.3.4");
    let updating = place.builder_with(Options { update: true, ..place.options() });
    assert_eq!(updating.prepare("7.3").unwrap().source.version, "7.3.10");
}

#[test]
fn a_damaged_download_is_refused() {
    let place = Place::new();
    let tarball = place.mirror().join("linux-7.3.4.tar.xz");
    let mut bytes = fs::read(&tarball).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&tarball, bytes).unwrap();
    let error = place.builder().prepare("7.3").unwrap_err();
    assert!(matches!(error, Error::Fetch(FetchError::WrongHash { .. })), "{error}");
    assert_nothing_kept(&place);
}

#[test]
fn a_truncated_tarball_is_refused_even_if_it_is_listed() {
    let place = Place::new();
    let tarball = place.mirror().join("linux-7.3.4.tar.xz");
    let bytes = fs::read(&tarball).unwrap();
    fs::write(&tarball, &bytes[..bytes.len() - 40]).unwrap();
    place.list();
    let error = place.builder().prepare("7.3").unwrap_err();
    assert!(matches!(error, Error::Fetch(FetchError::BadArchive { .. })), "{error}");
    assert_nothing_kept(&place);
}

#[test]
fn a_tampered_tarball_is_refused_even_if_it_is_listed() {
    let place = Place::new();
    let mut files = FILES.to_vec();
    files[3].1 = "int sum(int a, int b)\n{\n\treturn a * b;\n}\n";
    fs::write(place.mirror().join("linux-7.3.4.tar.xz"), compress(&tarball("7.3.4", &files))).unwrap();
    place.list();
    let error = place.builder().prepare("7.3").unwrap_err();
    assert!(
        matches!(&error, Error::Fetch(FetchError::BadSignature { problem, .. }) if problem.contains("does not verify")),
        "{error}"
    );
    assert_nothing_kept(&place);
}

#[test]
fn a_signature_by_a_key_that_is_not_pinned_is_refused() {
    let place = Place::new();
    place.offer("7.3.4", &tarball("7.3.4", FILES), &new_key());
    let error = place.builder().prepare("7.3").unwrap_err();
    assert!(
        matches!(&error, Error::Fetch(FetchError::BadSignature { problem, .. }) if problem.contains("pinned")),
        "{error}"
    );
    assert_nothing_kept(&place);
}

fn assert_nothing_kept(place: &Place) {
    for what in ["downloads", "pristine", "trees"] {
        assert_eq!(place.cached(what), Vec::<String>::new(), "left in {what}");
    }
    assert!(!place.kernel_dir().join("series.lock").exists());
}

#[test]
fn a_patch_that_does_not_apply_is_named_with_file_and_hunk() {
    let place = Place::new();
    place.patch("0001-sum-subtract.patch", PATCH);
    // The first hunk of the file applies, the second does not.
    let second = PATCH
        .replace("@@ -1,4 +1,4 @@\n int sum(int a, int b)\n {\n-\treturn a + b;\n+\treturn a - b;\n }\n", "")
        .replace("lib/sum.c", "init/main.c")
        .replace("1 insertion(+)", "2 insertions(+)")
        + "@@ -1,3 +1,4 @@\n int sum(int a, int b);\n+int more;\n \n int start_kernel(void)\n\
           @@ -4,3 +5,3 @@\n {\n-\treturn sum(3, 4);\n+\treturn sum(5, 6);\n }\n";
    place.patch("0002-no.patch", &second);
    let error = place.builder().prepare("7.3").unwrap_err();
    let Error::Tree(TreeError::Patch(PatchError::DoesNotApply { patch, file, hunk, .. })) = &error else {
        panic!("{error}")
    };
    assert!(patch.ends_with("0002-no.patch"), "{patch:?}");
    assert_eq!(file, "init/main.c");
    assert_eq!(hunk, "2 (@@ -4,3 +5,3 @@)");
    assert_eq!(place.cached("trees"), Vec::<String>::new(), "no half-patched tree");
}

#[test]
fn a_changed_patch_gives_only_the_files_it_changes_a_new_time() {
    let place = Place::new();
    place.patch("0001-sum-subtract.patch", PATCH);
    let tree = place.builder().prepare("7.3").unwrap().path;
    let time = |file: &str| fs::metadata(tree.join(file)).unwrap().modified().unwrap();
    let (sum, main) = (time("lib/sum.c"), time("init/main.c"));
    // Another patch, of another file: lib/sum.c comes out the same and must look the same.
    let other = PATCH.replace("lib/sum.c", "init/extra.c");
    let hunk = other.find("@@").unwrap();
    let other = other[..hunk]
        .replace("--- a/init/extra.c", "--- /dev/null")
        .replace("index 1", "new file mode 100644\nindex 1")
        .replace(", 1 deletion(-)", "")
        + "@@ -0,0 +1 @@\n+int extra;\n";
    place.patch("0002-extra.patch", &other);
    place.builder().prepare("7.3").unwrap();
    assert_eq!((sum, main), (time("lib/sum.c"), time("init/main.c")));
    assert!(tree.join("init/extra.c").is_file());
    // Without patches the pristine file is back. Its own time is older than objects made of its predecessor.
    fs::remove_dir_all(place.kernel_dir().join("patches")).unwrap();
    place.builder().prepare("7.3").unwrap();
    assert!(fs::read_to_string(tree.join("lib/sum.c")).unwrap().contains("a + b"));
    assert!(time("lib/sum.c") > sum, "make would not see the change");
    assert_eq!(time("init/main.c"), main);
    assert!(!tree.join("init/extra.c").exists());
}

#[test]
fn an_overlay_is_laid_over_the_tree_and_its_drivers_are_hooked_in() {
    let place = Place::new();
    let driver = place.kernel_dir().join("overlay/drivers/virt/vmmci");
    fs::create_dir_all(driver.join("parts")).unwrap();
    fs::write(driver.join("Kconfig"), "config VMMCI\n\ttristate \"vmmci\"\n").unwrap();
    fs::write(driver.join("Makefile"), "obj-$(CONFIG_VMMCI) += vmmci.o\n").unwrap();
    fs::write(driver.join("parts/a.c"), "int a;\n").unwrap();
    let tree = place.builder().prepare("7.3").unwrap();
    let text = |file: &str| fs::read_to_string(tree.path.join(file)).unwrap();
    assert_eq!(text("drivers/virt/vmmci/parts/a.c"), "int a;\n");
    assert_eq!(
        text("drivers/virt/Kconfig"),
        "if VIRT_DRIVERS\n\nconfig VMGENID\n\ttristate \"A\"\n\nsource \"drivers/virt/vmmci/Kconfig\"\n\nendif\n"
    );
    assert_eq!(text("drivers/virt/Makefile"), "obj-$(CONFIG_VMGENID) += vmgenid.o\nobj-y += vmmci/\n");
    assert_eq!(tree.overlay.len(), 3);
}

#[test]
fn a_link_in_an_overlay_stands_for_what_it_points_to() {
    let place = Place::new();
    let shared = place.dir.path().join("shared");
    fs::create_dir_all(&shared).unwrap();
    fs::write(shared.join("lib.rs"), "//! Shared.\n").unwrap();
    let driver = place.kernel_dir().join("overlay/drivers/virt/vmmci");
    fs::create_dir_all(&driver).unwrap();
    fs::write(driver.join("Kconfig"), "config VMMCI\n\ttristate \"vmmci\"\n").unwrap();
    fs::write(driver.join("Makefile"), "obj-$(CONFIG_VMMCI) += vmmci.o\n").unwrap();
    symlink(&shared, driver.join("protocol")).unwrap();
    let before = place.builder().prepare("7.3").unwrap();
    let file = before.path.join("drivers/virt/vmmci/protocol/lib.rs");
    assert_eq!(fs::read_to_string(&file).unwrap(), "//! Shared.\n");
    assert!(!file.parent().unwrap().is_symlink());
    let hash = before.hash.clone();
    drop(before);
    fs::write(shared.join("lib.rs"), "//! Changed.\n").unwrap();
    let after = place.builder().prepare("7.3").unwrap();
    assert_ne!(hash, after.hash);
    assert_eq!(fs::read_to_string(&file).unwrap(), "//! Changed.\n");
}

#[test]
fn a_link_to_nowhere_in_an_overlay_is_named() {
    let place = Place::new();
    let virt = place.kernel_dir().join("overlay/drivers/virt");
    fs::create_dir_all(&virt).unwrap();
    symlink("nowhere", virt.join("protocol")).unwrap();
    let error = place.builder().prepare("7.3").unwrap_err();
    assert!(error.to_string().contains("drivers/virt/protocol"), "{error}");
}

#[test]
fn an_overlay_does_not_replace_files() {
    let place = Place::new();
    let virt = place.kernel_dir().join("overlay/drivers/virt");
    fs::create_dir_all(&virt).unwrap();
    fs::write(virt.join("Makefile"), "").unwrap();
    let error = place.builder().prepare("7.3").unwrap_err();
    assert!(matches!(error, Error::Tree(TreeError::Overlay { .. })), "{error}");
    assert_eq!(place.cached("trees"), Vec::<String>::new());
}

#[test]
fn offline_builds_from_the_cache_or_says_what_is_missing() {
    let place = Place::new();
    let offline = || place.builder_with(Options { offline: true, ..place.options() });
    let error = offline().prepare("7.3").unwrap_err();
    assert!(matches!(error, Error::Fetch(FetchError::Offline { .. })), "{error}");
    let online = place.builder().prepare("7.3").unwrap();
    fs::remove_dir_all(place.mirror()).unwrap();
    // A fresh checkout on the same machine has no lock file yet.
    fs::remove_file(place.kernel_dir().join("series.lock")).unwrap();
    assert_eq!(offline().prepare("7.3").unwrap().hash, online.hash);
}

#[test]
fn a_directory_of_the_users_is_copied_patched_and_left_alone() {
    let place = Place::new();
    place.patch("0001-sum-subtract.patch", PATCH);
    let mine = place.dir.path().join("mine");
    write_tree(&mine);
    let tree = place.builder().prepare_dir("7.3", &mine).unwrap();
    assert!(fs::read_to_string(tree.path.join("lib/sum.c")).unwrap().contains("a - b"));
    assert!(fs::read_to_string(mine.join("lib/sum.c")).unwrap().contains("a + b"));
    assert_ne!(
        fs::metadata(mine.join("init/main.c")).unwrap().ino(),
        fs::metadata(tree.path.join("init/main.c")).unwrap().ino(),
        "an editor that writes in place must not reach the copy"
    );
    let (path, hash) = (tree.path.clone(), tree.hash.clone());
    drop(tree);
    // An edit is followed, a removal too; a patch that is already there is left out.
    fs::write(mine.join("lib/sum.c"), FILES[3].1.replace("a + b", "a - b")).unwrap();
    fs::remove_file(mine.join("drivers/virt/Makefile")).unwrap();
    let tree = place.builder().prepare_dir("7.3", &mine).unwrap();
    assert_eq!(tree.path, path);
    assert_ne!(tree.hash, hash);
    assert!(tree.patches[0].already_there);
    assert!(!tree.path.join("drivers/virt/Makefile").exists());
}

#[test]
fn of_any_other_directory_the_copy_is_cleaned_by_its_own_make() {
    let place = Place::new();
    let mine = place.dir.path().join("mine");
    write_tree(&mine);
    fs::write(mine.join(".config"), "A=1").unwrap();
    fs::write(mine.join("init/main.o"), "object").unwrap();
    let tree = place.builder().prepare_dir("7.3", &mine).unwrap();
    assert!(!tree.path.join(".config").exists() && !tree.path.join("init/main.o").exists());
    assert!(mine.join(".config").exists() && mine.join("init/main.o").exists());
}

#[test]
fn of_a_git_tree_what_git_ignores_stays_behind() {
    let place = Place::new();
    let mine = place.dir.path().join("mine");
    write_tree(&mine);
    fs::write(mine.join(".gitignore"), "*.o\n").unwrap();
    fs::write(mine.join("init/main.o"), "object").unwrap();
    fs::write(mine.join("init/new.c"), "int not_yet_added;\n").unwrap();
    let git = |args: &[&str]| {
        let ok = Command::new("git").arg("-C").arg(&mine).args(args).status().unwrap().success();
        assert!(ok, "git {args:?}");
    };
    git(&["init", "-q"]);
    git(&["add", "Makefile", "Kconfig", "lib"]);
    let tree = place.builder().prepare_dir("7.3", &mine).unwrap();
    assert!(!tree.path.join("init/main.o").exists());
    assert!(tree.path.join("init/new.c").is_file());
    assert!(!tree.path.join(".git").exists());
}

fn write_tree(dir: &Path) {
    for (name, text) in FILES {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

#[test]
fn a_directory_that_is_no_kernel_is_refused() {
    let place = Place::new();
    let empty = place.dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let error = place.builder().prepare_dir("7.3", &empty).unwrap_err();
    assert!(matches!(error, Error::Tree(TreeError::NotAKernel { .. })), "{error}");
}

#[test]
fn what_a_killed_run_left_behind_is_removed() {
    let place = Place::new();
    let tree = place.builder().prepare("7.3").unwrap();
    let slot = tree.path.file_name().unwrap().display().to_string();
    drop(tree);
    let stale = place.cache().join(format!("trees/.preparing-{slot}-killed"));
    fs::create_dir_all(stale.join("tree")).unwrap();
    place.patch("0001-sum-subtract.patch", PATCH);
    place.builder().prepare("7.3").unwrap();
    assert_eq!(place.cached("trees"), [slot]);
}
