//! The shape of the tree: groups of crates depend downwards only, and no files of a crate import each other in a circle.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, File, Item, ItemMod, ItemUse, UseTree, Visibility,
    visit::{self, Visit},
};
use tree_tests::{read, root};

/// The groups that each group may depend on besides itself.
const ARROWS: [(&str, &[&str]); 5] = [
    ("shared", &[]),
    ("guest", &["shared"]),
    ("vmm", &["shared"]),
    ("build", &["shared"]),
    ("tools", &["shared", "guest", "vmm", "build"]),
];

/// Dependencies that point elsewhere all the same; `ARCHITECTURE.md` has the reasons.
const EXCEPTIONS: [(&str, &str); 2] = [("doctor", "kconfig"), ("helper-vm", "debian-archive")];

/// The directory of every crate, with its group and its name.
fn crates() -> Vec<(String, String, PathBuf)> {
    let mut crates = Vec::new();
    for (group, _) in ARROWS {
        for entry in fs::read_dir(root().join("crates").join(group)).expect("every group exists") {
            let dir = entry.expect("the group is readable").path();
            let name = dir.file_name().expect("a crate has a name").to_string_lossy().into_owned();
            crates.push((group.to_owned(), name, dir));
        }
    }
    crates
}

#[test]
fn crates_depend_only_on_groups_below_theirs() {
    let crates = crates();
    let mut group_of = BTreeMap::new();
    let mut manifests = Vec::new();
    for (group, name, dir) in &crates {
        let manifest: toml::Table = toml::from_str(&read(&dir.join("Cargo.toml"))).expect("a manifest");
        let package = manifest["package"]["name"].as_str().expect("a package has a name").to_owned();
        group_of.insert(package.clone(), group.clone());
        manifests.push((package, name, manifest));
    }
    let mut upwards = Vec::new();
    for (package, _, manifest) in &manifests {
        let group = &group_of[package];
        let allowed = ARROWS.iter().find(|(name, _)| name == group).expect("every group is listed").1;
        for dependency in dependencies(manifest) {
            let Some(target) = group_of.get(dependency) else { continue };
            let excepted = EXCEPTIONS.contains(&(package.as_str(), dependency.as_str()));
            if target != group && !allowed.contains(&target.as_str()) && !excepted {
                upwards.push(format!("{package} ({group}) -> {dependency} ({target})"));
            }
        }
    }
    assert!(upwards.is_empty(), "{upwards:#?}");
}

/// The dependencies of a manifest, those for single platforms included.
fn dependencies(manifest: &toml::Table) -> impl Iterator<Item = &String> {
    let platforms = manifest.get("target").and_then(toml::Value::as_table);
    let platforms = platforms.into_iter().flat_map(toml::Table::values).filter_map(toml::Value::as_table);
    [manifest]
        .into_iter()
        .chain(platforms)
        .filter_map(|table| table.get("dependencies")?.as_table())
        .flat_map(toml::Table::keys)
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles: Vec<_> = crates()
        .iter()
        .flat_map(|(_, name, dir)| {
            Crate::parse(&dir.join("src"))
                .circles()
                .into_iter()
                .map(move |files| format!("{name}: {files:?}"))
        })
        .collect();

    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_circle_is_found_through_re_exports() {
    let sources = [
        ("lib", "mod a; mod b; pub use a::A;"),
        ("a", "use crate::b::B; pub struct A(B);"),
        ("b", "use crate::A;"),
    ];

    let circles =
        Crate::of(sources.map(|(module, text)| (module.to_owned(), syn::parse_file(text).unwrap())))
            .circles();

    assert_eq!(circles, [["a", "b"]]);
}

/// The modules of a crate that have files of their own, by path (`virtio::net`; the root is `lib`).
struct Crate(BTreeMap<String, Paths>);

impl Crate {
    fn of(files: impl IntoIterator<Item = (String, File)>) -> Self {
        let paths = |file: File| {
            let mut paths = Paths::default();
            paths.visit_file(&file);
            paths
        };
        Self(files.into_iter().map(|(module, file)| (module, paths(file))).collect())
    }

    fn parse(src: &Path) -> Self {
        let files = walkdir::WalkDir::new(src).into_iter().filter_map(|entry| {
            let path = entry.expect("sources are readable").into_path();
            let module = path.strip_prefix(src).ok()?.to_str()?.strip_suffix(".rs")?.replace('/', "::");
            let module = module.strip_suffix("::mod").unwrap_or(&module).to_owned();
            // Programs beside a library import it as others do.
            if module.starts_with("bin::") || (module == "main" && src.join("lib.rs").exists()) {
                return None;
            }
            let module = if module == "main" { "lib".to_owned() } else { module };
            let text = read(&path);
            Some((
                module,
                syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
            ))
        });
        Self::of(files)
    }

    /// The groups of files that import each other.
    fn circles(&self) -> Vec<Vec<String>> {
        let arrows: BTreeMap<_, _> =
            self.0.keys().map(|module| (module.clone(), self.imports(module))).collect();
        let reach: BTreeMap<_, _> = arrows.keys().map(|from| (from, reachable(&arrows, from))).collect();
        let mut circles = BTreeSet::new();
        for (from, reached) in &reach {
            let circle: Vec<_> =
                reached.iter().filter(|to| reach[to].contains(*from)).map(ToString::to_string).collect();
            if circle.len() > 1 {
                circles.insert(circle);
            }
        }
        circles.into_iter().collect()
    }

    /// The files whose items a file uses outside its tests; what it only hands on does not count.
    fn imports(&self, module: &str) -> BTreeSet<String> {
        let used = &self.0[module].used;
        let mut imports: BTreeSet<_> = used.iter().filter_map(|path| self.resolve(module, path, 0)).collect();
        imports.remove(module);
        imports
    }

    /// The file that defines what a path in `module` names.
    fn resolve(&self, module: &str, path: &[String], depth: usize) -> Option<String> {
        let mut at = if module == "lib" { Vec::new() } else { module.split("::").collect::<Vec<_>>() };
        let mut rest = path;
        match rest.first().map(String::as_str)? {
            "crate" => {
                at.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|segment| segment == "super") {
                    at.pop();
                    rest = &rest[1..];
                }
            }
            first => {
                let child = at.iter().copied().chain([first]).collect::<Vec<_>>().join("::");
                self.0.get(&child)?;
            }
        }
        while let Some(segment) = rest.first() {
            let child = at.iter().copied().chain([segment.as_str()]).collect::<Vec<_>>().join("::");
            if !self.0.contains_key(&child) {
                break;
            }
            at.push(segment);
            rest = &rest[1..];
        }
        let file = if at.is_empty() { "lib".to_owned() } else { at.join("::") };
        // What a module hands on belongs to the file where it is defined.
        if let Some(name) = rest.first()
            && depth < 8
            && let Some(path) = self.0.get(&file)?.handed_on.get(name)
        {
            return self.resolve(&file, path, depth + 1).or(Some(file));
        }
        Some(file)
    }
}

fn reachable(arrows: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<_> = arrows[from].iter().collect();
    while let Some(next) = open.pop() {
        if reached.insert(next.clone()) {
            open.extend(&arrows[next]);
        }
    }
    reached
}

/// The paths of a file: those that it uses, and the names that it hands on (`pub use`) with where they come from.
#[derive(Default)]
struct Paths {
    used: BTreeSet<Vec<String>>,
    handed_on: BTreeMap<String, Vec<String>>,
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(ItemMod { attrs, .. }) | Item::Use(ItemUse { attrs, .. }) => attrs,
            Item::Impl(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let mut leaves = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut leaves);
        for (name, path) in leaves {
            if matches!(item.vis, Visibility::Inherited) {
                self.used.insert(path);
            } else {
                self.handed_on.insert(name, path);
            }
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.used.insert(segments);
        }
        visit::visit_path(self, path);
    }
}

/// The leaves of a `use` tree: the name in this file, and the path.
fn flatten(tree: &UseTree, prefix: &mut Vec<String>, leaves: &mut Vec<(String, Vec<String>)>) {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix, leaves);
            prefix.pop();
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, prefix, leaves)),
        UseTree::Glob(_) => leaves.push(("*".to_owned(), prefix.clone())),
        UseTree::Name(name) => leaf(&name.ident.to_string(), &name.ident.to_string(), prefix, leaves),
        UseTree::Rename(rename) => {
            leaf(&rename.ident.to_string(), &rename.rename.to_string(), prefix, leaves);
        }
    }
}

fn leaf(ident: &str, name: &str, prefix: &[String], leaves: &mut Vec<(String, Vec<String>)>) {
    let mut path = prefix.to_vec();
    if ident != "self" {
        path.push(ident.to_owned());
    }
    let name = if ident == "self" && name == "self" {
        path.last().cloned().unwrap_or_default()
    } else {
        name.to_owned()
    };
    leaves.push((name, path));
}
