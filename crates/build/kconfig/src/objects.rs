//! Which source files a kernel's Makefiles build, and under which condition.
//!
//! A reader of the lists in Kbuild files (`obj-$(CONFIG_X) += a.o`, `a-y := b.o`), followed from the top of the tree. It
//! takes both branches of conditionals, and leaves out what no such list names.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use regex::Regex;

use crate::Expr;

/// A source file that is part of a module, or of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    /// The module's name if it is built as one, with underscores.
    pub(crate) module: String,
    /// The C file, from the top of the tree.
    pub(crate) source: PathBuf,
    /// When it is built.
    pub(crate) condition: Expr,
}

/// A directory's lists by name: `obj`, or an object that others make up. Each entry has its condition.
type Lists = HashMap<String, Vec<(String, Expr)>>;

static LIST: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^\s*([\w.-]+?)-(y|m|objs|\$\([^=]*\)+)\s*[+:?]?=\s*(.*)$").expect("a valid expression")
});
static SYMBOL: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"CONFIG_(\w+)").expect("a valid expression"));

/// The condition that is always true.
pub(crate) fn always() -> Expr {
    Expr::Symbol("y".to_owned())
}

/// Both conditions.
pub(crate) fn both(a: &Expr, b: &Expr) -> Expr {
    if *a == always() {
        return b.clone();
    }
    if *b == always() {
        return a.clone();
    }
    Expr::And(vec![a.clone(), b.clone()])
}

/// Every object of the tree's Makefiles, as they are for x86.
pub(crate) fn objects(tree: &Path) -> Vec<Object> {
    let mut found = Vec::new();
    let mut waiting = vec![(PathBuf::new(), always()), (PathBuf::from("lib"), always())];
    while let Some((dir, condition)) = waiting.pop() {
        let lists = lists(&tree.join(&dir));
        for (name, own) in ["obj", "lib"].iter().filter_map(|list| lists.get(*list)).flatten() {
            let condition = both(&condition, own);
            if let Some(below) = name.strip_suffix('/') {
                waiting.push((dir.join(below), condition));
            } else if let Some(object) = name.strip_suffix(".o") {
                members(tree, &dir, object, &condition, &lists, &mut found);
            }
        }
    }
    found
}

/// Adds the source files of one object: its own, and those of the objects that make it up.
fn members(tree: &Path, dir: &Path, object: &str, condition: &Expr, lists: &Lists, found: &mut Vec<Object>) {
    let parts = lists.get(object).map(Vec::as_slice).unwrap_or_default();
    let parts = parts.iter().filter_map(|(part, own)| Some((part.strip_suffix(".o")?, both(condition, own))));
    for (part, condition) in std::iter::once((object, condition.clone())).chain(parts) {
        let source = dir.join(format!("{part}.c"));
        if tree.join(&source).is_file() {
            found.push(Object { module: object.replace('-', "_"), source, condition });
        }
    }
}

fn lists(dir: &Path) -> Lists {
    let text = ["Kbuild", "Makefile"].iter().find_map(|name| fs::read_to_string(dir.join(name)).ok());
    let text = text.unwrap_or_default().replace("\\\n", " ");
    let mut lists = Lists::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let Some(list) = LIST.captures(line) else { continue };
        let condition = match SYMBOL.captures(&list[2]) {
            Some(symbol) => Expr::Symbol(symbol[1].to_owned()),
            None => always(),
        };
        let entries = list[3].split_whitespace().map(|entry| entry.replace("$(SRCARCH)", "x86"));
        lists.entry(list[1].to_owned()).or_default().extend(entries.map(|entry| (entry, condition.clone())));
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_followed_with_their_conditions() {
        let tree = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("Kbuild", "obj-y += arch/$(SRCARCH)/ # the machine\nobj-$(CONFIG_NET) += net/\n"),
            ("arch/x86/Makefile", "obj-y := setup.o\n"),
            ("arch/x86/setup.c", ""),
            (
                "net/Makefile",
                "obj-$(CONFIG_NF) += nf-log.o\nnf-log-y := core.o \\\n  more.o\nnf-log-$(CONFIG_V6) += v6.o\n",
            ),
            ("net/core.c", ""),
            ("net/v6.c", ""),
        ] {
            fs::create_dir_all(tree.path().join(name).parent().unwrap()).unwrap();
            fs::write(tree.path().join(name), text).unwrap();
        }
        let mut found: Vec<_> = objects(tree.path())
            .into_iter()
            .map(|o| format!("{} {} {}", o.module, o.source.display(), o.condition))
            .collect();
        found.sort();
        assert_eq!(
            found,
            ["nf_log net/core.c NET && NF", "nf_log net/v6.c (NET && NF) && V6", "setup arch/x86/setup.c y"]
        );
    }
}
