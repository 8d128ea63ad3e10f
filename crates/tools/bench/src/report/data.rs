//! The data of a report.

use serde::Serialize;

/// A bench's result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The bench's word on the command line.
    pub bench: String,
    /// When and where it was taken.
    pub taken: Taken,
    /// What was done, and how the numbers are to be read.
    pub how: Vec<String>,
    /// The results for people.
    pub tables: Vec<Table>,
    /// Drawn in the HTML report.
    #[serde(skip)]
    pub(crate) plots: Vec<Plot>,
    /// The results for programs.
    pub data: serde_json::Value,
}

/// Circumstances.
#[derive(Clone, Debug, Serialize)]
pub struct Taken {
    /// The time, UTC.
    pub when: String,
    /// The host's processor.
    pub processor: String,
    /// Which virtual processor was asked for.
    pub accel: String,
    /// The program's version.
    pub version: String,
}

impl Taken {
    fn now(accel: &str) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        Self {
            when: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            processor: model
                .and_then(|line| line.split_once(": "))
                .map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned()),
            accel: accel.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// The columns' heads.
    pub columns: Vec<String>,
    /// The rows, as many cells as there are columns.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { title: title.into(), columns, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl Report {
    pub(crate) fn new(bench: &str, accel: &str, how: &[&str], data: &impl Serialize) -> Self {
        Self {
            bench: bench.to_owned(),
            taken: Taken::now(accel),
            how: how.iter().map(|&line| line.to_owned()).collect(),
            tables: Vec::new(),
            plots: Vec::new(),
            // Numbers and strings in structs and maps with string keys.
            data: serde_json::to_value(data).unwrap_or_default(),
        }
    }
}

/// A plot.
#[derive(Clone, Debug)]
pub(crate) enum Plot {
    /// A bar for each series in each group.
    Bars { title: String, unit: String, groups: Vec<String>, series: Vec<(String, Vec<f64>)> },
    /// A line for each series.
    Lines { title: String, x: String, y: String, series: Vec<(String, Vec<(f64, f64)>)> },
}
