//! Why a symbol has the value it has: our reason, or what it follows from.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
};

use crate::{
    Definition, DotConfig, Fragments, Origin, Selection, Symbol, Tree, Tristate, Value,
    resolve::{chosen_instead, unmet, with_values},
};

/// A step from a symbol to one that explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follows {
    /// The symbol that explains.
    pub symbol: String,
    /// How, as in `selected by EXT4_FS (fs/ext4/Kconfig:30)`.
    pub how: String,
}

/// The answer to "why is this symbol as it is?".
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The symbol, without `CONFIG_`.
    pub symbol: String,
    /// Its value.
    pub value: Value,
    /// Its prompt, if it has one.
    pub prompt: Option<String>,
    /// Where the tree defines it; empty for a symbol that this kernel does not know.
    pub locations: Vec<String>,
    /// Our entries that the selection takes.
    pub reasons: Vec<Origin>,
    /// Our entries for other selections.
    pub elsewhere: Vec<Origin>,
    /// From the symbol to one of ours, if it is not ours itself.
    pub follows: Vec<Follows>,
    /// The entry of ours that the last step of `follows` ends at.
    pub root: Option<Origin>,
    /// What keeps a symbol that is not set from being set.
    pub unmet: Vec<String>,
    /// The member that the choice of a symbol that is not set went to.
    pub chosen_instead: Option<String>,
    /// The known symbol with the nearest name, for one that is not known.
    pub nearest: Option<String>,
}

/// Explains a symbol of a resolved configuration.
pub fn explain(
    name: &str,
    config: &DotConfig,
    tree: &Tree,
    fragments: &Fragments,
    selection: &Selection,
) -> Explanation {
    let name = name.strip_prefix("CONFIG_").unwrap_or(name);
    let value = config.value(name).clone();
    let (reasons, elsewhere): (Vec<_>, Vec<_>) =
        fragments.of(name).cloned().partition(|origin| origin.applies(selection));
    let symbol = tree.symbol(name);
    let mut explanation = Explanation {
        symbol: name.to_owned(),
        value,
        prompt: symbol.and_then(|s| s.definitions.iter().find_map(|d| Some(d.prompt.as_ref()?.0.clone()))),
        locations: symbol.into_iter().flat_map(|s| &s.definitions).map(|d| d.location.to_string()).collect(),
        reasons,
        elsewhere,
        follows: Vec::new(),
        root: None,
        unmet: Vec::new(),
        chosen_instead: None,
        nearest: None,
    };
    let Some(symbol) = symbol else {
        explanation.nearest = tree.nearest(name).map(str::to_owned);
        return explanation;
    };
    if explanation.value == Value::No {
        explanation.unmet = unmet(symbol, config);
        explanation.chosen_instead = chosen_instead(tree, config, symbol).map(str::to_owned);
    } else if explanation.reasons.is_empty() {
        let requests = fragments.requests(selection);
        let root = |name: &str| Some(requests.get(name)?.origins[0].clone());
        (explanation.follows, explanation.root) = search(name, config, tree, root);
    }
    explanation
}

/// The shortest way from a symbol to one for which `root` knows a reason; the first step alone if there is none.
fn search(
    name: &str,
    config: &DotConfig,
    tree: &Tree,
    root: impl Fn(&str) -> Option<Origin>,
) -> (Vec<Follows>, Option<Origin>) {
    let mut seen = HashSet::from([name.to_owned()]);
    let mut queue = VecDeque::from([(name.to_owned(), Vec::new())]);
    let mut first: Option<Vec<Follows>> = None;
    while let Some((at, path)) = queue.pop_front() {
        let Some(symbol) = tree.symbol(&at) else { continue };
        for step in steps(&at, symbol, config, tree) {
            let mut longer: Vec<Follows> = path.clone();
            let next = step.symbol.clone();
            longer.push(step);
            first.get_or_insert_with(|| longer.clone());
            if let Some(origin) = root(&next) {
                return (longer, Some(origin));
            }
            if !next.is_empty() && seen.insert(next.clone()) {
                queue.push_back((next, longer));
            }
        }
    }
    (first.unwrap_or_default(), None)
}

/// What a set symbol follows from directly, the strongest cause first.
fn steps(name: &str, symbol: &Symbol, config: &DotConfig, tree: &Tree) -> Vec<Follows> {
    let mut steps = Vec::new();
    for (verb, list) in [
        ("selected", (|d| &d.selects) as fn(&Definition) -> &Vec<(String, Option<crate::Expr>)>),
        ("implied", |d| &d.implies),
    ] {
        for by in symbol.asked_by.iter().filter(|by| config.is_set(by)) {
            let definitions = tree.symbol(by).map(|s| s.definitions.as_slice()).unwrap_or_default();
            for definition in definitions {
                let asks = list(definition)
                    .iter()
                    .find(|(target, condition)| target == name && holds(condition.as_ref(), config));
                if let Some((_, condition)) = asks {
                    let condition = condition
                        .as_ref()
                        .map(|c| format!(" if {}", with_values(c, config)))
                        .unwrap_or_default();
                    steps.push(Follows {
                        symbol: by.clone(),
                        how: format!("{verb} by {by}{condition} ({})", definition.location),
                    });
                }
            }
        }
    }
    for definition in &symbol.definitions {
        if definition.depends.iter().any(|e| e.value(config) == Some(Tristate::No)) {
            continue;
        }
        let Some((value, condition)) =
            definition.defaults.iter().find(|(_, condition)| holds(condition.as_ref(), config))
        else {
            continue;
        };
        let mut how = format!("default {value}");
        if let Some(condition) = condition {
            how = format!("{how} if {}", with_values(condition, config));
        }
        if !definition.depends.is_empty() {
            let depends: Vec<_> = definition.depends.iter().map(ToString::to_string).collect();
            how = format!("{how}, depends on {}", depends.join(" && "));
        }
        how = format!("{how} ({})", definition.location);
        let because = [Some(value), condition.as_ref()].into_iter().flatten().chain(&definition.depends);
        let mut names: Vec<_> = because.flat_map(crate::Expr::symbols).filter(|n| config.is_set(n)).collect();
        if names.is_empty() {
            names.push("");
        }
        steps.extend(names.into_iter().map(|n| Follows { symbol: n.to_owned(), how: how.clone() }));
    }
    if steps.is_empty()
        && let Some(choice) = symbol.definitions.iter().find_map(|d| d.choice)
    {
        let members = tree.choice_members(choice).join(", ");
        steps.push(Follows {
            symbol: String::new(),
            how: format!("the default of the choice among {members}"),
        });
    }
    steps
}

fn holds(condition: Option<&crate::Expr>, config: &DotConfig) -> bool {
    condition.is_none_or(|c| c.value(config) != Some(Tristate::No))
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CONFIG_{}={}", self.symbol, self.value)?;
        if let Some(prompt) = &self.prompt {
            write!(f, "  \"{prompt}\"")?;
        }
        writeln!(f)?;
        if self.locations.is_empty() {
            write!(f, "  this kernel does not know the symbol")?;
            if let Some(nearest) = &self.nearest {
                write!(f, "; did you mean {nearest}?")?;
            }
            writeln!(f)?;
        } else {
            writeln!(f, "  defined in {}", self.locations.join(", "))?;
        }
        for origin in &self.reasons {
            writeln!(f, "  our reason: {origin}")?;
        }
        for step in &self.follows {
            writeln!(f, "  follows from: {}", step.how)?;
        }
        if let Some(root) = &self.root {
            writeln!(f, "  our reason: {root}")?;
        }
        for sentence in &self.unmet {
            writeln!(f, "  not possible: {sentence}")?;
        }
        if self.value == Value::No && self.reasons.is_empty() && !self.locations.is_empty() {
            if let Some(chosen) = &self.chosen_instead {
                writeln!(f, "  follows from: the choice it belongs to went to {chosen}")?;
            } else if self.unmet.is_empty() {
                writeln!(
                    f,
                    "  follows from: the base, allnoconfig, and nothing in the selection asks for it"
                )?;
            }
        }
        for origin in &self.elsewhere {
            writeln!(f, "  not in this selection: {origin}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Host, tree::tests::small_tree};

    fn told(name: &str) -> String {
        let fragments = Fragments::parse(&[(
            "t.toml",
            "workload = \"core\"\n[symbols]\n\
             VIRTIO_PCI = { value = \"y\", why = \"vmd's disks.\" }\n\
             HZ_100 = { value = \"y\", why = \"The host's tick.\" }\n\
             PCI_MSI = { value = \"y\", hosts = [\"8.0\"], why = \"MSI on 8.0.\" }\n",
        )])
        .unwrap();
        let selection = Selection { hosts: [Host::V7_8].into(), ..Selection::new("7.3") };
        let (_dir, tree) = small_tree();
        let config = [
            ("X86", Value::Yes),
            ("PCI", Value::Yes),
            ("VIRTIO_PCI", Value::Yes),
            ("VIRTIO", Value::Yes),
            ("HZ_100", Value::Yes),
            ("HZ", Value::Int(100)),
        ]
        .into_iter()
        .collect();
        explain(name, &config, &tree, &fragments, &selection).to_string()
    }

    #[test]
    fn every_kind_of_answer() {
        let names = [
            "VIRTIO_PCI",
            "CONFIG_VIRTIO",
            "HZ",
            "X86",
            "PCI_MSI",
            "SERIAL_NR",
            "SERIAL",
            "HZ_250",
            "VIRTIO_PIC",
        ];
        insta::assert_snapshot!(names.map(told).join("\n"));
    }
}
