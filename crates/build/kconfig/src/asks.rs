//! What a C file of the kernel asks for at run time, and what it offers to those who ask.
//!
//! Asked for are modules by name or alias (`request_module`) and crypto algorithms by name; templates of the crypto API ask
//! for an algorithm of some kind. Offered are aliases (`MODULE_ALIAS…`) and algorithms (`cra_name`). Names begin as aliases
//! do: `crypto-xts(aes)`, `ip_set_hash:ip`.

use std::{collections::HashMap, sync::LazyLock};

use regex::Regex;

use crate::{
    Expr,
    objects::{always, both},
};

/// An algorithm of a kind, whatever its name: what calls ask for one, and what marks a file that registers one.
struct Kind {
    name: &'static str,
    asks: &'static [&'static str],
    offers: &'static [&'static str],
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "a block cipher",
        asks: &["crypto_grab_cipher", "skcipher_alloc_instance_simple"],
        offers: &["CRYPTO_ALG_TYPE_CIPHER"],
    },
    Kind {
        name: "a symmetric cipher",
        asks: &["crypto_grab_skcipher", "crypto_alloc_skcipher", "crypto_alloc_sync_skcipher"],
        offers: &["crypto_register_skcipher", "crypto_register_skciphers", "skcipher_register_instance"],
    },
    Kind {
        name: "a hash",
        asks: &["crypto_grab_shash", "crypto_grab_ahash", "crypto_alloc_shash", "crypto_alloc_ahash"],
        offers: &["crypto_register_shash", "crypto_register_shashes", "shash_register_instance"],
    },
];

/// What a file says, each with its condition within the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Formats of names, with printf's conversions for what users say.
    pub(crate) asks: Vec<(String, Expr)>,
    /// Names.
    pub(crate) offers: Vec<(String, Expr)>,
}

/// The beginnings of the names that `MODULE_ALIAS_…` macros make.
pub(crate) type Prefixes = HashMap<String, String>;

fn regex(text: &str) -> Regex {
    Regex::new(text).expect("a valid expression")
}

static COMMENT: LazyLock<Regex> = LazyLock::new(|| regex(r"(?s)/\*.*?\*/"));
static CALL: LazyLock<Regex> =
    LazyLock::new(|| regex(r"request_module(?:_nowait)?\s*\(|\bcrypto_alloc_\w+\s*\("));
static LITERALS: LazyLock<Regex> = LazyLock::new(|| regex(r#"([\w)]?)\s*((?:"[^"]*"\s*)+)"#));
static ALIAS: LazyLock<Regex> = LazyLock::new(|| regex(r"\b(MODULE_ALIAS\w*)\s*\(([^;]*)\)\s*;"));
static ALGORITHM: LazyLock<Regex> = LazyLock::new(|| regex(r#"\bcra_name\s*=\s*"([^"]+)""#));
static DEFINITION: LazyLock<Regex> =
    LazyLock::new(|| regex(r"(?m)^[ \t]*#[ \t]*define[ \t]+(MODULE_ALIAS_\w+)\([^)]*\)((?:.*\\\n)*.*)$"));
static PREFIX: LazyLock<Regex> = LazyLock::new(|| regex(r#""([^"]*[-_])""#));
static TEST: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"(?:IS_ENABLED|IS_REACHABLE|IS_BUILTIN|IS_MODULE|defined)\s*\(\s*CONFIG_(\w+)\s*\)")
});

/// Adds the macros that a header defines.
pub(crate) fn prefixes(header: &str, known: &mut Prefixes) {
    for macro_ in DEFINITION.captures_iter(header) {
        if let Some(prefix) = PREFIX.captures(&macro_[2]) {
            known.insert(macro_[1].to_owned(), prefix[1].to_owned());
        }
    }
}

/// Words without one of which a file says nothing.
const MARKS: [&str; 7] = [
    "request_module",
    "MODULE_ALIAS",
    "cra_name",
    "crypto_",
    "skcipher_",
    "shash_",
    "CRYPTO_ALG_TYPE_CIPHER",
];

/// Reads a C file.
pub(crate) fn facts(text: &str, prefixes: &Prefixes) -> Facts {
    if !MARKS.iter().any(|mark| text.contains(mark)) {
        return Facts::default();
    }
    // Comments leave their line ends: conditions are found by line.
    let text = COMMENT
        .replace_all(text, |comment: &regex::Captures<'_>| "\n".repeat(comment[0].matches('\n').count()));
    let conditions = conditions(&text);
    let at = |offset: usize| conditions[text[..offset].matches('\n').count()].clone();
    let mut facts = Facts::default();
    for call in CALL.find_iter(&text) {
        if let Some(name) = asked(&text[call.start()..], call.len()) {
            facts.asks.push((name, at(call.start())));
        }
    }
    for alias in ALIAS.captures_iter(&text) {
        let prefix =
            if &alias[1] == "MODULE_ALIAS" { Some("") } else { prefixes.get(&alias[1]).map(String::as_str) };
        let Some(prefix) = prefix else { continue };
        let own: String = alias[2].chars().filter(|c| !c.is_whitespace() && *c != '"').collect();
        facts.offers.push((format!("{prefix}{own}"), at(alias.get(0).map_or(0, |m| m.start()))));
    }
    for algorithm in ALGORITHM.captures_iter(&text) {
        let place = algorithm.get(0).map_or(0, |m| m.start());
        facts.offers.push((format!("crypto-{}", &algorithm[1]), at(place)));
    }
    for kind in &KINDS {
        let uses =
            |word: &&str| text.contains(*word) && !text.contains(&format!("EXPORT_SYMBOL_GPL({word})"));
        if kind.asks.iter().any(uses) {
            facts.asks.push((kind.name.to_owned(), always()));
        }
        if kind.offers.iter().any(uses) {
            facts.offers.push((kind.name.to_owned(), always()));
        }
    }
    facts
}

/// The name that a call asks for; none if the call leaves all of it to its caller.
fn asked(call: &str, open: usize) -> Option<String> {
    let mut depth = 1_usize;
    let end = call[open..].char_indices().find_map(|(index, c)| {
        depth = match c {
            '(' => depth + 1,
            ')' => depth - 1,
            _ => depth,
        };
        (depth == 0).then_some(open + index)
    })?;
    let mut literals = LITERALS.captures_iter(&call[open..end]);
    let join = |literal: &regex::Captures<'_>| literal[2].split('"').skip(1).step_by(2).collect::<String>();
    let first = literals.next()?;
    // A macro before the literal is a part of the name.
    if !first[1].is_empty() {
        return None;
    }
    let name = join(&first);
    if call.starts_with("crypto_alloc") {
        return Some(format!("crypto-{name}"));
    }
    let name = if name == "%s" { join(&literals.next()?) } else { name };
    (!name.starts_with('%') && !name.is_empty()).then_some(name)
}

/// The condition of each line, and of the end, as far as it is one of configuration symbols.
fn conditions(text: &str) -> Vec<Expr> {
    let mut around: Vec<Expr> = Vec::new();
    let mut lines = Vec::new();
    for line in text.split('\n') {
        let directive = line.trim_start().strip_prefix('#').map(str::trim_start).unwrap_or_default();
        let (word, rest) = directive.split_once(char::is_whitespace).unwrap_or((directive, ""));
        match word {
            "ifdef" | "if" => around.push(condition(rest)),
            "ifndef" => around.push(negated(&condition(rest))),
            "else" => {
                if let Some(last) = around.last_mut() {
                    *last = negated(last);
                }
            }
            "elif" => {
                if let Some(last) = around.last_mut() {
                    *last = always();
                }
            }
            "endif" => _ = around.pop(),
            _ => {}
        }
        lines.push(around.iter().fold(always(), |all, one| both(&all, one)));
    }
    lines
}

/// The condition of `#if`, or of `#ifdef`; true where it is about something else.
fn condition(text: &str) -> Expr {
    let text = text.trim();
    if let Some(symbol) =
        text.strip_prefix("CONFIG_").filter(|name| !name.contains(|c: char| !c.is_alphanumeric() && c != '_'))
    {
        return Expr::Symbol(symbol.to_owned());
    }
    let replaced = TEST.replace_all(text, "$1");
    match Expr::parse(&replaced) {
        Some(expr) if TEST.is_match(text) && !replaced.contains('(') => expr,
        _ => always(),
    }
}

fn negated(condition: &Expr) -> Expr {
    if *condition == always() { always() } else { Expr::Not(Box::new(condition.clone())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> (Vec<String>, Vec<String>) {
        let mut known = Prefixes::new();
        prefixes(
            "#define MODULE_ALIAS_NF_LOGGER(family, type) \\\n\tMODULE_ALIAS(\"nf-logger-\" __stringify(family))\n\
             #define MODULE_ALIAS_CRYPTO(name)\t\\\n\tMODULE_INFO(alias, name);\t\\\n\tMODULE_INFO(alias, \"crypto-\" name)\n",
            &mut known,
        );
        let facts = facts(text, &known);
        let print = |(name, condition): (String, Expr)| format!("{name} if {condition}");
        (facts.asks.into_iter().map(print).collect(), facts.offers.into_iter().map(print).collect())
    }

    #[test]
    fn requests_are_found_in_all_their_forms() {
        let (asks, _) = told(
            "/* request_module(\"not\") */\nrequest_module(\"nfsv%d\", version);\n\
             nft_request_module(net, \"%s\", \"nf_log_syslog\");\n\
             try_then_request_module(find_nls(charset), \"nls_%s\", charset);\n\
             request_module(NET_SCH_ALIAS_PREFIX \"%s\", name);\nrequest_module(\"%s\", name);\n\
             request_module(\"%st_%s\", xt_prefix[af], name);\n\
             tfm = crypto_alloc_aead(\"gcm(aes)\", 0, 0);\ntfm = crypto_alloc_aead(name, 0, 0);\n",
        );
        assert_eq!(asks, ["nfsv%d if y", "nf_log_syslog if y", "nls_%s if y", "crypto-gcm(aes) if y"]);
    }

    #[test]
    fn offers_have_the_names_that_are_asked_for() {
        let (_, offers) = told(
            "MODULE_ALIAS(\"ip_set_hash:ip\");\nMODULE_ALIAS_NF_LOGGER(AF_INET, 0);\nMODULE_ALIAS_CRYPTO(\"xts\");\n\
             MODULE_ALIAS_UNKNOWN(\"x\");\n.base.cra_name = \"xts(aes)\",\n",
        );
        assert_eq!(
            offers,
            ["ip_set_hash:ip if y", "nf-logger-AF_INET,0 if y", "crypto-xts if y", "crypto-xts(aes) if y"]
        );
    }

    #[test]
    fn templates_ask_for_a_kind_and_its_definition_does_not() {
        let (asks, offers) = told(
            "inst = skcipher_alloc_instance_simple(tmpl, tb);\nskcipher_register_instance(tmpl, inst);\n",
        );
        assert_eq!(asks, ["a block cipher if y"]);
        assert_eq!(offers, ["a symmetric cipher if y"]);
        let (asks, _) = told("int crypto_grab_skcipher(x) { }\nEXPORT_SYMBOL_GPL(crypto_grab_skcipher);\n");
        assert!(asks.is_empty());
    }

    #[test]
    fn conditions_of_the_preprocessor_count() {
        let (asks, _) = told(
            "#ifdef CONFIG_A\nrequest_module(\"a\");\n#else\nrequest_module(\"b\");\n#endif\n\
             #if IS_ENABLED(CONFIG_C) && !defined(CONFIG_D)\nrequest_module(\"c\");\n#endif\n\
             #if LINUX > 5\nrequest_module(\"d\");\n#endif\nrequest_module(\"e\");\n",
        );
        assert_eq!(asks, ["a if A", "b if !A", "c if C && !D", "d if y", "e if y"]);
    }
}
