//! Medians, spreads and slopes.

use serde::{Deserialize, Serialize};

/// What several runs gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The smallest.
    pub low: f64,
    /// The one in the middle.
    pub median: f64,
    /// The largest.
    pub high: f64,
    /// How many there were.
    pub runs: usize,
}

impl Spread {
    /// Of these values; zeroes if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(&low), Some(&high)) = (values.first(), values.last()) else { return Self::default() };
        Self { low, median: quantile(&values, 0.5), high, runs: values.len() }
    }

    /// As text: the median, with the range if there is one.
    pub fn show(&self, digits: usize) -> String {
        if self.runs < 2 || (self.high - self.low).abs() < f64::EPSILON {
            format!("{:.digits$}", self.median)
        } else {
            format!("{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.low, self.high)
        }
    }
}

/// The value below which a share of the sorted values lies, interpolated.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = share.clamp(0.0, 1.0) * float(last);
    #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation)]
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - place.floor())
}

/// The slope of points by Theil and Sen: the median of the slopes between all pairs that are at least a third of the
/// whole length apart. A few points that are far off do not move it.
pub(crate) fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let (first, last) = (points.first()?.0, points.last()?.0);
    let mut slopes = Vec::new();
    for (index, a) in points.iter().enumerate() {
        for b in &points[index + 1..] {
            if b.0 > a.0 && (b.0 - a.0) * 3.0 >= last - first {
                slopes.push((b.1 - a.1) / (b.0 - a.0));
            }
        }
    }
    slopes.sort_by(f64::total_cmp);
    (!slopes.is_empty()).then(|| quantile(&slopes, 0.5))
}

/// A difference of counts as a number to calculate with.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn number(count: i64) -> f64 {
    count as f64
}

/// A count as a number to calculate with.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        let spread = Spread::of([5.0, 1.0, 3.0]);
        assert_eq!((spread.low, spread.median, spread.high, spread.runs), (1.0, 3.0, 5.0, 3));
        assert!((Spread::of([1.0, 2.0]).median - 1.5).abs() < 1e-12);
        assert_eq!(spread.show(0), "3 (1–5)");
        assert_eq!(Spread::of([7.0]).show(1), "7.0");
        assert_eq!(Spread::of([]).runs, 0);
    }

    #[test]
    fn a_slope_ignores_what_is_far_off() {
        let mut points: Vec<(f64, f64)> = (0..60).map(|n| (f64::from(n), f64::from(n) * 2.0)).collect();
        points[10].1 += 1e6;
        points[50].1 -= 1e6;
        assert!((slope(&points).unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(slope(&points[..1]), None);
        assert_eq!(slope(&[]), None);
    }

    proptest! {
        #[test]
        fn a_quantile_is_between_the_ends(mut values in proptest::collection::vec(-1e9..1e9f64, 1..50), share in 0.0..1.0f64) {
            values.sort_by(f64::total_cmp);
            let found = quantile(&values, share);
            prop_assert!(found >= values[0] && found <= values[values.len() - 1]);
        }
    }
}
