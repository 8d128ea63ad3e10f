//! Every other series has the patches of the default one: each difference has a written reason,
//! in `kernel/patches/<series>/differs.toml`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

const KERNEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../kernel");

/// `differs.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Differences {
    /// The series that is followed.
    follows: String,
    /// Its patches that this one is without, with the reasons.
    absent: BTreeMap<String, String>,
    differs: Vec<Difference>,
}

/// Lines, or parts of them, that are others here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    /// The patches' numbers; without, all of them.
    patches: Option<BTreeSet<String>>,
    there: String,
    here: String,
    why: String,
}

/// A series' patches: the number, the whole name, and what each adds to and removes from which files.
struct Patches(BTreeMap<String, (String, String)>);

impl Patches {
    fn read(dir: &Path) -> Self {
        let mut patches = BTreeMap::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let Some(number) = name.strip_suffix(".patch").and_then(|name| name.get(..4)) else { continue };
            let text = fs::read_to_string(&path).unwrap();
            let twice = patches.insert(number.to_owned(), (name.clone(), changes(&text)));
            assert!(twice.is_none(), "{}: {number} is taken", path.display());
        }
        Self(patches)
    }
}

/// What a patch does, without where: the names of files, and the lines that it adds and removes.
fn changes(patch: &str) -> String {
    let (_, diff) = patch.split_once("\ndiff --git ").expect("a patch has a diff");
    // The signature is git's.
    let lines = diff.lines().filter(|line| line.starts_with(['+', '-']) && *line != "-- ");
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Everything in which a series does not follow as its `differs.toml` says.
fn deviations(followed: &Patches, series: &Patches, differences: &Differences) -> Vec<String> {
    let mut found = Vec::new();
    let mut used = vec![false; differences.differs.len()];
    for (number, (name, there)) in &followed.0 {
        let Some((own_name, here)) = series.0.get(number) else {
            if !differences.absent.contains_key(number) {
                found.push(format!("{name} is absent without a reason"));
            }
            continue;
        };
        if differences.absent.contains_key(number) {
            found.push(format!("{name} is said to be absent"));
        }
        if own_name != name {
            found.push(format!("{name} is {own_name}"));
        }
        let mut expected = there.clone();
        for (difference, used) in differences.differs.iter().zip(&mut used) {
            let concerned = difference.patches.as_ref().is_none_or(|patches| patches.contains(number));
            if concerned && expected.contains(&difference.there) {
                expected = expected.replace(&difference.there, &difference.here);
                *used = true;
            }
        }
        if let Some((expected, here)) = expected.lines().zip(here.lines()).find(|(a, b)| a != b) {
            found.push(format!("{name} has\n  {here}\nfor\n  {expected}"));
        } else if expected.len() != here.len() {
            found.push(format!("{name}: the longer one goes on"));
        }
    }
    let unknown = series.0.iter().filter(|(number, _)| !followed.0.contains_key(*number));
    found.extend(unknown.map(|(_, (name, _))| format!("{name} follows no patch")));
    let gone = differences.absent.keys().filter(|number| !followed.0.contains_key(*number));
    found.extend(gone.map(|number| format!("{number} is said to be absent, and nothing has that number")));
    let idle = differences.differs.iter().zip(used).filter(|(_, used)| !used);
    found.extend(idle.map(|(difference, _)| format!("nothing differs by `{}` any more", difference.there)));
    let reasons = differences.absent.values().chain(differences.differs.iter().map(|d| &d.why));
    found.extend(reasons.filter(|why| why.trim().is_empty()).map(|_| "a reason is empty".to_owned()));
    found
}

#[test]
fn every_series_follows_the_default_one_except_for_a_reason() {
    let dir = |series: &str| PathBuf::from(KERNEL).join("patches").join(series);
    let known = kernel_builder::SeriesFile::load(Path::new(KERNEL)).unwrap();
    for series in known.series.keys().filter(|series| **series != known.default) {
        let path = dir(series).join("differs.toml");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let differences: Differences = toml::from_str(&text).unwrap();
        assert_eq!(differences.follows, known.default, "{}", path.display());
        let found =
            deviations(&Patches::read(&dir(&known.default)), &Patches::read(&dir(series)), &differences);
        assert!(found.is_empty(), "{}: say why, or mend the patches:\n{}", path.display(), found.join("\n"));
    }
}

#[test]
fn what_does_not_follow_is_found() {
    let patches = |texts: &[(&str, &str)]| {
        Patches(
            texts
                .iter()
                .map(|(name, text)| (name[..4].to_owned(), ((*name).to_owned(), changes(text))))
                .collect(),
        )
    };
    let patch = |lines: &str| {
        format!("From a\n-- removed\n\ndiff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n{lines}-- \n2.47\n")
    };
    let followed = patches(&[
        ("0001-a", &patch("+new(1);\n x\n")),
        ("0002-b", &patch("-x\n")),
        ("0003-c", &patch("+y\n")),
    ]);
    let differences: Differences = toml::from_str(
        "follows = '7.3'\nabsent = { 0003 = 'none' }\ndiffers = [{ patches = ['0001'], there = 'new(', here = 'old(', why = 'renamed' }]",
    )
    .unwrap();
    let of = |texts: &[(&str, &str)]| deviations(&followed, &patches(texts), &differences);
    let (a, b) = (("0001-a", &*patch(" c\n+old(1);\n")), ("0002-b", &*patch("-x\n")));
    assert_eq!(of(&[a, b]), [""; 0]);
    assert_eq!(of(&[a]), ["0002-b is absent without a reason"]);
    assert_eq!(of(&[a, b, ("0003-c", &patch("+y\n"))]), ["0003-c is said to be absent"]);
    assert_eq!(of(&[a, b, ("0004-d", &patch("+y\n"))]), ["0004-d follows no patch"]);
    assert_eq!(of(&[a, ("0002-z", &patch("-x\n"))]), ["0002-b is 0002-z"]);
    assert_eq!(of(&[a, ("0002-b", &patch("-x\n+y\n"))]), ["0002-b: the longer one goes on"]);
    assert_eq!(of(&[("0001-a", &patch("+old(2);\n")), b]), ["0001-a has\n  +old(2);\nfor\n  +old(1);"]);
    assert_eq!(of(&[("0001-a", &patch("+new(1);\n")), b]), ["0001-a has\n  +new(1);\nfor\n  +old(1);"]);
}
