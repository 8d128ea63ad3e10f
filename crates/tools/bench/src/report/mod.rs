//! What a bench found: tables and plots for people, all the data for programs.

mod html;
mod plot;

use std::fmt::{self, Display};

use comfy_table::{CellAlignment, presets::UTF8_HORIZONTAL_ONLY};
use serde::Serialize;

use crate::Result;

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

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = comfy_table::Table::new();
        table.load_preset(UTF8_HORIZONTAL_ONLY).set_header(&self.columns).add_rows(&self.rows);
        // Words to the left, numbers to the right.
        for (index, column) in table.column_iter_mut().enumerate() {
            let number =
                |row: &Vec<String>| row[index].starts_with(|c: char| c.is_ascii_digit() || "-+±".contains(c));
            if self.rows.iter().any(number) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        write!(f, "{}\n{table}", self.title)
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

    /// The report as JSON.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The report as one HTML file that needs no other.
    pub fn html(&self) -> Result<String> {
        html::page(self)
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in &self.tables {
            writeln!(f, "{table}\n")?;
        }
        self.how.iter().try_for_each(|line| writeln!(f, "- {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new("boot", "nested", &["counted <exits>"], &[1, 2]);
        let mut table = Table::new("Exits & more", &["kernel", "exits"]);
        table.row(["a<b".to_owned(), "12".to_owned()]);
        report.tables.push(table);
        report.plots.push(Plot::Bars {
            title: "Exits".to_owned(),
            unit: "exits".to_owned(),
            groups: vec!["pit".to_owned(), "pci".to_owned()],
            series: vec![("a<b".to_owned(), vec![1.0, 2.0]), ("c".to_owned(), vec![3.0, 0.0])],
        });
        report.plots.push(Plot::Lines {
            title: "Drift".to_owned(),
            x: "s".to_owned(),
            y: "µs".to_owned(),
            series: vec![("a".to_owned(), vec![(0.0, 0.0), (1.0, -5.0)]), ("empty".to_owned(), vec![])],
        });
        report
    }

    #[test]
    fn the_page_needs_nothing_else_and_is_escaped() {
        let page = report().html().unwrap();
        assert_eq!(page.matches("<svg").count(), 2);
        for part in ["Exits &amp; more", "a&lt;b", "counted &lt;exits&gt;", "nested", "</html>"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        for outside in ["<script", "<link", "src=", "@import", "href="] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_table_and_the_json_have_the_numbers() {
        let text = report().to_string();
        assert!(text.contains("Exits & more") && text.contains("12"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
        assert_eq!((&json["bench"], &json["data"][1]), (&"boot".into(), &2.into()));
        assert_eq!(json["tables"][0]["rows"][0][0], "a<b");
    }

    #[test]
    fn a_plot_of_nothing_is_a_plot() {
        let mut report = report();
        report.plots = vec![
            Plot::Bars { title: "t".into(), unit: "u".into(), groups: vec![], series: vec![] },
            Plot::Lines { title: "t".into(), x: "x".into(), y: "y".into(), series: vec![] },
        ];
        assert_eq!(report.html().unwrap().matches("<svg").count(), 2);
    }
}
