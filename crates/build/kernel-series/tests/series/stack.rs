//! The reader: what each series takes, and every rule of the form.

use std::{fs, path::Path};

use kernel_series::{Error, Stack};
use rstest::rstest;
use tempfile::TempDir;

const SERIES: [&str; 2] = ["7.3", "6.12"];

const STACK: &str = r#"
[[group]]
name = "first"
purpose = "one"

[[group]]
name = "mail"
purpose = "two"
product = false
expires = "never"

[without."6.12"]
"first/0002-b.patch" = "6.12 does not have it"

[override."6.12"]
"first/0001-a.patch" = "renamed later"
"#;

fn patch(subject: &str) -> String {
    format!(
        "Subject: sum: {subject}\n\nThe sum.\n---\n f | 1 +\n 1 file changed, 1 insertion(+)\n\n\
         diff --git a/f b/f\nindex 1111111..2222222 100644\n--- a/f\n+++ b/f\n@@ -1 +1,2 @@\n a\n+b\n"
    )
}

/// A stack of two groups and an override.
fn stack() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "stack.toml", STACK);
    for file in ["first/0001-a.patch", "first/0002-b.patch", "first/6.12/0001-a.patch", "mail/0001-c.patch"] {
        write(dir.path(), file, &patch(file));
    }
    dir
}

fn write(dir: &Path, file: &str, text: &str) {
    let path = dir.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn problems(dir: &Path) -> Vec<String> {
    match Stack::load(dir, SERIES) {
        Err(Error::Malformed { problems, .. }) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[case("7.3", &["first/0001-a.patch", "first/0002-b.patch"])]
#[case("6.12", &["first/6.12/0001-a.patch"])]
fn a_series_takes_the_common_files_but_for_its_exceptions(#[case] series: &str, #[case] expected: &[&str]) {
    let dir = stack();
    let stack = Stack::load(dir.path(), SERIES).unwrap();
    let paths: Vec<String> = stack.product(series).into_iter().map(|patch| patch.path).collect();
    assert_eq!(paths, expected);
}

#[test]
fn a_group_that_is_mailed_only_is_read_but_not_applied() {
    let dir = stack();
    let stack = Stack::load(dir.path(), SERIES).unwrap();
    let mail = &stack.groups()[1];
    assert!(!mail.product && mail.expires.as_deref() == Some("never"));
    assert_eq!(stack.of(mail, "6.12")[0].path, "mail/0001-c.patch");
}

#[test]
fn a_directory_that_does_not_exist_is_an_empty_stack() {
    let dir = tempfile::tempdir().unwrap();
    let stack = Stack::load(&dir.path().join("patches"), SERIES).unwrap();
    assert_eq!(stack.product("7.3"), []);
}

#[test]
fn a_whole_group_can_be_excepted() {
    let dir = stack();
    let text = STACK.replace("first/0002-b.patch", "mail/*");
    write(dir.path(), "stack.toml", &text);
    let stack = Stack::load(dir.path(), SERIES).unwrap();
    assert_eq!(stack.of(&stack.groups()[1], "6.12"), []);
}

#[rstest]
#[case::unknown_group("other/0001-a.patch", "other: belongs to no group")]
#[case::loose_patch("0001-a.patch", "0001-a.patch: belongs to no group")]
#[case::unknown_series("first/5.4/0001-a.patch", "first/5.4: is named after no tracked series")]
#[case::clash("first/0001-z.patch", "first/0001-z.patch: has the number of 0001-a.patch")]
#[case::no_number("first/z.patch", "first/z.patch: is not named NNNN-subject.patch")]
#[case::override_without_reason(
    "mail/6.12/0001-c.patch",
    "mail/6.12/0001-c.patch: replaces the common file without a reason"
)]
fn a_file_too_many_is_refused(#[case] file: &str, #[case] expected: &str) {
    let dir = stack();
    write(dir.path(), file, &patch("more"));
    assert_eq!(problems(dir.path()), [expected]);
}

#[rstest]
#[case::no_file(
    "\"first/0001-a.patch\" = \"renamed",
    "\"mail/0001-c.patch\" = \"renamed",
    "[override.\"6.12\"]: no file mail/6.12/0001-c.patch"
)]
#[case::no_reason("6.12 does not have it", "", "[without.\"6.12\"]: no reason for first/0002-b.patch")]
#[case::no_patch(
    "first/0002-b.patch",
    "first/0003-b.patch",
    "[without.\"6.12\"]: first/0003-b.patch names no patch"
)]
#[case::unknown_series(
    "[without.\"6.12\"]",
    "[without.\"6.13\"]",
    "[without.\"6.13\"]: is no tracked series"
)]
#[case::both(
    "first/0002-b.patch\" = \"6.12",
    "first/0001-a.patch\" = \"6.12",
    "[override.\"6.12\"]: the series is without first/0001-a.patch"
)]
#[case::twice("name = \"mail\"", "name = \"first\"", "group first is there twice")]
#[case::no_purpose("purpose = \"two\"", "purpose = \"\"", "group mail has no purpose")]
fn an_entry_that_is_wrong_is_refused(#[case] from: &str, #[case] to: &str, #[case] expected: &str) {
    let dir = stack();
    assert!(STACK.contains(from));
    write(dir.path(), "stack.toml", &STACK.replacen(from, to, 1));
    let found = problems(dir.path());
    assert!(found.iter().any(|problem| problem.ends_with(expected)), "{found:?}");
}

#[test]
fn a_patch_with_an_address_is_refused() {
    let dir = stack();
    write(dir.path(), "mail/0001-c.patch", &patch("c").replace("The sum.", "Signed-off-by: A <a@b.org>"));
    assert_eq!(problems(dir.path()), ["mail/0001-c.patch: the message has a Signed-off-by line"]);
}

#[test]
fn the_stack_of_this_repository_is_well_formed() {
    let kernel = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../kernel"));
    let stack = Stack::load(&kernel.join("patches"), SERIES).map_err(miette::Report::new).unwrap();
    assert!(SERIES.iter().all(|series| !stack.product(series).is_empty()));
}
