//! Values of Kconfig symbols.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

/// A symbol's value, as requested or as found in a `.config`. A symbol that is not set is [`Value::No`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// `n`: not set.
    No,
    /// `m`: a module.
    Module,
    /// `y`: built in.
    Yes,
    /// A decimal number.
    Int(i64),
    /// A hexadecimal number.
    Hex(u64),
    /// A string, without its quotes.
    Text(String),
}

impl Value {
    /// Reads the right-hand side of a line of a `.config`; `None` if it is no value.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "n" => return Some(Self::No),
            "m" => return Some(Self::Module),
            "y" => return Some(Self::Yes),
            _ => {}
        }
        if let Some(quoted) = text.strip_prefix('"') {
            return Some(Self::Text(unescape(quoted.strip_suffix('"')?)));
        }
        if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            return u64::from_str_radix(hex, 16).ok().map(Self::Hex);
        }
        text.parse().ok().map(Self::Int)
    }

    /// The line of a `.config` that says so.
    pub fn line(&self, symbol: &str) -> String {
        match self {
            Self::No => format!("# CONFIG_{symbol} is not set"),
            _ => format!("CONFIG_{symbol}={self}"),
        }
    }

    /// Whether the symbol is in the kernel in any form.
    pub fn is_set(&self) -> bool {
        *self != Self::No
    }
}

fn unescape(quoted: &str) -> String {
    let mut out = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("n"),
            Self::Module => f.write_str("m"),
            Self::Yes => f.write_str("y"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Hex(number) => write!(f, "{number:#x}"),
            Self::Text(text) => write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        }
    }
}

/// In TOML: `"y"`, `"m"`, `"n"`, a number, `"0x…"` for a hexadecimal symbol, any other string for itself.
impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"y\", \"m\", \"n\", a number or a string")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
                Ok(Value::Int(number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
                Ok(match Value::parse(text) {
                    Some(value @ (Value::No | Value::Module | Value::Yes | Value::Hex(_))) => value,
                    _ => Value::Text(text.to_owned()),
                })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_a_round_trip_through_a_config_line() {
        for value in [
            Value::Module,
            Value::Yes,
            Value::Int(-3),
            Value::Hex(0x100_0000),
            Value::Text(r#"a "quoted" \ path"#.into()),
            Value::Text(String::new()),
        ] {
            let line = value.line("X");
            assert_eq!(Value::parse(line.strip_prefix("CONFIG_X=").unwrap()), Some(value));
        }
        assert_eq!(Value::No.line("X"), "# CONFIG_X is not set");
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in ["", "yes", "\"open", "0xzz", "1.5"] {
            assert_eq!(Value::parse(text), None, "{text}");
        }
    }
}
