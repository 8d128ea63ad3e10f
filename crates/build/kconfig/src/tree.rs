//! What a kernel's Kconfig files say about each symbol.
//!
//! A line-based reader of our own: `nom-kconfig` parses the same trees but needs some 10 s for one (a
//! `config explain` must answer at once) and keeps no line numbers, which every explanation here names.

use std::{
    collections::HashMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use miette::Diagnostic;
use thiserror::Error;

use crate::{
    expr::Expr,
    reader::{self, Line},
};

/// A symbol's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `bool`
    Bool,
    /// `tristate`
    Tristate,
    /// `string`
    Text,
    /// `int`
    Int,
    /// `hex`
    Hex,
}

/// A place in the tree, printed as `drivers/tty/Kconfig:12`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    file: Arc<str>,
    line: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One `config` entry; a symbol may have several.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Where it stands.
    pub location: Location,
    /// The prompt and the condition under which it is shown; none for a symbol that users cannot set.
    pub prompt: Option<(String, Option<Expr>)>,
    /// `depends on` of the entry and of everything around it (`if`, `menu`, `choice`), conjoined in order.
    pub depends: Vec<Expr>,
    /// `default` and `def_bool` values with their conditions, in order: the first that holds counts.
    pub defaults: Vec<(Expr, Option<Expr>)>,
    /// Symbols that this one selects.
    pub selects: Vec<(String, Option<Expr>)>,
    /// Symbols that this one implies.
    pub implies: Vec<(String, Option<Expr>)>,
    /// Number of the choice that the entry is a member of.
    pub choice: Option<usize>,
}

/// A symbol of the tree.
#[derive(Clone, Debug, Default)]
pub struct Symbol {
    /// Its type, unless only entries without one were seen.
    pub kind: Option<Kind>,
    /// Its entries.
    pub definitions: Vec<Definition>,
    /// Names of the symbols with a `select` or `imply` of this one.
    pub asked_by: Vec<String>,
}

impl Symbol {
    /// Whether any entry has a prompt, that is, whether a configuration can set the symbol at all.
    pub fn has_prompt(&self) -> bool {
        self.definitions.iter().any(|d| d.prompt.is_some())
    }
}

/// The Kconfig files of a kernel source tree.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    symbols: HashMap<String, Symbol>,
    choices: usize,
}

/// A tree that cannot be read.
#[derive(Debug, Error, Diagnostic)]
pub enum TreeError {
    /// A Kconfig file is missing or unreadable.
    #[error("cannot read {}", .path.display())]
    #[diagnostic(help("is this the top directory of a complete kernel source tree?"))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A line that the reader does not understand.
    #[error("{location}: cannot make sense of `{text}`")]
    #[diagnostic(help(
        "this is a gap in vmmlinux's Kconfig reader (it only explains; the build does not need it)"
    ))]
    Syntax {
        /// Where.
        location: Location,
        /// The logical line.
        text: String,
    },
}

impl Tree {
    /// Reads the tree's Kconfig files as they are for x86.
    pub fn load(top: &Path) -> Result<Self, TreeError> {
        let mut loader = Loader { top, tree: Self::default(), around: Vec::new() };
        loader.file("Kconfig")?;
        let mut tree = loader.tree;
        let mut asked: Vec<(String, String)> = Vec::new();
        for (name, symbol) in &tree.symbols {
            for definition in &symbol.definitions {
                for (target, _) in definition.selects.iter().chain(&definition.implies) {
                    asked.push((target.clone(), name.clone()));
                }
            }
        }
        asked.sort();
        asked.dedup();
        for (target, by) in asked {
            if let Some(symbol) = tree.symbols.get_mut(&target) {
                symbol.asked_by.push(by);
            }
        }
        Ok(tree)
    }

    /// The symbol, without `CONFIG_`.
    pub fn symbol(&self, name: &str) -> Option<&Symbol> {
        self.symbols.get(name)
    }

    /// All names, unordered.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.symbols.keys().map(String::as_str)
    }

    /// The members of a choice, by their own order of name.
    pub fn choice_members(&self, choice: usize) -> Vec<&str> {
        let mut members: Vec<_> = self
            .symbols
            .iter()
            .filter(|(_, s)| s.definitions.iter().any(|d| d.choice == Some(choice)))
            .map(|(name, _)| name.as_str())
            .collect();
        members.sort_unstable();
        members
    }

    /// The known symbol whose name is nearest to a misspelt one.
    pub fn nearest(&self, name: &str) -> Option<&str> {
        let limit = name.len() / 3 + 1;
        self.names()
            .filter(|known| known.len().abs_diff(name.len()) <= limit)
            .map(|known| (distance(known, name), known))
            .filter(|(d, _)| *d <= limit)
            .min()
            .map(|(_, known)| known)
    }
}

/// Edits that turn one name into the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// What surrounds a line.
enum Around {
    If(Expr),
    Menu(Vec<Expr>),
    Choice(usize, Vec<Expr>),
}

/// Whose attributes follow.
enum Subject {
    Config(String),
    /// The innermost menu or choice.
    Around,
    /// A `comment`, or nothing: what follows concerns no symbol.
    Nothing,
}

struct Loader<'a> {
    top: &'a Path,
    tree: Tree,
    around: Vec<Around>,
}

impl Loader<'_> {
    fn file(&mut self, name: &str) -> Result<(), TreeError> {
        let path = self.top.join(name);
        let text = fs::read_to_string(&path).map_err(|source| TreeError::Read { path, source })?;
        let file: Arc<str> = name.into();
        let mut subject = Subject::Nothing;
        for Line { number, text } in reader::lines(&text) {
            let location = Location { file: file.clone(), line: number };
            self.line(&mut subject, &location, &text)?
                .then_some(())
                .ok_or(TreeError::Syntax { location, text })?;
        }
        Ok(())
    }

    /// Takes one line in; false if it makes no sense.
    fn line(&mut self, subject: &mut Subject, location: &Location, text: &str) -> Result<bool, TreeError> {
        let (keyword, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        match keyword {
            "config" | "menuconfig" => {
                self.enter(rest, location);
                *subject = Subject::Config(rest.to_owned());
            }
            "source" => {
                let name =
                    rest.trim_matches('"').replace("$(SRCARCH)", "x86").replace("$(HEADER_ARCH)", "x86");
                // Directories of out-of-tree modules, named by a variable that is empty for a whole kernel.
                if !name.contains("$(") {
                    self.file(&name)?;
                }
                *subject = Subject::Nothing;
            }
            "if" => match Expr::parse(rest) {
                Some(expr) => self.around.push(Around::If(expr)),
                None => return Ok(false),
            },
            "menu" => {
                self.around.push(Around::Menu(Vec::new()));
                *subject = Subject::Around;
            }
            "choice" => {
                self.around.push(Around::Choice(self.tree.choices, Vec::new()));
                self.tree.choices += 1;
                *subject = Subject::Around;
            }
            "endif" | "endmenu" | "endchoice" => {
                *subject = Subject::Nothing;
                return Ok(self.around.pop().is_some());
            }
            "comment" | "mainmenu" => *subject = Subject::Nothing,
            "depends" => {
                let Some(expr) = rest.strip_prefix("on").and_then(dependency) else { return Ok(false) };
                match subject {
                    Subject::Config(name) => self.last(name).depends.push(expr),
                    Subject::Around => match self.around.last_mut() {
                        Some(Around::Menu(depends) | Around::Choice(_, depends)) => depends.push(expr),
                        _ => return Ok(false),
                    },
                    Subject::Nothing => {}
                }
            }
            _ => {
                if let Subject::Config(name) = subject {
                    let name = name.clone();
                    return Ok(self.attribute(&name, keyword, rest, text));
                }
                // Attributes of menus, choices and comments (prompt, default, visible if) and macros.
            }
        }
        Ok(true)
    }

    fn enter(&mut self, name: &str, location: &Location) {
        let mut depends = Vec::new();
        let mut choice = None;
        for around in &self.around {
            match around {
                Around::If(expr) => depends.push(expr.clone()),
                Around::Menu(exprs) => depends.extend(exprs.iter().cloned()),
                Around::Choice(number, exprs) => {
                    choice = Some(*number);
                    depends.extend(exprs.iter().cloned());
                }
            }
        }
        self.tree.symbols.entry(name.to_owned()).or_default().definitions.push(Definition {
            location: location.clone(),
            prompt: None,
            depends,
            defaults: Vec::new(),
            selects: Vec::new(),
            implies: Vec::new(),
            choice,
        });
    }

    fn last(&mut self, name: &str) -> &mut Definition {
        let symbol = self.tree.symbols.get_mut(name).expect("the subject has been entered");
        symbol.definitions.last_mut().expect("entering adds a definition")
    }

    fn attribute(&mut self, name: &str, keyword: &str, rest: &str, text: &str) -> bool {
        let (kind, defaults) = match keyword {
            "bool" | "boolean" => (Some(Kind::Bool), false),
            "tristate" => (Some(Kind::Tristate), false),
            "string" => (Some(Kind::Text), false),
            "int" => (Some(Kind::Int), false),
            "hex" => (Some(Kind::Hex), false),
            "def_bool" => (Some(Kind::Bool), true),
            "def_tristate" => (Some(Kind::Tristate), true),
            _ => (None, keyword == "default"),
        };
        if let Some(kind) = kind {
            self.tree.symbols.entry(name.to_owned()).or_default().kind.get_or_insert(kind);
        }
        let Some((value, condition)) = split_condition(rest) else { return false };
        let definition = self.last(name);
        if defaults {
            let Some(value) = Expr::parse(value) else { return false };
            definition.defaults.push((value, condition));
        } else if kind.is_some() || keyword == "prompt" {
            if !value.is_empty() {
                definition.prompt = Some((value.trim_matches(['"', '\'']).to_owned(), condition));
            }
        } else {
            match keyword {
                "select" => definition.selects.push((value.to_owned(), condition)),
                "imply" => definition.implies.push((value.to_owned(), condition)),
                // Ranges bound a value that conf has already bounded; the others change nothing here.
                "range" | "modules" | "transitional" | "option" | "optional" | "visible" => {}
                // A macro definition (`name := value`) or call between two entries.
                _ => return text.contains('=') || text.starts_with("$("),
            }
        }
        true
    }
}

/// `A && B`, and the form `A if B` of newer kernels, which only binds where B holds.
fn dependency(rest: &str) -> Option<Expr> {
    let (expr, condition) = split_condition(rest.trim())?;
    let expr = Expr::parse(expr)?;
    Some(match condition {
        Some(condition) => Expr::Or(vec![Expr::Not(Box::new(condition)), expr]),
        None => expr,
    })
}

/// Splits `value if condition`; `None` if the condition is no expression.
fn split_condition(rest: &str) -> Option<(&str, Option<Expr>)> {
    let (mut depth, mut quote) = (0_usize, None);
    for (index, c) in rest.char_indices() {
        match (quote, c) {
            (Some(open), _) => quote = (open != c).then_some(open),
            (None, '"' | '\'') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            (None, 'i') if depth == 0 && is_if(rest, index) => {
                return Some((rest[..index].trim(), Some(Expr::parse(&rest[index + 2..])?)));
            }
            _ => {}
        }
    }
    Some((rest, None))
}

fn is_if(text: &str, index: usize) -> bool {
    let boundary = |c: Option<char>| c.is_none_or(|c| !(c.is_ascii_alphanumeric() || c == '_'));
    text[index..].starts_with("if")
        && boundary(text[..index].chars().next_back())
        && boundary(text[index + 2..].chars().next())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small kernel tree with one of everything.
    pub(crate) fn small_tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        fs::create_dir_all(top.join("arch/x86")).unwrap();
        fs::write(
            top.join("Kconfig"),
            "mainmenu \"Linux\"\ncc-option = $(success,$(CC) $(1))\nsource \"arch/$(SRCARCH)/Kconfig\"\n\
             config MODULES\n\tbool \"Modules\"\n\tmodules\n\n\
             menu \"Devices\"\n\tdepends on PCI\n\n\
             config VIRTIO\n\ttristate\n\n\
             config VIRTIO_PCI\n\ttristate \"PCI driver\"\n\tselect VIRTIO\n\timply PCI_MSI\n\thelp\n\t  select NOTHING\n\n\
             config PCI_MSI\n\tbool \"MSI\"\n\n\
             if SERIAL\nconfig SERIAL_NR\n\tint \"Ports\" if EXPERT\n\tdefault 4\nendif\n\n\
             config SERIAL\n\tbool \"Serial\"\n\tdepends on !DUMB || X86 if EXPERT\n\n\
             endmenu\n",
        )
        .unwrap();
        fs::write(
            top.join("arch/x86/Kconfig"),
            "config X86\n\tdef_bool y\n\nconfig PCI\n\tbool \"PCI\"\n\n\
             config EXPERT\n\tbool \"Expert\"\n\nconfig DUMB\n\tbool \"Dumb\"\n\n\
             choice\n\tprompt \"HZ\"\n\tdefault HZ_250\nconfig HZ_100\n\tbool \"100\"\nconfig HZ_250\n\tbool \"250\"\nendchoice\n\n\
             config HZ\n\tint\n\tdefault 100 if HZ_100\n\tdefault 250\n",
        )
        .unwrap();
        let tree = Tree::load(top).unwrap();
        (dir, tree)
    }

    #[test]
    fn entries_carry_what_surrounds_them() {
        let (_dir, tree) = small_tree();
        let serial_nr = tree.symbol("SERIAL_NR").unwrap();
        assert_eq!(serial_nr.kind, Some(Kind::Int));
        let depends: Vec<_> = serial_nr.definitions[0].depends.iter().map(ToString::to_string).collect();
        assert_eq!(depends, ["PCI", "SERIAL"]);
        assert_eq!(
            tree.symbol("SERIAL").unwrap().definitions[0].depends[1].to_string(),
            "!EXPERT || (!DUMB || X86)"
        );
        assert_eq!(tree.symbol("VIRTIO").unwrap().asked_by, ["VIRTIO_PCI"]);
        assert!(!tree.symbol("VIRTIO").unwrap().has_prompt());
        assert!(tree.symbol("NOTHING").is_none());
        let choice = tree.symbol("HZ_100").unwrap().definitions[0].choice.unwrap();
        assert_eq!(tree.choice_members(choice), ["HZ_100", "HZ_250"]);
        assert_eq!(tree.symbol("HZ_250").unwrap().definitions[0].location.to_string(), "arch/x86/Kconfig:18");
    }

    #[test]
    fn misspelt_names_find_their_neighbour() {
        let (_dir, tree) = small_tree();
        assert_eq!(tree.nearest("VIRTIO_PIC"), Some("VIRTIO_PCI"));
        assert_eq!(tree.nearest("SOMETHING_ELSE_ALTOGETHER"), None);
    }

    #[test]
    fn a_tree_that_is_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Tree::load(dir.path()), Err(TreeError::Read { .. })));
        fs::write(dir.path().join("Kconfig"), "config A\n\tbool \"x\"\n\tdepends on (B\n").unwrap();
        assert_eq!(
            Tree::load(dir.path()).unwrap_err().to_string(),
            "Kconfig:3: cannot make sense of `depends on (B`"
        );
    }
}
