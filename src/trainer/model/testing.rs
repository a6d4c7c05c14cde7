//! Checks of gradients against finite differences.

/// Repeatable numbers in (-1, 1), spread like noise.
pub(super) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1_u64 << 23) as f32) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Compares a gradient with central differences of `value` along several random directions.
pub(super) fn slope(at: &[f32], gradient: &[f32], value: impl Fn(&[f32]) -> f64) {
    assert_eq!(at.len(), gradient.len());
    for seed in 1..5 {
        let direction = numbers(at.len(), 1000 + seed);
        let length = direction.iter().map(|d| d * d).sum::<f32>().sqrt();
        let step = 1e-2 / length;
        let moved = |sign: f32| -> Vec<f32> {
            at.iter().zip(&direction).map(|(x, d)| x + sign * step * d).collect()
        };
        let (up, down) = (moved(1.0), moved(-1.0));
        // What was really walked, after rounding.
        let predicted: f64 = (0..at.len())
            .map(|i| f64::from(gradient[i]) * (f64::from(up[i]) - f64::from(down[i])))
            .sum();
        let measured = value(&up) - value(&down);
        let size = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt() * 2e-2;
        assert!(
            (measured - predicted).abs() <= 4e-3 * size.max(1e-4),
            "seed {seed}: measured {measured:e}, predicted {predicted:e}, scale {size:e}"
        );
    }
}
