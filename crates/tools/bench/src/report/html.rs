//! The report as a page.

use std::fmt::Write;

use super::{Report, Table, plot};
use crate::Result;

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}\
table{border-collapse:collapse;margin:.5rem 0 2rem}th,td{border-bottom:1px solid #ccc;padding:.2rem .8rem;\
text-align:left}td:not(:first-child){font-variant-numeric:tabular-nums}th{border-bottom:2px solid #888}\
svg{max-width:100%;height:auto;margin:.5rem 0 1.5rem}.taken{color:#666}";

pub(super) fn page(report: &Report) -> Result<String> {
    let title = escape(&format!("vmmlinux bench {}", report.bench));
    let taken = &report.taken;
    let circumstances = escape(&format!(
        "{}, {}, accel {}, vmmlinux {}",
        taken.when, taken.processor, taken.accel, taken.version
    ));
    let mut body = format!("<h1>{title}</h1>\n<p class=\"taken\">{circumstances}</p>\n");
    for table in &report.tables {
        body.push_str(&rows(table));
    }
    for drawing in &report.plots {
        body.push_str(&plot::svg(drawing)?);
    }
    body.push_str("<h2>How</h2>\n<ul>\n");
    for line in &report.how {
        let _ = writeln!(body, "<li>{}</li>", escape(line));
    }
    body.push_str("</ul>\n");
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head>\n\
         <body>\n{body}</body>\n</html>\n"
    ))
}

fn rows(table: &Table) -> String {
    let line = |cells: &[String], tag: &str| {
        let cells: Vec<String> =
            cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{}</tr>\n", cells.concat())
    };
    let mut text = format!("<h2>{}</h2>\n<table>\n{}", escape(&table.title), line(&table.columns, "th"));
    text.extend(table.rows.iter().map(|row| line(row, "td")));
    text + "</table>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
