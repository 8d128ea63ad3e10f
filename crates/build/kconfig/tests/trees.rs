//! The fragments against real kernel trees, named by `VMMLINUX_TREES` as `7.3=DIR:6.12=DIR`.
//!
//! `VMMLINUX_MAKE_VARS` (as `RUSTC=…,BINDGEN=…`) is passed to the kernel's make.

use std::{env, path::PathBuf};

use kconfig::{Backends, Expr, Fragments, Resolve, Tree, resolve, unknown};

fn trees() -> Vec<(String, PathBuf)> {
    let trees = env::var("VMMLINUX_TREES").expect("VMMLINUX_TREES names kernel trees, as 7.3=DIR:6.12=DIR");
    let pair = |tree: &str| tree.split_once('=').map(|(series, dir)| (series.to_owned(), dir.into()));
    trees.split(':').map(|tree| pair(tree).expect("SERIES=DIR")).collect()
}

fn make_vars() -> Vec<(String, String)> {
    let vars = env::var("VMMLINUX_MAKE_VARS").unwrap_or_default();
    vars.split(',')
        .filter_map(|var| Some((var.split_once('=')?.0.into(), var.split_once('=')?.1.into())))
        .collect()
}

#[test]
#[ignore = "needs kernel source trees (VMMLINUX_TREES)"]
fn whole_trees_are_read() {
    for (series, dir) in trees() {
        let tree = Tree::load(&dir).unwrap_or_else(|error| panic!("{series}: {error}"));
        assert!(tree.names().count() > 15_000, "{series}: {}", tree.names().count());
        let jbd2 = tree.symbol("JBD2").unwrap();
        assert!(jbd2.asked_by.iter().any(|by| by == "EXT4_FS"), "{series}");
        assert!(
            tree.symbol("VIRTIO_BLK").unwrap().definitions[0]
                .depends
                .contains(&Expr::Symbol("VIRTIO".into())),
            "{series}"
        );
    }
}

#[test]
#[ignore = "needs kernel source trees (VMMLINUX_TREES) and runs their make"]
fn every_selection_resolves() {
    let fragments = Fragments::builtin().unwrap();
    let vars = make_vars();
    for (series, tree) in trees() {
        let build_dir = tempfile::tempdir().unwrap();
        let kconfig = Tree::load(&tree).unwrap();
        let backends = Backends::load(&tree);
        for selection in fragments.selections(&series) {
            assert_eq!(unknown(&fragments.requests(&selection), &kconfig), [""; 0], "{selection}");
            let job = Resolve {
                tree: &tree,
                build_dir: build_dir.path(),
                make_vars: &vars,
                fragments: &fragments,
                selection: &selection,
                backends: Some(&backends),
            };
            let resolved = resolve(&job).unwrap_or_else(|error| panic!("{selection}: {error:?}"));
            assert!(resolved.tolerated.is_empty(), "{selection}: {:?}", resolved.tolerated);
        }
    }
}
