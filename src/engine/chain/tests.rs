//! Orders and sums are those of PyTorch 2.15 on the CPU, one thread: `tests/peers/make_chain.py`.

use sha2::{Digest, Sha256};

use super::grid::Grid;
use super::order::{Keyed, sort};
use super::sum::sum;

/// The first eight bytes of the digest of the order, as hex.
#[expect(clippy::cast_possible_truncation, reason = "short sequences")]
fn order_of(values: &[f64], descending: bool) -> String {
    let mut items: Vec<Keyed<f32>> =
        values.iter().enumerate().map(|(i, value)| (*value as f32, i as u32)).collect();
    sort(&mut items, descending, &|| false);
    let bytes: Vec<u8> = items.iter().flat_map(|(_, i)| i.to_le_bytes()).collect();
    let mut first = [0; 8];
    first.copy_from_slice(&Sha256::digest(&bytes)[..8]);
    format!("{:016x}", u64::from_be_bytes(first))
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn few(n: u64) -> Vec<f64> {
    (0..n).map(|i| ((i * i * 7919 + i * 31) % 13) as f64).collect()
}

/// Musser's sequence, on which quicksort by the median of three takes quadratic time.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn killer(n: usize) -> Vec<f64> {
    let half = n / 2;
    let mut values = vec![0.0; n];
    for i in 1..=half {
        if i % 2 == 1 {
            values[i - 1] = i as f64;
            values[i] = (half + i) as f64;
        }
        values[half + i - 1] = (2 * i) as f64;
    }
    values
}

#[test]
fn equal_values_come_out_in_pytorchs_order() {
    let rising = (0..5000).map(|i| f64::from(i / 7)).collect();
    let thirds = killer(4000).iter().map(|value| (value / 3.0).floor()).collect();
    let cases: Vec<(&str, Vec<f64>, &str, &str)> = vec![
        ("few 5", few(5), "9512dc0e92ba75a7", "bc2652e4737e9afb"),
        ("few 16", few(16), "24683678bb5c5a04", "2904ab0dade87bd8"),
        ("few 17", few(17), "7a2682708e8031f6", "1268bc2cd4fc748e"),
        ("few 100", few(100), "274c8801573bc19c", "94e7dad894795a65"),
        ("few 4096", few(4096), "3e5466a7050d2ea0", "8a46aeb90ee83fe5"),
        ("few 70001", few(70001), "bd80bd1f01128b84", "7f76eb9b6fc64dbb"),
        ("equal 50", vec![1.0; 50], "4015fe03498bddc4", "4015fe03498bddc4"),
        ("equal 5000", vec![1.0; 5000], "9e90e4e5cd399a90", "9e90e4e5cd399a90"),
        ("rising 5000", rising, "8a91d4c650ef154b", "76cc0565d6fca989"),
        ("killer 4000", killer(4000), "ae47553b99e555cd", "2abcb13843208c24"),
        ("thirds of it", thirds, "13f21d7489825442", "db6c6005b3a953f5"),
    ];
    for (name, values, up, down) in cases {
        assert_eq!(order_of(&values, false), up, "{name}, from the smallest up");
        assert_eq!(order_of(&values, true), down, "{name}, from the largest down");
    }
}

#[test]
fn sums_are_pytorchs() {
    let value = |i: usize| {
        let i = u32::try_from(i).unwrap();
        f64::from(u32::try_from(u64::from(i) * 2_654_435_761 % 1_000_003).unwrap()) / 1_000_003.0
            - 0.3
    };
    #[rustfmt::skip]
    let cases = [
        (Grid::F32, [0.300_000_011_920_928_96, 2.655_954_360_961_914, 30.143_424_987_792_97, 1_451.218_139_648_437_5, 15_754.987_304_687_5]),
        (Grid::BF16, [0.300_781_25, 2.656_25, 30.125, 1448.0, 15744.0]),
        (Grid::F16, [0.300_048_828_125, 2.656_25, 30.140_625, 1451.0, 15752.0]),
        (Grid::F64, [0.3, 2.655_954_332_137_003_6, 30.143_426_769_719_692, 1_451.218_203_545_389_5, 15_754.986_952_139_141]),
    ];
    for (grid, sums) in cases {
        for (count, expected) in [1, 9, 100, 5000, 54321].into_iter().zip(sums) {
            let found = grid.round(sum(grid, count, |i| grid.round(value(i)).abs()));
            assert_eq!(found.to_bits(), f64::to_bits(expected), "{count} of {grid:?}: {found}");
        }
    }
}
