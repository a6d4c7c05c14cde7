//! A perceptually uniform colour scale: viridis, between seventeen of its colours.

use std::fmt::Write as _;

/// Evenly spaced colours of matplotlib's viridis, dark to light.
const SAMPLES: [[u8; 3]; 17] = [
    [68, 1, 84],
    [72, 24, 106],
    [71, 45, 123],
    [66, 64, 134],
    [59, 82, 139],
    [51, 99, 141],
    [44, 114, 142],
    [38, 130, 142],
    [33, 145, 140],
    [31, 160, 136],
    [40, 174, 128],
    [63, 188, 115],
    [94, 201, 98],
    [132, 212, 75],
    [173, 220, 48],
    [216, 226, 25],
    [253, 231, 37],
];

/// The colour at a place from 0 (dark violet) to 1 (yellow), as `#rrggbb`. Places outside are held to the ends.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "held to the table and to a byte"
)]
pub(crate) fn colour(place: f64) -> String {
    let last = SAMPLES.len() - 1;
    let place = if place.is_nan() { 0.0 } else { place };
    let at = place.clamp(0.0, 1.0) * 16.0;
    let index = (at as usize).min(last - 1);
    let share = (at - at.trunc().min(15.0)).clamp(0.0, 1.0);
    let mut text = String::from("#");
    for (low, high) in SAMPLES[index].into_iter().zip(SAMPLES[index + 1]) {
        let (low, high) = (f64::from(low), f64::from(high));
        let mixed = (low + share * (high - low)).round() as u8;
        let _ = write!(text, "{mixed:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_samples_and_betweens() {
        assert_eq!(colour(0.0), "#440154");
        assert_eq!(colour(1.0), "#fde725");
        assert_eq!(colour(0.5), "#21918c");
        assert_eq!(colour(-3.0), colour(0.0));
        assert_eq!(colour(7.0), colour(1.0));
        assert_eq!(colour(f64::NAN), colour(0.0));
        // Halfway between the last two.
        assert_eq!(colour(31.0 / 32.0), "#ebe51f");
    }
}
