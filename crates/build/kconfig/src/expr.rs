//! Kconfig expressions: parsed, printed, and evaluated over values that `conf` has computed.

use std::{cmp::Ordering, fmt};

use crate::{DotConfig, Value};

/// The three states of an expression, `n < m < y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tristate {
    /// `n`
    No,
    /// `m`
    Module,
    /// `y`
    Yes,
}

impl From<bool> for Tristate {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl fmt::Display for Tristate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::No => "n",
            Self::Module => "m",
            Self::Yes => "y",
        })
    }
}

/// How two operands are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `=`
    Equal,
    /// `!=`
    Unequal,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
}

impl Operator {
    const SPELLED: [(&str, Self); 6] = [
        ("!=", Self::Unequal),
        ("<=", Self::LessEqual),
        (">=", Self::GreaterEqual),
        ("=", Self::Equal),
        ("<", Self::Less),
        (">", Self::Greater),
    ];

    fn accepts(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::Unequal => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterEqual => order.is_ge(),
        }
    }
}

/// An expression of a `depends on`, `default`, `select … if` and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// A symbol, or a bare number (a symbol that is defined nowhere stands for its own name).
    Symbol(String),
    /// A quoted string.
    Text(String),
    /// `$(…)`: what it expands to is known to `conf` alone, so its value is unknown here.
    Macro(String),
    /// `!a`
    Not(Box<Expr>),
    /// `a && b && …`
    And(Vec<Expr>),
    /// `a || b || …`
    Or(Vec<Expr>),
    /// `a = b` and its kin.
    Compare(Box<Expr>, Operator, Box<Expr>),
}

impl Expr {
    /// Parses a whole expression; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parser = Parser { rest: text };
        let expr = parser.or()?;
        parser.rest.trim_start().is_empty().then_some(expr)
    }

    /// The value over a configuration; `None` where it hangs on a macro's expansion.
    pub fn value(&self, config: &DotConfig) -> Option<Tristate> {
        self.value_over(&|name| Some(config.value(name)))
    }

    /// The value over what a part of a configuration says; `None` where it hangs on symbols of which it says nothing.
    pub fn value_over_part(&self, part: &DotConfig) -> Option<Tristate> {
        self.value_over(&|name| part.said(name))
    }

    fn value_over<'a>(&self, look_up: &impl Fn(&str) -> Option<&'a Value>) -> Option<Tristate> {
        match self {
            Self::Symbol(name) => Some(match name.as_str() {
                "y" => Tristate::Yes,
                "m" => Tristate::Module,
                "n" => Tristate::No,
                _ => match look_up(name)? {
                    Value::Yes => Tristate::Yes,
                    Value::Module => Tristate::Module,
                    _ => Tristate::No,
                },
            }),
            Self::Text(text) => Some(Tristate::from(text == "y")),
            Self::Macro(_) => None,
            Self::Not(inner) => inner.value_over(look_up).map(|value| match value {
                Tristate::No => Tristate::Yes,
                Tristate::Module => Tristate::Module,
                Tristate::Yes => Tristate::No,
            }),
            // A known n decides a conjunction, a known y a disjunction, whatever the unknown parts are.
            Self::And(parts) => fold(parts, look_up, Tristate::No, Tristate::Yes, Tristate::min),
            Self::Or(parts) => fold(parts, look_up, Tristate::Yes, Tristate::No, Tristate::max),
            Self::Compare(left, operator, right) => {
                let (left, right) = (left.operand(look_up)?, right.operand(look_up)?);
                let order = match (number(&left), number(&right)) {
                    (Some(left), Some(right)) => left.cmp(&right),
                    // A number that is not set is an empty string to conf, and sorts before all others.
                    (None, Some(_)) if left == "n" => Ordering::Less,
                    (Some(_), None) if right == "n" => Ordering::Greater,
                    _ => left.cmp(&right),
                };
                Some(operator.accepts(order).into())
            }
        }
    }

    /// The parts that a conjunction is made of; the expression itself if it is none.
    pub fn conjuncts(&self) -> &[Expr] {
        match self {
            Self::And(parts) => parts,
            _ => std::slice::from_ref(self),
        }
    }

    /// Every symbol that the expression names, in order of appearance, constants left out.
    pub fn symbols(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.collect_symbols(&mut names);
        names
    }

    fn collect_symbols<'a>(&'a self, names: &mut Vec<&'a str>) {
        match self {
            Self::Symbol(name) => {
                let constant = matches!(name.as_str(), "y" | "m" | "n")
                    || name.starts_with(|c: char| c.is_ascii_digit()) && number(name).is_some();
                if !constant && !names.contains(&name.as_str()) {
                    names.push(name);
                }
            }
            Self::Text(_) | Self::Macro(_) => {}
            Self::Not(inner) => inner.collect_symbols(names),
            Self::And(parts) | Self::Or(parts) => parts.iter().for_each(|part| part.collect_symbols(names)),
            Self::Compare(left, _, right) => {
                left.collect_symbols(names);
                right.collect_symbols(names);
            }
        }
    }

    /// What a comparison sees of an operand.
    fn operand<'a>(&self, look_up: &impl Fn(&str) -> Option<&'a Value>) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Symbol(name) if matches!(name.as_str(), "y" | "m" | "n") || number(name).is_some() => {
                Some(name.clone())
            }
            Self::Symbol(name) => Some(match look_up(name)? {
                Value::Text(text) => text.clone(),
                value => value.to_string(),
            }),
            _ => None,
        }
    }
}

fn fold<'a>(
    parts: &[Expr],
    look_up: &impl Fn(&str) -> Option<&'a Value>,
    decides: Tristate,
    neutral: Tristate,
    join: fn(Tristate, Tristate) -> Tristate,
) -> Option<Tristate> {
    let mut known = Some(neutral);
    for part in parts {
        match part.value_over(look_up) {
            Some(value) if value == decides => return Some(decides),
            Some(value) => known = known.map(|so_far| join(so_far, value)),
            None => known = None,
        }
    }
    known
}

fn number(text: &str) -> Option<i128> {
    match text.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, parts: &[Expr], by: &str| {
            for (index, part) in parts.iter().enumerate() {
                if index > 0 {
                    write!(f, " {by} ")?;
                }
                match part {
                    Self::And(_) | Self::Or(_) => write!(f, "({part})")?,
                    _ => write!(f, "{part}")?,
                }
            }
            Ok(())
        };
        match self {
            Self::Symbol(name) => f.write_str(name),
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::Macro(text) => write!(f, "$({text})"),
            Self::Not(inner) => match **inner {
                Self::Symbol(_) | Self::Text(_) | Self::Macro(_) | Self::Not(_) => write!(f, "!{inner}"),
                _ => write!(f, "!({inner})"),
            },
            Self::And(parts) => joined(f, parts, "&&"),
            Self::Or(parts) => joined(f, parts, "||"),
            Self::Compare(left, operator, right) => {
                let spelled = Operator::SPELLED.iter().find(|(_, o)| o == operator).map_or("?", |(s, _)| s);
                write!(f, "{left} {spelled} {right}")
            }
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn eat(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        self.rest.strip_prefix(token).inspect(|rest| self.rest = rest).is_some()
    }

    fn or(&mut self) -> Option<Expr> {
        let mut parts = vec![self.and()?];
        while self.eat("||") {
            parts.push(self.and()?);
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Expr::Or(parts) })
    }

    fn and(&mut self) -> Option<Expr> {
        let mut parts = vec![self.unary()?];
        while self.eat("&&") {
            match self.unary()? {
                Expr::And(more) => parts.extend(more),
                one => parts.push(one),
            }
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Expr::And(parts) })
    }

    fn unary(&mut self) -> Option<Expr> {
        if self.eat("!") {
            return Some(Expr::Not(Box::new(self.unary()?)));
        }
        if self.eat("(") {
            let inner = self.or()?;
            return self.eat(")").then_some(inner);
        }
        let left = self.operand()?;
        for (spelled, operator) in Operator::SPELLED {
            if self.eat(spelled) {
                return Some(Expr::Compare(Box::new(left), operator, Box::new(self.operand()?)));
            }
        }
        Some(left)
    }

    fn operand(&mut self) -> Option<Expr> {
        self.rest = self.rest.trim_start();
        if let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '"' | '\'')) {
            let (text, rest) = self.rest[1..].split_once(quote)?;
            self.rest = rest;
            return Some(match whole_macro(text) {
                Some(inner) => Expr::Macro(inner.to_owned()),
                None => Expr::Text(text.to_owned()),
            });
        }
        if self.rest.starts_with("$(") {
            let end = macro_end(self.rest)?;
            let inner = &self.rest[2..end - 1];
            self.rest = &self.rest[end..];
            return Some(Expr::Macro(inner.to_owned()));
        }
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/')))
            .unwrap_or(self.rest.len());
        let (word, rest): (&'a str, &'a str) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then(|| Expr::Symbol(word.to_owned()))
    }
}

fn whole_macro(text: &str) -> Option<&str> {
    (text.starts_with("$(") && macro_end(text) == Some(text.len())).then(|| &text[2..text.len() - 1])
}

/// Where the `$(…)` that the text starts with ends, parentheses inside it counted.
fn macro_end(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (index, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => {
                depth -= 1;
                if depth == 0 {
                    return Some(index + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> DotConfig {
        [
            ("YES", Value::Yes),
            ("MOD", Value::Module),
            ("NUM", Value::Int(120_300)),
            ("TEXT", Value::Text("x86".into())),
        ]
        .into_iter()
        .collect()
    }

    fn value(text: &str) -> Option<Tristate> {
        Expr::parse(text).unwrap_or_else(|| panic!("{text}")).value(&config())
    }

    #[test]
    fn operators_follow_the_kconfig_language() {
        for (text, expected) in [
            ("YES && MOD", Tristate::Module),
            ("YES && NONE", Tristate::No),
            ("NONE || MOD", Tristate::Module),
            ("!MOD", Tristate::Module),
            ("!NONE", Tristate::Yes),
            ("MOD = m", Tristate::Yes),
            ("MOD != n && NONE = n", Tristate::Yes),
            ("NUM >= 120000", Tristate::Yes),
            ("NUM < 90000", Tristate::No),
            ("NO_NUM > 1", Tristate::No),
            ("1 > NO_NUM", Tristate::Yes),
            ("TEXT = \"x86\"", Tristate::Yes),
            ("!(YES || MOD) || m", Tristate::Module),
            ("YES && (NONE || YES)", Tristate::Yes),
        ] {
            assert_eq!(value(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn macros_are_unknown_unless_the_rest_decides() {
        assert_eq!(value("$(cc-option,-mfoo(bar))"), None);
        assert_eq!(value("YES && $(success,test -e /x)"), None);
        assert_eq!(value("NONE && $(success,true)"), Some(Tristate::No));
        assert_eq!(value("YES || $(success,true)"), Some(Tristate::Yes));
        assert_eq!(value("\"$(ARCH)\" = \"x86\""), None);
    }

    #[test]
    fn printing_and_parsing_agree() {
        for text in [
            "A && B && (C || !D)",
            "!(A && B)",
            "A >= 3 || B = \"x\"",
            "$(cc-option,-x) && A",
            "A && (B = m || $(f,$(g),h))",
        ] {
            assert_eq!(Expr::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Expr::parse("A&&B||C").unwrap().to_string(), "(A && B) || C");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "A &&", "(A", "A B", "= 3", "$(open"] {
            assert_eq!(Expr::parse(text), None, "{text}");
        }
    }

    #[test]
    fn symbols_leave_constants_out() {
        let expr = Expr::parse("A && GCC_VERSION >= 90000 && A = y || B != \"C\" || 64BIT").unwrap();
        assert_eq!(expr.symbols(), ["A", "GCC_VERSION", "B", "64BIT"]);
    }
}
