//! From a selection to a `.config`, by the kernel's own make, and the check that it says what was asked.

use std::path::{Path, PathBuf};

use crate::{
    Backends, DotConfig, Fragments, Mismatch, Requests, ResolveError, Selection, Symbol, Tree, TreeError,
    Tristate, Value, conf::Conf, expr::Expr,
};

/// What [`resolve`] works on.
#[derive(Clone, Copy, Debug)]
pub struct Resolve<'a> {
    /// The kernel source tree; nothing is written to it.
    pub tree: &'a Path,
    /// The build directory (make's `O=`); created if need be. Its `.config` is replaced only on success.
    pub build_dir: &'a Path,
    /// Variables for make's command line, as (`CC`, `gcc-14`): the toolchain decides symbols.
    pub make_vars: &'a [(String, String)],
    /// The curated configuration.
    pub fragments: &'a Fragments,
    /// What to take from it.
    pub selection: &'a Selection,
    /// The tree's sources, to check that what is asked for at run time is built; not checked without them.
    pub backends: Option<&'a Backends>,
}

/// A configuration in which every request came true.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The configuration as the kernel's `conf` left it.
    pub config: DotConfig,
    /// Where it lies: `.config` in the build directory.
    pub path: PathBuf,
    /// What was asked for, with reasons.
    pub requests: Requests,
    /// Requests that did not come true but were allowed not to.
    pub tolerated: Vec<Mismatch>,
}

/// Resolves a selection. On success `.config` in the build directory holds it; on failure what was there stays.
pub fn resolve(job: &Resolve<'_>) -> Result<Resolved, ResolveError> {
    let requests = job.fragments.requests(job.selection);
    let conf = Conf::begin(job.tree, job.build_dir, job.make_vars)?;
    let requested = conf.write(".config.requested", &requests.to_config())?;
    for target in ["allnoconfig", "olddefconfig"] {
        conf.make(target, Some(&requested))?;
    }
    let config = conf.config()?;
    let tolerated = verify(&requests, &config, || Tree::load(job.tree))?;
    let missing = job.backends.map(|backends| backends.missing(&config, &requests)).unwrap_or_default();
    if !missing.is_empty() {
        return Err(ResolveError::Backends { missing });
    }
    Ok(Resolved { config, path: conf.finish()?, requests, tolerated })
}

/// Compares what came out with what was asked for. Returns what differs and may; the rest is an error.
///
/// The tree is read only when something differs, to name the cause.
pub fn verify(
    requests: &Requests,
    config: &DotConfig,
    tree: impl FnOnce() -> Result<Tree, TreeError>,
) -> Result<Vec<Mismatch>, ResolveError> {
    let differs: Vec<_> =
        requests.iter().filter(|(symbol, request)| config.value(symbol) != &request.value).collect();
    if differs.is_empty() {
        return Ok(Vec::new());
    }
    let tree = tree()?;
    let (mut tolerated, mut mismatches) = (Vec::new(), Vec::new());
    for (symbol, request) in differs {
        let got = config.value(symbol);
        let mismatch = Mismatch {
            symbol: symbol.to_owned(),
            wanted: request.value.clone(),
            got: got.clone(),
            cause: cause(&tree, config, symbol, &request.value, got),
        };
        match request.may_differ() {
            Some(_) => tolerated.push(mismatch),
            None => mismatches.push(mismatch),
        }
    }
    if mismatches.is_empty() {
        Ok(tolerated)
    } else {
        Err(ResolveError::Mismatch { requested: requests.len(), mismatches })
    }
}

/// Requested symbols that the tree does not define. [`verify`] finds those among them that should be set; one that
/// should not is a request that says nothing, most likely misspelt.
pub fn unknown<'a>(requests: &'a Requests, tree: &Tree) -> Vec<&'a str> {
    requests.iter().map(|(symbol, _)| symbol).filter(|symbol| tree.symbol(symbol).is_none()).collect()
}

/// Why a symbol did not get the value asked for.
fn cause(tree: &Tree, config: &DotConfig, name: &str, wanted: &Value, got: &Value) -> String {
    let Some(symbol) = tree.symbol(name) else {
        let nearest = tree.nearest(name).map(|n| format!("; did you mean {n}?")).unwrap_or_default();
        return format!("no Kconfig file of this kernel defines it{nearest}");
    };
    if *wanted < *got && matches!(got, Value::Yes | Value::Module) {
        let selectors = active_selectors(tree, config, name);
        if !selectors.is_empty() {
            return format!("selected by {}", selectors.join(", "));
        }
    }
    let stops = unmet(symbol, config);
    if !stops.is_empty() {
        return stops.join("; ");
    }
    if *got == Value::No
        && let Some(chosen) = chosen_instead(tree, config, symbol)
    {
        return format!("the choice it belongs to went to {chosen}");
    }
    match symbol.definitions.iter().find(|d| d.prompt.is_some()) {
        None => format!(
            "it has no prompt, so its value follows from other symbols ({})",
            symbol.definitions.first().map(|d| d.location.to_string()).unwrap_or_default()
        ),
        Some(definition) => match &definition.prompt {
            Some((_, Some(condition))) if condition.value(config) == Some(Tristate::No) => {
                format!("its prompt needs {} ({})", with_values(condition, config), definition.location)
            }
            _ => format!("the kernel's conf chose {got} ({})", definition.location),
        },
    }
}

/// The dependencies, one sentence per entry of the symbol, that keep it from being set; empty if some entry is free.
pub(crate) fn unmet(symbol: &Symbol, config: &DotConfig) -> Vec<String> {
    let mut sentences = Vec::new();
    for definition in &symbol.definitions {
        let parts = definition.depends.iter().flat_map(Expr::conjuncts);
        let stops: Vec<_> = parts
            .filter(|part| part.value(config) == Some(Tristate::No))
            .map(|part| with_values(part, config))
            .collect();
        if stops.is_empty() {
            return Vec::new();
        }
        sentences.push(format!("depends on {} ({})", stops.join(" and "), definition.location));
    }
    sentences
}

/// The member that the choice of a symbol went to.
pub(crate) fn chosen_instead<'a>(tree: &'a Tree, config: &DotConfig, symbol: &Symbol) -> Option<&'a str> {
    let choice = symbol.definitions.iter().find_map(|d| d.choice)?;
    tree.choice_members(choice).into_iter().find(|member| config.value(member) == &Value::Yes)
}

/// `A || B [A=n, B=n]`
pub(crate) fn with_values(expr: &Expr, config: &DotConfig) -> String {
    let values: Vec<_> =
        expr.symbols().into_iter().map(|name| format!("{name}={}", config.value(name))).collect();
    if values.is_empty() { expr.to_string() } else { format!("{expr} [{}]", values.join(", ")) }
}

/// Symbols that are set and whose `select` of this one holds.
pub(crate) fn active_selectors(tree: &Tree, config: &DotConfig, name: &str) -> Vec<String> {
    let Some(symbol) = tree.symbol(name) else { return Vec::new() };
    let selects = |by: &&String| {
        config.is_set(by)
            && tree.symbol(by).is_some_and(|s| {
                s.definitions.iter().flat_map(|d| &d.selects).any(|(target, condition)| {
                    target == name && condition.as_ref().is_none_or(|c| c.value(config) != Some(Tristate::No))
                })
            })
    };
    symbol.asked_by.iter().filter(selects).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tests::small_tree;

    fn fails(fragment: &str, config: &[(&'static str, Value)]) -> Result<Vec<Mismatch>, String> {
        let text = format!("workload = \"core\"\n[symbols]\n{fragment}\n");
        let requests = Fragments::parse(&[("t.toml", text)]).unwrap().requests(&Selection::new("7.3"));
        let (_dir, tree) = small_tree();
        let config: DotConfig = config.iter().cloned().collect();
        verify(&requests, &config, || Ok(tree)).map_err(|error| match error {
            ResolveError::Mismatch { mismatches, .. } => mismatches[0].to_string(),
            other => other.to_string(),
        })
    }

    #[test]
    fn an_unknown_symbol_fails_with_its_neighbour() {
        let message = fails("VIRTIO_PIC = { value = \"y\", why = \"w\" }", &[]).unwrap_err();
        assert_eq!(
            message,
            "VIRTIO_PIC was requested as y and is n: no Kconfig file of this kernel defines it; did you mean VIRTIO_PCI?"
        );
    }

    #[test]
    fn an_unmet_dependency_is_named() {
        let message =
            fails("SERIAL = { value = \"y\", why = \"w\" }", &[("EXPERT", Value::Yes), ("DUMB", Value::Yes)]);
        assert_eq!(
            message.unwrap_err(),
            "SERIAL was requested as y and is n: depends on PCI [PCI=n] and !EXPERT || (!DUMB || X86) \
             [EXPERT=y, DUMB=y, X86=n] (Kconfig:30)"
        );
    }

    #[test]
    fn prompts_choices_and_selects_are_named() {
        let pci = ("PCI", Value::Yes);
        let serial = ("SERIAL", Value::Yes);
        let message = fails(
            "SERIAL_NR = { value = 1, why = \"w\" }",
            &[pci.clone(), serial, ("SERIAL_NR", Value::Int(4))],
        );
        assert_eq!(
            message.unwrap_err(),
            "SERIAL_NR was requested as 1 and is 4: its prompt needs EXPERT [EXPERT=n] (Kconfig:25)"
        );
        let message = fails("HZ_100 = { value = \"y\", why = \"w\" }", &[("HZ_250", Value::Yes)]);
        assert!(message.unwrap_err().ends_with("the choice it belongs to went to HZ_250"));
        let config = [pci, ("VIRTIO_PCI", Value::Module), ("VIRTIO", Value::Module)];
        let message = fails("VIRTIO = { value = \"n\", why = \"w\" }", &config);
        assert!(message.unwrap_err().ends_with("is m: selected by VIRTIO_PCI"));
        let message = fails("VIRTIO = { value = \"y\", why = \"w\" }", &config);
        assert!(
            message
                .unwrap_err()
                .ends_with("it has no prompt, so its value follows from other symbols (Kconfig:11)")
        );
    }

    #[test]
    fn a_module_is_not_built_in_and_strings_are_compared() {
        let config = [("PCI", Value::Yes), ("VIRTIO_PCI", Value::Module), ("NAME", Value::Text("a".into()))];
        assert!(fails("VIRTIO_PCI = { value = \"y\", why = \"w\" }", &config).is_err());
        assert_eq!(
            fails(
                "VIRTIO_PCI = { value = \"m\", why = \"w\" }\nNAME = { value = \"a\", why = \"w\" }",
                &config
            ),
            Ok(vec![])
        );
        assert!(fails("NAME = { value = \"b\", why = \"w\" }", &config).is_err());
    }

    #[test]
    fn a_symbol_to_be_left_out_must_exist() {
        let text = "workload = \"core\"\n[symbols]\nSERAIL = { value = \"n\", why = \"w\" }\nPCI = { value = \"n\", why = \"w\" }\n";
        let requests = Fragments::parse(&[("t.toml", text)]).unwrap().requests(&Selection::new("7.3"));
        let (_dir, tree) = small_tree();
        assert_eq!(unknown(&requests, &tree), ["SERAIL"]);
    }

    #[test]
    fn a_listed_difference_is_tolerated_and_reported() {
        let entry = "SERIAL = { value = \"y\", why = \"w\", may_differ = \"old compilers\" }";
        let tolerated = fails(entry, &[]).unwrap();
        assert_eq!(tolerated.len(), 1);
        assert_eq!(tolerated[0].symbol, "SERIAL");
    }
}
