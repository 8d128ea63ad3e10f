//! The stack carried to another kernel, and written back.

use std::{fs, path::PathBuf};

use kernel_series::{Outcome, Rebase, Refresh, Refreshed, Release, Survey, rebase, refresh};
use support::progress::Quiet;

use crate::fixture::{Place, USED, git, write};

const A: &str = "first/0001-a.patch";
const B: &str = "second/0001-b.patch";

/// A change between the insertions of the second patch: git merges it, and cannot apply the hunk.
const BETWEEN: (&str, &str) = ("\n\n\tfast();\n\n", "\n\n\tfast(); /* Again. */\n\n");

/// The kernel with a file changed.
fn onto(place: &Place, file: &str, from: &str, to: &str) -> Release {
    let path = place.dir.path().join("newer");
    let status = std::process::Command::new("cp").arg("-a").arg(place.kernel()).arg(&path).status().unwrap();
    assert!(status.success());
    let text = fs::read_to_string(path.join(file)).unwrap();
    assert!(text.contains(from));
    write(&path.join(file), &text.replacen(from, to, 1));
    Release { path, version: "7.3.5".to_owned(), hash: "fedcba9876543210".to_owned() }
}

fn tree(place: &Place) -> PathBuf {
    place.dir.path().join("tree")
}

fn carry(place: &Place, onto: &Release) -> Survey {
    rebase(&Rebase {
        stack: &place.load(),
        series: "7.3",
        from: &place.release(),
        onto,
        cache: &place.cache(),
        tree: &tree(place),
        progress: &Quiet,
    })
    .map_err(miette::Report::new)
    .unwrap()
}

fn write_back(place: &Place, series: &str) -> Refreshed {
    refresh(&Refresh { stack: &place.load(), series, is_default: series == "7.3", tree: &tree(place) })
        .map_err(miette::Report::new)
        .unwrap()
}

#[test]
fn a_kernel_that_changed_elsewhere_takes_the_stack_as_it_is() {
    let place = Place::new();
    let onto = onto(&place, "Makefile", "SUBLEVEL = 4", "SUBLEVEL = 5");
    let survey = carry(&place, &onto);
    assert_eq!(survey.patches.iter().map(|patch| patch.outcome).collect::<Vec<_>>(), [Outcome::Applied; 2]);
    assert_eq!(write_back(&place, "7.3"), Refreshed::default());
}

#[test]
fn a_hunk_whose_context_changed_is_merged_and_written_back() {
    let place = Place::new();
    let onto = onto(&place, "drivers/misc/fast.c", BETWEEN.0, BETWEEN.1);
    let survey = carry(&place, &onto);
    assert_eq!(survey.patches[1].outcome, Outcome::Merged, "{}", survey.text());
    assert_eq!(survey.patches[1].merged_hunks, 1);
    assert_eq!(write_back(&place, "7.3").written, [B]);
}

#[test]
fn a_hunk_that_needs_a_person_is_named_and_the_tree_is_left_for_them() {
    let place = Place::new();
    let onto = onto(&place, "drivers/misc/fast.c", "\treturn 0;\n", "\treturn 7;\n");
    let survey = carry(&place, &onto);
    assert!(!survey.is_clean());
    let [conflict] = &survey.patches[1].conflicts[..] else { panic!("{}", survey.text()) };
    assert_eq!(conflict.file, "drivers/misc/fast.c");
    assert!(conflict.hunks[0].starts_with("hunk 1 (@@ -"), "{:?}", conflict.hunks);
    // The person goes on.
    let file = tree(&place).join("drivers/misc/fast.c");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("<<<<<<<"), "{text}");
    let text: Vec<&str> = text.lines().filter(|line| !line.starts_with(['<', '=', '>'])).collect();
    write(&file, &(text.join("\n") + "\n"));
    git(&tree(&place), &["add", "drivers/misc/fast.c"]);
    git(&tree(&place), &["am", "--continue"]);
    assert_eq!(write_back(&place, "7.3").written, [B]);
    assert!(place.patch(B).contains("difference(2, 1)"));
}

#[test]
fn a_patch_that_the_kernel_has_is_told_apart() {
    let place = Place::new();
    let onto = onto(&place, "drivers/misc/fast.c", "\tfast();\n\n\tfast();\n\n\treturn 0;\n", USED);
    assert_eq!(carry(&place, &onto).patches[1].outcome, Outcome::AlreadyThere);
}

#[test]
fn what_differs_in_another_series_becomes_a_file_of_its_own_and_asks_for_a_reason() {
    let place = Place::new();
    let onto = onto(&place, "drivers/misc/fast.c", BETWEEN.0, BETWEEN.1);
    carry(&place, &onto);
    assert_eq!(write_back(&place, "6.12").written, ["second/6.12/0001-b.patch"]);
    assert!(place.patch("stack.toml").ends_with(&format!("[override.\"6.12\"]\n\"{B}\" = \"\"\n")));
}

#[test]
fn notes_are_kept() {
    let place = Place::new();
    place.edit(B, "\n---\n", "\n---\nA note.\n\n");
    let onto = onto(&place, "drivers/misc/fast.c", BETWEEN.0, BETWEEN.1);
    carry(&place, &onto);
    write_back(&place, "7.3");
    assert!(place.patch(B).contains("\n---\nA note.\n\n"), "{}", place.patch(B));
}

#[test]
fn a_foreign_directory_is_refused() {
    let place = Place::new();
    fs::create_dir(tree(&place)).unwrap();
    let onto = onto(&place, "Makefile", "SUBLEVEL = 4", "SUBLEVEL = 5");
    let error = rebase(&Rebase {
        stack: &place.load(),
        series: "7.3",
        from: &place.release(),
        onto: &onto,
        cache: &place.cache(),
        tree: &tree(&place),
        progress: &Quiet,
    })
    .unwrap_err();
    assert!(error.to_string().contains("is no git tree that"), "{error}");
    assert!(place.patch(A).starts_with("Subject: "));
}
