//! Statistics for people, as a table and as a plot. Programs read [`Statistics`] as JSON.

use std::fmt::{self, Display, Write};

use serde::Serialize;

use super::{Accesses, Statistics};

/// Most rows of a table of accesses: the busiest ports, MSRs or devices.
const LISTED: usize = 12;

/// Statistics displayed as a table.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a>(pub &'a Statistics);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0;
        let total = s.total_exits();
        writeln!(f, "starts {}, console bytes {}, exits {total}", s.starts, s.console_bytes)?;
        if s.failed_outputs > 0 {
            writeln!(f, "frames lost in front of the guest's network interfaces {}", s.failed_outputs)?;
        }
        for (what, ticks) in [("first byte", s.first_byte), ("ready", s.ready)] {
            if let Some(ticks) = ticks {
                writeln!(f, "{what} after {}", Time(s, ticks))?;
            }
        }
        for (phase, ticks) in &s.phase_reached {
            writeln!(f, "{} reached after {}", word(phase), Time(s, *ticks))?;
        }
        counts(f, "exits by kind", s.exits.iter().map(|(kind, n)| (word(kind), *n)), total)?;
        counts(f, "exits by phase", s.phases.iter().map(|(phase, n)| (word(phase), *n)), total)?;
        accesses(f, "device", s.devices.iter().map(|(name, a)| (name.clone(), *a)))?;
        let others = |counts: Accesses| (counts.total() > 0).then(|| ("not listed".to_owned(), counts));
        let ports = s.ports.iter().map(|(port, a)| (format!("{port:#06x}"), *a));
        accesses(f, "port", ports.chain(others(s.other_ports)))?;
        let msrs = s.msrs.iter().map(|(msr, a)| (format!("{msr:#010x}"), *a));
        accesses(f, "MSR", msrs.chain(others(s.other_msrs)))?;
        let interrupts: u64 = s.interrupts.values().sum();
        counts(
            f,
            "interrupts by vector",
            s.interrupts.iter().map(|(v, n)| (format!("{v:#04x}"), *n)),
            interrupts,
        )
    }
}

/// TSC ticks displayed in seconds, or as ticks if the TSC's rate is unknown.
struct Time<'a>(&'a Statistics, u64);

impl Display for Time<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.seconds(self.1) {
            Some(seconds) => write!(f, "{seconds:.3} s"),
            None => write!(f, "{} ticks", self.1),
        }
    }
}

/// JSON's word for a kind or phase.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => unreachable!("kinds and phases are words"),
    }
}

fn counts(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    rows: impl Iterator<Item = (String, u64)>,
    total: u64,
) -> fmt::Result {
    let mut rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return Ok(());
    }
    rows.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    writeln!(f, "\n{title}")?;
    for (name, count) in rows {
        writeln!(f, "  {name:<20} {count:>12} {:>6}", percent(count, total))?;
    }
    Ok(())
}

fn accesses(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    rows: impl Iterator<Item = (String, Accesses)>,
) -> fmt::Result {
    let mut rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return Ok(());
    }
    rows.sort_by_key(|(_, a)| std::cmp::Reverse(a.total()));
    writeln!(f, "\n{:<22} {:>12} {:>12}", format!("accesses by {what}"), "reads", "writes")?;
    for (name, a) in rows.iter().take(LISTED) {
        writeln!(f, "  {name:<20} {:>12} {:>12}", a.reads, a.writes)?;
    }
    if let Some(rest) = rows.get(LISTED..).filter(|rest| !rest.is_empty()) {
        let (reads, writes) = rest.iter().fold((0, 0), |(r, w), (_, a)| (r + a.reads, w + a.writes));
        writeln!(f, "  {:<20} {reads:>12} {writes:>12}", format!("{} others", rest.len()))?;
    }
    Ok(())
}

/// `count` in percent of `total`, rounded down to tenths.
fn percent(count: u64, total: u64) -> String {
    let permille = (u128::from(count) * 1000).checked_div(u128::from(total)).unwrap_or(0);
    format!("{}.{}%", permille / 10, permille % 10)
}

/// Width of the longest bar, width of the names' column and height of a row, in SVG user units.
const BARS: u64 = 480;
const NAMES: u64 = 220;
const ROW: u64 = 20;

/// Statistics as an SVG document: bars for exits by kind and phase and for accesses by device.
pub fn svg(s: &Statistics) -> String {
    let groups = [
        ("Exits by kind", s.exits.iter().map(|(kind, n)| (word(kind), *n)).collect::<Vec<_>>()),
        ("Exits by phase", s.phases.iter().map(|(phase, n)| (word(phase), *n)).collect()),
        ("Accesses by device", s.devices.iter().map(|(name, a)| (name.clone(), a.total())).collect()),
    ];
    let mut body = String::new();
    let mut y = ROW;
    for (title, mut rows) in groups {
        rows.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let most = rows.first().map_or(1, |(_, count)| (*count).max(1));
        let _ = writeln!(body, r#"<text x="8" y="{y}" font-weight="bold">{title}</text>"#);
        for (name, count) in rows {
            y += ROW;
            let width = (u128::from(count) * u128::from(BARS) / u128::from(most)) as u64;
            let (top, name) = (y - 13, escape(&name));
            let _ = writeln!(
                body,
                r##"<text x="{}" y="{y}" text-anchor="end">{name}</text><rect x="{NAMES}" y="{top}" width="{width}" height="16" fill="#4a7"/><text x="{}" y="{y}">{count}</text>"##,
                NAMES - 8,
                NAMES + width + 6,
            );
        }
        y += 2 * ROW;
    }
    let width = NAMES + BARS + 100;
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-family="sans-serif" font-size="13">
{body}</svg>
"#
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExitKind, Phase};

    fn statistics() -> Statistics {
        let mut s =
            Statistics { tsc_hz: 2_000_000_000, starts: 1, ready: Some(3_000_000_000), ..Default::default() };
        s.exits.extend([(ExitKind::In, 30), (ExitKind::InterruptWindow, 10)]);
        s.phases.extend([(Phase::Kernel, 39), (Phase::Idle, 1)]);
        s.devices.insert("pci <b>".into(), Accesses { reads: 20, writes: 5 });
        s.ports.extend((0..20).map(|port| (port, Accesses { reads: u64::from(port), writes: 0 })));
        s
    }

    #[test]
    fn the_table_has_the_busiest_first_and_sums_up_the_rest() {
        let table = Table(&statistics()).to_string();
        for part in ["exits 40", "ready after 1.500 s", "75.0%", "interrupt-window", "8 others", "0x0013"] {
            assert!(table.contains(part), "{part}: {table}");
        }
        assert!(table.find("kernel").unwrap() < table.find("idle").unwrap());
        // Ports 0 to 7.
        assert!(table.contains("8 others                       28"), "{table}");
    }

    #[test]
    fn ticks_are_shown_where_the_rate_is_not_known() {
        let s = Statistics { tsc_hz: 0, ready: Some(7), ..statistics() };
        assert!(Table(&s).to_string().contains("ready after 7 ticks"));
    }

    #[test]
    fn nothing_counted_is_a_table_and_a_plot_too() {
        let s = Statistics::default();
        assert!(Table(&s).to_string().contains("exits 0"));
        assert!(svg(&s).ends_with("</svg>\n"));
    }

    #[test]
    fn the_plots_bars_are_in_proportion_and_names_are_escaped() {
        let plot = svg(&statistics());
        assert!(plot.contains(r#"width="480""#) && plot.contains(r#"width="160""#), "{plot}");
        assert!(plot.contains("pci &lt;b&gt;"));
        assert_eq!(plot.matches("<rect").count(), 5);
    }
}
