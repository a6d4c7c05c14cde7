//! The learning rate of each step, as `get_cosine_schedule_with_warmup` and its kin in transformers have it.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the steps")]

use std::f64::consts::PI;

use super::settings::Schedule;

/// A schedule over a number of steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct LearningRate {
    pub(super) peak: f64,
    pub(super) schedule: Schedule,
    pub(super) warmup: u64,
    pub(super) total: u64,
}

impl LearningRate {
    /// `warmup_ratio` of the steps, rounded up, are warmup.
    pub(super) fn new(peak: f64, schedule: Schedule, warmup_ratio: f64, total: u64) -> Self {
        let warmup = (total as f64 * warmup_ratio).ceil() as u64;
        Self { peak, schedule, warmup, total }
    }

    /// The rate of a step, from 0.
    pub(super) fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup.max(1) as f64;
        }
        let left = self.total.saturating_sub(self.warmup).max(1) as f64;
        let done = (step - self.warmup) as f64 / left;
        self.peak
            * match self.schedule {
                Schedule::Cosine => (0.5 * (1.0 + (PI * done).cos())).max(0.0),
                Schedule::Linear => (1.0 - done).max(0.0),
                Schedule::Constant => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_transformers() {
        // get_*_schedule_with_warmup(num_warmup_steps=2, num_training_steps=6), lr 1.
        let rates = |schedule| {
            let rate = LearningRate::new(1.0, schedule, 0.3, 6);
            (0..6).map(|s| (rate.at(s) * 1e6).round() / 1e6).collect::<Vec<_>>()
        };
        assert_eq!(rates(Schedule::Cosine), [0.0, 0.5, 1.0, 0.853_553, 0.5, 0.146_447]);
        assert_eq!(rates(Schedule::Linear), [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
        assert_eq!(rates(Schedule::Constant), [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(LearningRate::new(2.0, Schedule::Cosine, 0.0, 4).at(0), 2.0);
    }
}
