//! Patches for maintainers.

use std::fs;

use kernel_series::{Error, Export, Exported, Identity, Overlay, export};
use support::progress::Quiet;

use crate::fixture::{Place, git, write};

fn place() -> Place {
    let place = Place::new();
    for group in ["first", "second"] {
        write(
            &place.patches().join(group).join("cover.txt"),
            "misc: Do it\n\nThe problem, the measurement, the test.\n",
        );
    }
    place
}

fn export_group(place: &Place, group: &str, overlay: Option<&Overlay<'_>>) -> Result<Exported, Error> {
    export(&Export {
        stack: &place.load(),
        series: "7.3",
        release: &place.release(),
        group,
        overlay,
        identity: &Identity { name: "A Person".to_owned(), email: "person@kernel.org".to_owned() },
        base_commit: None,
        cache: &place.cache(),
        output: &place.dir.path().join("mail"),
        progress: &Quiet,
    })
}

fn mail(place: &Place, file: &str) -> String {
    fs::read_to_string(place.dir.path().join("mail").join(file)).unwrap()
}

#[test]
fn a_group_has_a_cover_letter_and_numbered_patches_by_the_person_who_exports() {
    let place = place();
    let exported = export_group(&place, "second", None).map_err(miette::Report::new).unwrap();
    assert_eq!(exported.files, ["0000-cover-letter.patch", "0001-misc-Use-it.patch"]);
    let patch = mail(&place, "0001-misc-Use-it.patch");
    for line in [
        "From: A Person <person@kernel.org>",
        "Subject: [PATCH 1/1] misc: Use it",
        "Signed-off-by: A Person <person@kernel.org>",
        "To: Sum Maintainer <sum@kernel.org>",
        "Cc: linux-kernel@vger.kernel.org",
    ] {
        assert!(patch.contains(line), "{line}: {patch}");
    }
}

#[test]
fn the_cover_letter_tells_the_problem_and_the_base() {
    let place = place();
    export_group(&place, "second", None).map_err(miette::Report::new).unwrap();
    let cover = mail(&place, "0000-cover-letter.patch");
    for part in [
        "Subject: [PATCH 0/1] misc: Do it",
        "The problem, the measurement, the test.",
        "base-commit: ",
        "prerequisite-patch-id: ",
    ] {
        assert!(cover.contains(part), "{part}: {cover}");
    }
}

#[test]
fn a_group_without_a_cover_letter_is_refused() {
    let place = Place::new();
    let error = export_group(&place, "first", None).unwrap_err();
    assert!(matches!(error, Error::NoMessage { .. }), "{error}");
}

#[test]
fn export_needs_an_identity() {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "--quiet"]);
    git(dir.path(), &["config", "user.name", ""]);
    let error = Identity::of(dir.path()).unwrap_err();
    assert!(matches!(error, Error::NoIdentity { missing: "user.name" }), "{error}");
}

#[test]
fn the_overlay_is_a_patch_of_new_files_and_hooks() {
    let place = place();
    write(&place.patches().join("overlay.txt"), "misc: Add a driver\n\nThere is none.\n");
    let lay = |tree: &std::path::Path| {
        write(&tree.join("drivers/ours/Makefile"), "obj-y += a.o\n");
        let makefile = tree.join("drivers/Makefile");
        let text = fs::read_to_string(&makefile).unwrap();
        fs::remove_file(&makefile).unwrap();
        write(&makefile, &(text + "obj-y += ours/\n"));
        Ok(())
    };
    let overlay = Overlay { files: vec!["drivers/ours/Makefile".into()], lay: Box::new(lay) };
    let exported = export_group(&place, "overlay", Some(&overlay)).map_err(miette::Report::new).unwrap();
    let patch = mail(&place, &exported.files[0]);
    assert!(patch.contains("+++ b/drivers/ours/Makefile"), "{patch}");
    assert!(patch.contains("+obj-y += ours/"), "{patch}");
}
