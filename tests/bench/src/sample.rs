//! Measured times, and what is said of them.

use std::time::{Duration, Instant};

/// Times of one kind of work, in milliseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1000.0);
    }

    /// Measures a piece of work.
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        self.push(began.elapsed());
        done
    }

    /// Measures work that waits for somebody.
    pub(crate) async fn wait<T>(&mut self, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let done = work.await;
        self.push(began.elapsed());
        done
    }

    /// All of several.
    pub(crate) fn together(parts: Vec<Self>) -> Self {
        Self(parts.into_iter().flat_map(|part| part.0).collect())
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn p50(&self) -> f64 {
        quantile(&self.0, 0.50)
    }

    pub(crate) fn p99(&self) -> f64 {
        quantile(&self.0, 0.99)
    }
}

/// A number that so many of the values do not exceed; zero when there are none.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index from a part between 0 and 1 of a small length"
    )]
    let index = ((sorted.len().saturating_sub(1)) as f64 * part).round() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

/// Between which values the median of what these were drawn from lies, with 95 % certainty, whatever its
/// distribution is: so far from the middle the number of values below it hardly ever gets.
pub(crate) fn median_lies_within(values: &[f64]) -> (f64, f64) {
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    let off = 0.98 / (values.len().max(1) as f64).sqrt();
    (quantile(values, (0.5 - off).max(0.0)), quantile(values, (0.5 + off).min(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_values_there_are_the_better_the_median_is_known() {
        let few: Vec<f64> = (0..9).map(f64::from).collect();
        let many: Vec<f64> = (0..900).map(|n| f64::from(n) / 100.0).collect();
        let width = |values: &[f64]| {
            let (low, high) = median_lies_within(values);
            assert!(low <= quantile(values, 0.5) && quantile(values, 0.5) <= high);
            high - low
        };
        assert!(width(&many) < 0.2 * width(&few), "{} {}", width(&many), width(&few));
    }

    #[test]
    fn the_median_is_the_value_in_the_middle_whatever_the_order() {
        assert!((quantile(&[9.0, 1.0, 5.0], 0.5) - 5.0).abs() < f64::EPSILON);
        assert!((quantile(&[9.0, 1.0, 5.0], 1.0) - 9.0).abs() < f64::EPSILON);
        assert!(quantile(&[], 0.5).abs() < f64::EPSILON);
    }
}
