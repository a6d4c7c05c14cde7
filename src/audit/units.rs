//! Sizes, counts and times as people read them.

use std::fmt;

/// A size in bytes, shown in binary units: `512 B`, `416.0 MiB`, `14.96 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    #[expect(clippy::cast_precision_loss, reason = "three or four digits are shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        // A step early, so that rounding never shows `1024.0 MiB`.
        let text = match self.0 {
            n if n < 1 << 10 => format!("{n} B"),
            n if n < 1_048_525 => format!("{:.1} KiB", bytes / 1024.0),
            n if n < 1_073_689_395 => format!("{:.1} MiB", bytes / 1_048_576.0),
            n if n < 1_099_506_259_066 => format!("{:.2} GiB", bytes / 1_073_741_824.0),
            _ => format!("{:.2} TiB", bytes / 1_099_511_627_776.0),
        };
        f.pad(&text)
    }
}

/// A number of elements, shown as model sizes are: `912`, `67.1 M`, `8.03 B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elements(pub u64);

impl fmt::Display for Elements {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0 as f64;
        let text = match self.0 {
            n if n < 10_000 => Grouped(n).to_string(),
            n if n < 999_950 => format!("{:.1} K", count / 1e3),
            n if n < 999_950_000 => format!("{:.1} M", count / 1e6),
            n if n < 999_995_000_000 => format!("{:.2} B", count / 1e9),
            _ => format!("{:.2} T", count / 1e12),
        };
        f.pad(&text)
    }
}

/// A whole number with its thousands apart: `128,256`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouped(pub u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3);
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

/// A ratio in percent, with as many digits as tell something: `37.5 %`, `1.63 %`, `0.0042 %`, `3.1e-7`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(pub f64);

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.0 * 100.0;
        let text = match percent.abs() {
            p if p.is_nan() => "-".to_owned(),
            p if p.is_infinite() => "infinite".to_owned(),
            0.0 => "0".to_owned(),
            p if p >= 10.0 => format!("{percent:.1} %"),
            p if p >= 0.1 => format!("{percent:.2} %"),
            p if p >= 0.001 => format!("{percent:.4} %"),
            _ => format!("{:.1e}", self.0),
        };
        f.pad(&text)
    }
}

/// A time in seconds: `0.42 s`, `41 s`, `3 min 20 s`, `1 h 05 min`, `2 d 03 h`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seconds(pub f64);

impl fmt::Display for Seconds {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole seconds of a time that is not negative; casts saturate"
    )]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.max(0.0);
        let whole = seconds.round() as u64;
        let text = match whole {
            _ if !self.0.is_finite() => "-".to_owned(),
            _ if seconds < 0.995 => format!("{seconds:.2} s"),
            _ if seconds < 9.95 => format!("{seconds:.1} s"),
            0..60 => format!("{whole} s"),
            60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
            // To the next minute, and hour, so that nothing shows `60 min`.
            3600..86_370 => {
                let minutes = (whole + 30) / 60;
                format!("{} h {:02} min", minutes / 60, minutes % 60)
            }
            _ => {
                let hours = (whole + 1800) / 3600;
                format!("{} d {:02} h", hours / 24, hours % 24)
            }
        };
        f.pad(&text)
    }
}

/// A number with three digits and a decimal unit: `812`, `1.10 k`, `463 k`, `2.50 B`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Short(pub f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1.0, ""), (1e3, " k"), (1e6, " M"), (1e9, " B"), (1e12, " T")];
        let size = self.0.abs();
        // A step early, so that rounding never shows `1000 k`.
        let at = units.iter().rposition(|(unit, _)| size >= unit * 0.9995).unwrap_or(0);
        let (unit, name) = units[at];
        let value = self.0 / unit;
        let text = match value.abs() {
            v if !v.is_finite() => "-".to_owned(),
            v if at == 0 && (v >= 100.0 || v.fract() == 0.0) => format!("{value:.0}"),
            v if v >= 99.95 => format!("{value:.0}{name}"),
            v if v >= 9.995 => format!("{value:.1}{name}"),
            _ => format!("{value:.2}{name}"),
        };
        f.pad(&text)
    }
}

/// `1 tensor`, `12 tensors`.
pub(crate) fn counted(count: u64, thing: &str) -> String {
    format!("{} {thing}{}", Grouped(count), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_never_show_a_full_unit_of_the_next() {
        let shown = |n: u64| Bytes(n).to_string();
        assert_eq!(shown(0), "0 B");
        assert_eq!(shown(1023), "1023 B");
        assert_eq!(shown(1024), "1.0 KiB");
        assert_eq!(shown((1 << 20) - 1), "1.0 MiB");
        assert_eq!(shown(416 << 20), "416.0 MiB");
        assert_eq!(shown((1 << 30) - 1), "1.00 GiB");
        assert_eq!(shown(1 << 40), "1.00 TiB");
    }

    #[test]
    fn times_read_well() {
        let shown = |seconds: f64| Seconds(seconds).to_string();
        assert_eq!([shown(0.0), shown(0.421), shown(3.21)], ["0.00 s", "0.42 s", "3.2 s"]);
        assert_eq!([shown(9.96), shown(59.6), shown(200.0)], ["10 s", "1 min 00 s", "3 min 20 s"]);
        assert_eq!([shown(3599.9), shown(5400.0)], ["1 h 00 min", "1 h 30 min"]);
        assert_eq!([shown(86_399.0), shown(f64::INFINITY)], ["1 d 00 h", "-"]);
    }

    #[test]
    fn short_numbers_have_three_digits() {
        let shown = |value: f64| Short(value).to_string();
        assert_eq!([shown(0.0), shown(812.4), shown(1097.0)], ["0", "812", "1.10 k"]);
        assert_eq!([shown(463_000.0), shown(999_700.0)], ["463 k", "1.00 M"]);
        assert_eq!([shown(2.5e9), shown(10.7e3), shown(6.94)], ["2.50 B", "10.7 k", "6.94"]);
    }

    #[test]
    fn ratios() {
        let shown = |ratio: f64| Ratio(ratio).to_string();
        assert_eq!(shown(0.375), "37.5 %");
        assert_eq!(shown(0.0163), "1.63 %");
        assert_eq!(shown(0.000_042), "0.0042 %");
        assert_eq!(shown(3.1e-7), "3.1e-7");
        assert_eq!([shown(0.0), shown(f64::NAN)], ["0", "-"]);
        assert_eq!(shown(f64::INFINITY), "infinite");
    }

    #[test]
    fn counts() {
        assert_eq!(Elements(8_030_261_248).to_string(), "8.03 B");
        assert_eq!(Elements(9_999).to_string(), "9,999");
        assert_eq!(Elements(999_999).to_string(), "1.0 M");
        assert_eq!(Elements(999_999_999).to_string(), "1.00 B");
        assert_eq!(Grouped(128_256).to_string(), "128,256");
        assert_eq!(Grouped(1_000_000).to_string(), "1,000,000");
        assert_eq!(counted(1, "tensor"), "1 tensor");
    }
}
