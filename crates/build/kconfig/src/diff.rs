//! Differences between two configurations, either of which may be the requests of a selection.

use std::collections::{BTreeMap, BTreeSet};

use crate::{DotConfig, Requests, Value};

/// The values of one side of a comparison.
#[derive(Clone, Debug)]
pub struct Values {
    values: BTreeMap<String, Value>,
    /// Whether a symbol without a value is not set (a configuration), or unknown (requests).
    complete: bool,
}

impl From<&DotConfig> for Values {
    fn from(config: &DotConfig) -> Self {
        let values = config.iter().map(|(symbol, value)| (symbol.to_owned(), value.clone())).collect();
        Self { values, complete: true }
    }
}

impl From<&Requests> for Values {
    fn from(requests: &Requests) -> Self {
        let values = requests.iter().map(|(symbol, request)| (symbol.to_owned(), request.value.clone()));
        Self { values: values.collect(), complete: false }
    }
}

impl Values {
    fn value(&self, symbol: &str) -> Option<&Value> {
        self.values.get(symbol).or(self.complete.then_some(&Value::No))
    }
}

/// A symbol with different values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The symbol, without `CONFIG_`.
    pub symbol: String,
    /// Its value on the first side.
    pub from: Value,
    /// Its value on the second side.
    pub to: Value,
}

/// The symbols whose values differ, sorted. Requests and a configuration are compared by the symbols of the requests
/// only; in two sets of requests, a symbol that one of them lacks counts as not set there.
pub fn diff(from: &Values, to: &Values) -> Vec<Difference> {
    let both_requests = !from.complete && !to.complete;
    let symbols: BTreeSet<_> = from.values.keys().chain(to.values.keys()).collect();
    let value = |side: &Values, symbol: &str| match side.value(symbol) {
        None if both_requests => Some(Value::No),
        value => value.cloned(),
    };
    symbols
        .into_iter()
        .filter_map(|symbol| {
            let (from, to) = (value(from, symbol)?, value(to, symbol)?);
            (from != to).then(|| Difference { symbol: symbol.clone(), from, to })
        })
        .collect()
}
