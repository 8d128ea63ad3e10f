//! What a bench found: tables and plots for people, all the data for programs.

mod data;
mod html;
mod plot;

use std::fmt::{self, Display};

use comfy_table::{CellAlignment, presets::UTF8_HORIZONTAL_ONLY};

use crate::Result;

pub(crate) use data::Plot;
pub use data::{Report, Table};

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

impl Report {
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
