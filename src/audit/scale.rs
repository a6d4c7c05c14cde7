//! The scale of a heat map: which place a value takes, and which values deserve a tick.

/// How values become colours: evenly from 0, or by magnitude where they span more than two decades.
pub(super) struct Scale {
    low: f64,
    high: f64,
    is_logarithmic: bool,
}

impl Scale {
    pub(super) fn over<'a>(values: impl Iterator<Item = &'a f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|v| v.is_finite() && **v > 0.0) {
            (low, high) = (low.min(*value), high.max(*value));
        }
        let is_logarithmic = high > 100.0 * low;
        Self {
            low: if is_logarithmic { low } else { 0.0 },
            high: if high > 0.0 { high } else { 1.0 },
            is_logarithmic,
        }
    }

    /// From 0 to 1.
    pub(super) fn place(&self, value: f64) -> f64 {
        if value.is_infinite() {
            return 1.0;
        }
        if self.is_logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            value / self.high
        }
    }

    /// Round values within the scale, three to eight of them.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if self.is_logarithmic {
            let decades = self.low.log10().ceil()..=self.high.log10().floor();
            let (first, last) = decades.into_inner();
            let step = ((last - first) / 6.0).ceil().max(1.0);
            return (0..=7)
                .map(|i| first + f64::from(i) * step)
                .take_while(|exponent| *exponent <= last)
                .map(|exponent| 10.0_f64.powf(exponent))
                .collect();
        }
        let rough = self.high / 3.0;
        let power = 10.0_f64.powf(rough.log10().floor());
        let nice = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power);
        let step = nice.into_iter().rfind(|s| *s <= rough).unwrap_or(rough);
        (0..=8).map(|i| f64::from(i) * step).take_while(|v| *v <= self.high).collect()
    }
}

/// A tick's value: round, so without the zeros that measurements keep.
pub(super) fn round_amount(value: f64) -> String {
    let percent = value * 100.0;
    if percent == 0.0 || percent > 0.000_09 {
        let digits = format!("{percent:.6}");
        return format!("{} %", digits.trim_end_matches('0').trim_end_matches('.'));
    }
    format!("{value:.0e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_even_or_by_magnitude() {
        let even = Scale::over([0.0, 0.01, 0.04].iter());
        assert!((even.place(0.02) - 0.5).abs() < 1e-12);
        assert_eq!(even.ticks().len(), 5);
        let wide = Scale::over([1e-6, 1e-2, f64::INFINITY, f64::NAN].iter());
        assert!((wide.place(1e-4) - 0.5).abs() < 1e-12);
        assert_eq!(wide.ticks().len(), 5);
        assert!(Scale::over([].iter()).place(0.0).abs() < 1e-12);
    }

    #[test]
    fn ticks_read_well() {
        let shown = [0.0, 0.005, 0.01, 0.025, 1e-5, 1e-8].map(round_amount);
        assert_eq!(shown, ["0 %", "0.5 %", "1 %", "2.5 %", "0.001 %", "1e-8"]);
    }
}
