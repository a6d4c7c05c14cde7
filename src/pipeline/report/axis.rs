//! Axes: from values to places, and round values to mark.

/// A scale from values to pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    is_logarithmic: bool,
}

impl Axis {
    /// Even, between pixels `from` and `to`; a span of nothing is widened.
    pub(super) fn linear((low, high): (f64, f64), from: f64, to: f64) -> Self {
        let pad = if high > low { 0.0 } else { (low.abs() * 0.05).max(0.5) };
        Self { low: low - pad, high: high + pad, from, to, is_logarithmic: false }
    }

    /// By ratios, with a little room at both ends.
    pub(super) fn logarithmic((low, high): (f64, f64), from: f64, to: f64) -> Self {
        let room = (high / low).powf(0.06).max(1.04);
        Self { low: low / room, high: high * room, from, to, is_logarithmic: true }
    }

    /// The pixel of a value.
    pub(super) fn place(&self, value: f64) -> f64 {
        let share = if self.is_logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Round values within the scale, about so many, with as many digits as they need.
    pub(super) fn ticks(&self, about: f64) -> Vec<(f64, String)> {
        if self.is_logarithmic && self.high / self.low > 2.5 {
            return self.ticks_of_decades();
        }
        let step = round_up((self.high - self.low) / about.max(1.0));
        let digits = decimals(step);
        let mut value = (self.low / step).ceil() * step;
        let mut ticks = Vec::new();
        while value <= self.high + step * 1e-9 && ticks.len() < 12 {
            ticks.push((value, format!("{value:.digits$}")));
            value += step;
        }
        ticks
    }

    /// 1, 2 and 5 of every decade; more of them in half a decade, 1 alone where there are many.
    fn ticks_of_decades(&self) -> Vec<(f64, String)> {
        let (first, last) = (self.low.log10().floor(), self.high.log10().ceil());
        let parts: &[f64] = match self.high / self.low {
            ratio if ratio < 8.0 => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
            ratio if ratio < 1000.0 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let mut ticks = Vec::new();
        let mut decade = first;
        while decade <= last && ticks.len() < 24 {
            let values = parts.iter().map(|part| part * 10.0_f64.powf(decade));
            let within = values.filter(|v| (self.low..=self.high).contains(v));
            ticks.extend(within.map(|v| (v, format!("{v:.0$}", decimals(v)))));
            decade += 1.0;
        }
        ticks
    }
}

/// The next of 1, 2, 2.5, 5 times a power of ten.
fn round_up(rough: f64) -> f64 {
    let power = 10.0_f64.powf(rough.log10().floor());
    let nice = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power);
    nice.into_iter().find(|step| *step >= rough * (1.0 - 1e-9)).unwrap_or(rough)
}

/// Digits behind the point that a step needs.
fn decimals(step: f64) -> usize {
    (0..6)
        .find(|digits| {
            let scaled = step * 10.0_f64.powi(*digits);
            (scaled - scaled.round()).abs() < 1e-6 * scaled.abs().max(1.0)
        })
        .and_then(|digits| usize::try_from(digits).ok())
        .unwrap_or(6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(axis: Axis, about: f64) -> Vec<String> {
        axis.ticks(about).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round() {
        let axis = Axis::linear((2.31, 2.94), 0.0, 100.0);
        assert_eq!(shown(axis, 4.0), ["2.4", "2.6", "2.8"]);
        assert_eq!(shown(Axis::linear((1.0, 442.0), 0.0, 1.0), 5.0), ["100", "200", "300", "400"]);
        assert_eq!(
            shown(Axis::logarithmic((6.0, 120.0), 0.0, 1.0), 4.0),
            ["10", "20", "50", "100"]
        );
        assert!(!Axis::linear((3.0, 3.0), 0.0, 1.0).ticks(3.0).is_empty());
        assert_eq!(shown(Axis::logarithmic((8.0, 14.0), 0.0, 1.0), 4.0), ["8", "10", "12", "14"]);
    }

    #[test]
    fn places_are_held_to_the_frame() {
        let axis = Axis::linear((0.0, 10.0), 100.0, 0.0);
        let found = [0.0, 5.0, 99.0].map(|value| axis.place(value).to_string());
        assert_eq!(found, ["100", "50", "0"]);
        let axis = Axis::logarithmic((10.0, 1000.0), 0.0, 100.0);
        assert!((axis.place(100.0) - 50.0).abs() < 1e-9);
    }
}
