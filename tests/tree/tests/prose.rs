//! The project's language: words and turns that `CONTRIBUTING.md` rules out, in sources, documentation and help texts.

use std::path::{Path, PathBuf};

use regex::Regex;
use tree_tests::{files, read, root};

/// What is refused, and what to write instead.
const EVERYWHERE: [(&str, &str); 8] = [
    (r"\b(who|what|which)soever\b|\bwhoever\b", "name the component"),
    (r"\b_?(somebody|someone)\b|_somebody_|_someone_", "name the actor"),
    (r"\bnobody\b|_nobody(_|\b)", "name the actor, or say what does not happen"),
    (r"\bfor whatever reason\b", "name the cases"),
    (r"\bis no \w+ (that|which|of)\b", "say what it is not: `is not a …`"),
    (r"\bwhich there (is|are) not\b", "name the state: unknown, missing, unused"),
    (r"\bwho (has|have) left\b", "name the component and its exit"),
    (r"\bat all events\b|\bas ever\b|\bhow things (are|stand)\b", "use the plain term"),
];

/// Refused on reference pages, which say how things are and not how they came to be.
const IN_REFERENCE: [(&str, &str); 1] =
    [(r"\bsince then\b|\bno longer\b|\bnot any more\b|\buntil now\b", "say the present state only")];

/// Text that other programs give the words: names of users, messages of Linux.
const QUOTED: [&str; 7] =
    ["nobody:x:", "nobody:*:", ":nobody:", "nobody cared", "\"nobody\"", "\"ctl nobody\"", "the user nobody"];

/// The rules with their patterns as regular expressions, which ignore case.
fn compiled(rules: &[(&str, &'static str)]) -> Vec<(Regex, &'static str)> {
    let regex =
        |pattern| Regex::new(&format!("(?i-u){pattern}")).expect("the pattern is a regular expression");
    rules.iter().map(|(pattern, instead)| (regex(pattern), *instead)).collect()
}

/// Where `text` says what it should not.
fn refused(name: &str, text: &str, rules: &[(Regex, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    for (pattern, instead) in rules {
        for words in pattern.find_iter(text) {
            let (before, after) = (&text[..words.start()], &text[words.start()..]);
            let start = before.rfind('\n').map_or(0, |newline| newline + 1);
            let line = &text[start..words.start() + after.find('\n').unwrap_or(after.len())];
            if !QUOTED.iter().any(|quoted| line.contains(quoted)) {
                let number = before.matches('\n').count() + 1;
                found.push(format!("{name}:{number}: {:?}: {instead}", words.as_str()));
            }
        }
    }
    found
}

fn refused_in(paths: &[PathBuf], rules: &[(&str, &'static str)]) -> Vec<String> {
    let rules = compiled(rules);
    let root = root();
    let name =
        |path: &Path| path.strip_prefix(&root).expect("the file lies in the tree").display().to_string();
    paths.iter().flat_map(|path| refused(&name(path), &read(path), &rules)).collect()
}

#[test]
fn sources_name_their_actors() {
    let mut sources = Vec::new();
    for (folder, extension) in [
        ("crates", "rs"),
        ("fuzz", "rs"),
        ("kernel", "rs"),
        ("kernel/config", "toml"),
        ("tests/cases", "rs"),
        ("tests/src", "rs"),
    ] {
        sources.extend(files(folder, extension));
    }

    let found = refused_in(&sources, &EVERYWHERE);

    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn pages_name_their_actors() {
    let mut pages = files("docs", "md");
    pages.extend(
        [
            "README.md",
            "ARCHITECTURE.md",
            "CONTRIBUTING.md",
            "kernel/README.md",
            "packaging/openbsd/README.md",
        ]
        .map(|page| root().join(page)),
    );

    let found = refused_in(&pages, &EVERYWHERE);

    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn reference_pages_tell_no_story() {
    let found = refused_in(&files("docs/reference", "md"), &IN_REFERENCE);

    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_line_without_an_actor_is_refused_with_its_place() {
    let found = refused("a.rs", "fn f() {}\n// Somebody calls it.\n", &compiled(&EVERYWHERE));

    assert_eq!(found, ["a.rs:2: \"Somebody\": name the actor"]);
}

#[test]
fn the_user_nobody_is_no_offence() {
    let found = refused("passwd", "nobody:x:65534:65534:nobody:/:/bin/false\n", &compiled(&EVERYWHERE));

    assert_eq!(found, [""; 0]);
}
