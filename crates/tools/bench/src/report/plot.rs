//! Plots as SVG, by plotters.

use std::ops::Range;

use plotters::{
    coord::Shift,
    prelude::{
        BLACK, ChartBuilder, Color, DrawingArea, IntoDrawingArea, LineSeries, Palette, Palette99, Rectangle,
        SVGBackend, SeriesLabelPosition, WHITE,
    },
};

use super::Plot;
use crate::{Error, Result, numbers::float};

const SIZE: (u32, u32) = (900, 380);
const FONT: (&str, u32) = ("sans-serif", 16);

/// A plot as an SVG element.
pub(super) fn svg(plot: &Plot) -> Result<String> {
    let mut text = String::new();
    let (title, drawn) = {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        match plot {
            Plot::Bars { title, unit, groups, series } => (title, bars(&area, title, unit, groups, series)),
            Plot::Lines { title, x, y, series } => (title, lines(&area, title, [x, y], series)),
        }
    };
    drawn.map_err(|problem| Error::Plot { title: title.clone(), problem })?;
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn problem(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A range with some air around the values, and some width if they are all the same.
fn around(values: impl Iterator<Item = f64> + Clone, floor: Option<f64>) -> Range<f64> {
    let low = values.clone().chain(floor).fold(f64::INFINITY, f64::min);
    let high = values.chain(floor).fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return 0.0..1.0;
    }
    let air = ((high - low) * 0.05).max(f64::EPSILON.max(high.abs() * 1e-9)).max(1e-6);
    (if floor == Some(low) { low } else { low - air })..high + air
}

fn bars(
    area: &Area<'_>,
    title: &str,
    unit: &str,
    groups: &[String],
    series: &[(String, Vec<f64>)],
) -> std::result::Result<(), String> {
    area.fill(&WHITE).map_err(problem)?;
    let height = around(series.iter().flat_map(|(_, values)| values.iter().copied()), Some(0.0));
    let mut chart = ChartBuilder::on(area)
        .caption(title, FONT)
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..float(groups.len()).max(1.0), height)
        .map_err(problem)?;
    // Tick marks between the groups carry their names: one label a group.
    let name = |place: &f64| {
        #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation)]
        let index = place.floor().max(0.0) as usize;
        let middle = (place - place.floor() - 0.5).abs() < 0.01;
        groups.get(index).filter(|_| middle).cloned().unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_labels(2 * groups.len() + 1)
        .x_label_formatter(&name)
        .y_desc(unit)
        .draw()
        .map_err(problem)?;
    let width = 0.8 / float(series.len().max(1));
    for (index, (label, values)) in series.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let rectangles = values.iter().enumerate().map(|(group, value)| {
            let left = float(group) + 0.1 + width * float(index);
            Rectangle::new([(left, 0.0), (left + width * 0.92, *value)], colour.filled())
        });
        chart
            .draw_series(rectangles)
            .map_err(problem)?
            .label(label)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
    }
    finish(&mut chart, series.is_empty())
}

fn lines(
    area: &Area<'_>,
    title: &str,
    [x, y]: [&str; 2],
    series: &[(String, Vec<(f64, f64)>)],
) -> std::result::Result<(), String> {
    area.fill(&WHITE).map_err(problem)?;
    let points = || series.iter().flat_map(|(_, points)| points.iter().copied());
    let mut chart = ChartBuilder::on(area)
        .caption(title, FONT)
        .margin(10)
        .x_label_area_size(45)
        .y_label_area_size(80)
        .build_cartesian_2d(around(points().map(|p| p.0), Some(0.0)), around(points().map(|p| p.1), None))
        .map_err(problem)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc(x).y_desc(y).draw().map_err(problem)?;
    for (index, (label, points)) in series.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))
            .map_err(problem)?
            .label(label)
            .legend(move |(x, y)| Rectangle::new([(x, y - 2), (x + 14, y + 2)], colour.filled()));
    }
    finish(&mut chart, series.is_empty())
}

type Chart<'a, 'b> = plotters::chart::ChartContext<
    'a,
    SVGBackend<'b>,
    plotters::prelude::Cartesian2d<
        plotters::coord::types::RangedCoordf64,
        plotters::coord::types::RangedCoordf64,
    >,
>;

fn finish<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>, empty: bool) -> std::result::Result<(), String> {
    if empty {
        return Ok(());
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_width_whatever_the_values() {
        for values in [vec![], vec![0.0], vec![5.0, 5.0], vec![-1e9, 1e9]] {
            let range = around(values.iter().copied(), None);
            assert!(range.start < range.end, "{values:?}: {range:?}");
        }
        assert!(around([3.0].into_iter(), Some(0.0)).start.abs() < 1e-12);
    }
}
