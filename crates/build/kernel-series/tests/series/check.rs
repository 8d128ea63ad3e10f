//! The check finds a planted break of each kind, and nothing in a stack that is in order.

use kernel_series::Kind;
use rstest::rstest;

use crate::fixture::{FIRST, Place, SECOND, findings};

const A: &str = "first/0001-a.patch";
const B: &str = "second/0001-b.patch";

#[test]
fn a_stack_in_order_has_no_findings() {
    let report = Place::new().check();
    assert_eq!(findings(&report), [], "{}", report.text());
}

#[test]
fn the_touched_objects_are_compiled_in_each_configuration() {
    let report = Place::new().check();
    let objects = &report.patches[0].objects;
    for configuration in ["ours", "without", "defconfig"] {
        assert_eq!(objects[configuration], ["lib/sum.o"], "{configuration}");
    }
}

#[test]
fn a_patch_that_does_not_apply_is_found() {
    let place = Place::new();
    place.edit(B, " \tfast();\n+#ifdef", " \tslow();\n+#ifdef");
    let report = place.check();
    assert_eq!(findings(&report), [(B.to_owned(), Kind::Apply)]);
}

#[test]
fn a_broken_blob_chain_is_found() {
    let place = Place::new();
    let text = place.patch(B);
    let index = text.lines().find(|line| line.starts_with("index ")).unwrap();
    place.edit(B, &index[..20], &format!("index {}", "1".repeat(14)));
    assert_eq!(findings(&place.check()), [(B.to_owned(), Kind::BlobChain)]);
}

#[test]
fn the_blob_chain_is_that_of_the_default_series() {
    let place = Place::new();
    let text = place.patch(B);
    let index = text.lines().find(|line| line.starts_with("index ")).unwrap();
    place.edit(B, &index[..20], &format!("index {}", "1".repeat(14)));
    assert_eq!(findings(&place.check_with("6.12", false)), []);
}

#[test]
fn a_complaint_of_checkpatch_is_found() {
    let place = Place::new();
    place.stack(&[
        (A, "sum: Add a difference", FIRST),
        (B, "misc: Use it", &[("drivers/misc/fast.c", "int last", "/* FIXME */\nint last")]),
    ]);
    let report = place.check();
    assert_eq!(findings(&report), [(B.to_owned(), Kind::Style)]);
    assert!(report.patches[1].findings[0].cause.contains("WARNING:TODO: fix it"));
}

#[test]
fn a_patch_that_needs_a_later_one_is_found() {
    let place = Place::new();
    let early = &[(
        "drivers/misc/fast.c",
        "\treturn 0;\n",
        "#ifdef CONFIG_SUM\n\treturn later();\n#endif\n\treturn 0;\n",
    )];
    let late = &[("include/linux/sum.h", "int sum", "int later(void);\nint sum")];
    place.stack(&[(A, "misc: Use it", early), (B, "sum: Declare it", late)]);
    let kinds: Vec<_> = findings(&place.check()).into_iter().filter(|(patch, _)| patch == A).collect();
    assert_eq!(
        kinds,
        [Kind::CompileWith, Kind::CompileWithout, Kind::CompileWithout].map(|kind| (A.to_owned(), kind))
    );
}

#[test]
fn a_patch_that_compiles_with_our_option_only_is_found() {
    let place = Place::new();
    let unguarded = &[(
        "drivers/misc/fast.c",
        "\treturn 0;\n",
        "#ifndef CONFIG_OURS\n\treturn none();\n#endif\n\treturn 0;\n",
    )];
    place.stack(&[(A, "sum: Add a difference", FIRST), (B, "misc: Use it", unguarded)]);
    let report = place.check();
    assert_eq!(
        findings(&report),
        [Kind::CompileWithout, Kind::CompileWithout].map(|kind| (B.to_owned(), kind))
    );
}

#[test]
fn an_object_that_changes_without_our_option_is_found() {
    let place = Place::new();
    place.stack(&[
        (A, "sum: Add a difference", FIRST),
        (B, "misc: Use it", &[("drivers/misc/fast.c", "return 0;", "return 1;")]),
    ]);
    let report = place.check();
    assert_eq!(findings(&report), [(B.to_owned(), Kind::ObjectsChange)]);
    assert!(report.patches[1].findings[0].cause.contains("drivers/misc/fast.o"));
}

#[test]
fn an_object_may_change_for_a_reason() {
    let place = Place::new();
    place.stack(&[
        (A, "sum: Add a difference", FIRST),
        (B, "misc: Use it", &[("drivers/misc/fast.c", "return 0;", "return 1;")]),
    ]);
    place.edit(B, "\n---\n", "\n---\nObjects-change: it is one\n\n");
    let report = place.check();
    assert_eq!(findings(&report), []);
    assert_eq!(report.patches[1].objects_change.as_deref(), Some("it is one"));
}

#[test]
fn a_line_above_a_function_does_not_change_its_object() {
    let place = Place::new();
    place.stack(&[
        (A, "sum: Add a difference", FIRST),
        (B, "misc: Use it", &[("drivers/misc/fast.c", "int fast", "/* Fast. */\nint fast")]),
    ]);
    assert_eq!(findings(&place.check()), []);
}

#[test]
fn a_header_stands_for_the_files_that_include_it() {
    let place = Place::new();
    let broken = &[("include/linux/sum.h", "int sum(int a, int b);", "int sum(int a, long b);")];
    place.stack(&[(A, "sum: Change it", broken), (B, "misc: Use it", SECOND_PLAIN)]);
    let report = place.check();
    assert!(findings(&report).contains(&(A.to_owned(), Kind::CompileWith)), "{}", report.text());
}

const SECOND_PLAIN: &[crate::fixture::Edit] = &[("drivers/misc/fast.c", "int last", "/* Last. */\nint last")];

#[rstest]
#[case::same(None, true)]
#[case::changed(Some("It is used."), false)]
fn results_are_kept_until_a_patch_changes(#[case] message: Option<&str>, #[case] cached: bool) {
    let place = Place::new();
    place.check();
    if let Some(message) = message {
        place.edit(B, "It is missing.", message);
    }
    let report = place.check();
    assert_eq!(report.patches.iter().map(|patch| patch.cached).collect::<Vec<_>>(), [true, cached]);
}

#[test]
fn a_group_that_is_mailed_only_applies_to_the_release() {
    let place = Place::new();
    place.stack(&[("mail/0001-c.patch", "misc: Say it", SECOND_PLAIN)]);
    place.stack(&[(A, "sum: Add a difference", FIRST), (B, "misc: Use it", SECOND)]);
    let stack =
        place.patch("stack.toml") + "\n[[group]]\nname = \"mail\"\npurpose = \"all\"\nproduct = false\n";
    crate::fixture::write(&place.patches().join("stack.toml"), &stack);
    let report = place.check();
    assert_eq!(findings(&report), [], "{}", report.text());
    assert_eq!(report.patches.len(), 3);
}
