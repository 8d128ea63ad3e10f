//! Kernels that take turns, so that whatever else the host does strikes all alike.

use crate::{Kernel, Machine, Result, Runner, Spread, run::Outcome};

/// What each kernel gave, in the order of the rounds.
pub(crate) struct Rounds<T> {
    pub(crate) kernels: Vec<String>,
    /// By kernel, then by round.
    values: Vec<Vec<T>>,
}

impl<T> Rounds<T> {
    /// Runs each kernel's machine once a round.
    pub(crate) fn run(
        runner: &Runner,
        kernels: &[Kernel],
        rounds: u32,
        machine: &Machine,
        mut take: impl FnMut(&Outcome) -> Result<T>,
    ) -> Result<Self> {
        let mut values: Vec<Vec<T>> = kernels.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds.max(1) {
            for (kernel, values) in kernels.iter().zip(&mut values) {
                values.push(take(&runner.run(kernel, machine)?)?);
            }
        }
        Ok(Self { kernels: kernels.iter().map(|kernel| kernel.name.clone()).collect(), values })
    }

    /// A number of each round of a kernel's.
    pub(crate) fn spread(&self, kernel: usize, number: impl Fn(&T) -> f64) -> Spread {
        Spread::of(self.values[kernel].iter().map(number))
    }

    /// The number's ratio to that of the last kernel in the same round.
    pub(crate) fn ratio(&self, kernel: usize, number: impl Fn(&T) -> f64) -> Spread {
        let last = &self.values[self.values.len() - 1];
        let pairs = self.values[kernel].iter().zip(last);
        Spread::of(
            pairs.map(|(ours, theirs)| number(ours) / number(theirs)).filter(|ratio| ratio.is_finite()),
        )
    }

    /// What a kernel's ratio is to.
    pub(crate) fn reference(&self) -> &str {
        self.kernels.last().map_or("", String::as_str)
    }

    /// The first round of a kernel.
    pub(crate) fn first(&self, kernel: usize) -> &T {
        &self.values[kernel][0]
    }

    /// Every round of every kernel, for the data.
    pub(crate) fn data(&self) -> Vec<(&str, &[T])> {
        self.kernels.iter().map(String::as_str).zip(self.values.iter().map(Vec::as_slice)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_runs_of_the_same_round() {
        let rounds = Rounds {
            kernels: vec!["ours".to_owned(), "theirs".to_owned()],
            values: vec![vec![1.0, 20.0, 3.0], vec![10.0, 100.0, 30.0]],
        };
        let ratio = rounds.ratio(0, |value| *value);
        assert!((ratio.median - 0.1).abs() < 1e-12 && (ratio.high - 0.2).abs() < 1e-12, "{ratio:?}");
        assert!((rounds.ratio(1, |value| *value).median - 1.0).abs() < 1e-12);
        assert!((rounds.spread(0, |value| *value).median - 3.0).abs() < 1e-12);
        assert_eq!((rounds.reference(), *rounds.first(0)), ("theirs", 1.0));
    }
}
