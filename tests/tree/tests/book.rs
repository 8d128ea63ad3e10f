//! The documentation against the tree: links lead somewhere, and what is said to be tested is.

use std::path::{Path, PathBuf};

use regex::Regex;
use tree_tests::{files, read, root};

/// Made when the book is built, by `make book`.
const GENERATED: &str = "reference/configuration-reference.md";

/// Every page that people read.
fn pages() -> Vec<PathBuf> {
    let root = root();
    let mut pages: Vec<_> = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "kernel/README.md",
        "guests/README.md",
        "packaging/openbsd/README.md",
    ]
    .iter()
    .map(|page| root.join(page))
    .collect();
    pages.extend(files("docs", "md").into_iter().filter(|page| !page.ends_with("SUMMARY.md")));
    pages
}

fn is_source(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "rs")
}

/// What a regular expression's first group finds.
fn find<'a>(pattern: &str, text: &'a str) -> Vec<&'a str> {
    Regex::new(pattern).unwrap().captures_iter(text).map(|found| found.get(1).unwrap().as_str()).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for page in pages() {
        for link in find(r"\]\(([^)\s]+)\)", &read(&page)) {
            let target = link.split('#').next().unwrap_or_default();
            if link.contains("://") || target.is_empty() || GENERATED.ends_with(target) {
                continue;
            }
            if !page.parent().unwrap().join(target).exists() {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_that_are_named_exist() {
    let mut wrong = Vec::new();
    for page in pages() {
        for path in find(r"`((?:docs|crates|tests|kernel|guests|fuzz)/[\w./-]+)`", &read(&page)) {
            // Written by a build.
            if !root().join(path).exists() && path != "kernel/series.lock" {
                wrong.push(format!("{}: {path}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_table_of_contents_is_of_pages_that_exist() {
    let docs = root().join("docs");
    let summary = read(&docs.join("SUMMARY.md"));
    let entries = find(r"\]\(([^)]+)\)", &summary);
    assert!(entries.contains(&GENERATED) && read(&root().join("Makefile")).contains(GENERATED));
    for entry in &entries {
        assert!(*entry == GENERATED || docs.join(entry).is_file(), "{entry}");
        assert_eq!(entries.iter().filter(|other| other == &entry).count(), 1, "{entry} is there twice");
    }
    assert!(!docs.join(GENERATED).exists(), "a copy would grow stale");
}

/// The plots of the measurements show figures that the tables beside them have.
#[test]
fn plots_show_the_figures_of_the_tables() {
    let shelf = root().join("docs/measurements");
    let page = read(&shelf.join("2026-11-23-tick-and-idle.md"));
    let plots = find(r"!\[[^\]]+\]\(([^)]+\.svg)\)", &page);
    assert!(!plots.is_empty());
    for plot in plots {
        let text = read(&shelf.join(plot));
        let values = find(r#"class="value"[^>]*>([^<]+)<"#, &text);
        assert!(!values.is_empty(), "{plot}");
        for value in values {
            let written = Regex::new(&format!(r"[ (]{}[ )|]", regex::escape(value))).unwrap();
            assert!(written.is_match(&page), "{plot}: {value}");
        }
    }
}

/// `docs/reference/hosts.md` may say T or L only where a test of that name stands for it, and R only with recordings.
#[test]
fn the_matrix_names_tests_and_recordings_that_there_are() {
    let root = root();
    let page = read(&root.join("docs/reference/hosts.md"));
    let rows: Vec<_> =
        page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")).collect();
    assert!(rows.len() > 20);
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 6, "{row}");
        let how = cells[5];
        let mut tests = Vec::new();
        for part in how.split(';') {
            let names = find(r"`([a-z0-9_]+(?:\.rs)?)`", part);
            let Some((file, names)) = names.split_first().filter(|(file, _)| is_source(file)) else {
                continue;
            };
            let source = read(&root.join("tests/cases").join(file));
            for name in names {
                assert!(source.contains(&format!("fn {name}(")), "there is no test {name} in {file}");
                tests.push(*name);
            }
        }
        let says =
            |letter: &str| cells[1..5].iter().any(|cell| cell.split([' ', ',']).any(|word| word == letter));
        assert!(!says("T") || tests.iter().any(|test| !test.starts_with("long_")), "no test for {row}");
        assert!(!says("L") || tests.iter().any(|test| test.starts_with("long_")), "no long test for {row}");
        for folder in find(r"`tests/golden/([a-z_]+)`", how) {
            assert!(root.join("tests/golden").join(folder).is_dir(), "{folder}");
        }
    }
}

/// `docs/reference/threat-model.md` names tests by crate, file and function; the file may be a directory's `mod.rs`.
#[test]
fn the_threat_model_names_tests_that_there_are() {
    let page = read(&root().join("docs/reference/threat-model.md"));
    let names = find(r"`([a-z0-9_-]+::[a-z0-9_]+::[a-z0-9_]+)`", &page);
    assert!(names.len() > 30, "{names:?}");
    let mut sources = files("crates", "rs");
    sources.extend(files("tests/cases", "rs"));
    sources.extend(files("kernel/overlay", "rs"));

    let missing: Vec<_> =
        names.iter().filter(|name| !sources.iter().any(|source| has_test(source, name))).collect();

    assert!(missing.is_empty(), "{missing:#?}");
}

/// Whether a source file is that of a test's name, and has it.
fn has_test(source: &Path, name: &str) -> bool {
    let [crate_name, file, test] = name.split("::").collect::<Vec<_>>()[..] else { return false };
    let folder = match crate_name {
        "guest-tests" => "cases",
        "vmmci" => "openbsd",
        other => other,
    };
    let is_file = source.file_stem().is_some_and(|stem| stem == file)
        || source.ends_with(Path::new(file).join("mod.rs"));
    is_file
        && source.components().any(|component| component.as_os_str() == folder)
        && read(source).contains(&format!("fn {test}("))
}
