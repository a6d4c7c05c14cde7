//! The part of the suite about sweeps: sums and histograms.

use std::slice;

use elo_surgery::engine::sweep::{
    Digit, Gram, LANES, LEAF, SweepTile, TreeSum, leaves_of, locate, sums_of,
};
use elo_surgery::engine::{Device, Operand, Reference, Simd};
use elo_surgery::format::Dtype;

use super::{FLOATS, Random, size, widen};

/// Around nothing, a row, a leaf, and several leaves.
const LENGTHS: [usize; 9] = [0, 1, 255, 256, 257, 4095, 4096, 4097, 3 * LEAF + 5];

/// A tile that owns its operands.
struct Case {
    base: Option<(Dtype, Vec<u8>)>,
    terms: Vec<(Dtype, Vec<u8>)>,
    elements: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Like the weights of a model.
    Tame,
    /// Any finite values: a sum of them tells one order from another in every format.
    Finite,
    /// Any values.
    Wild,
}

const KINDS: [Kind; 3] = [Kind::Tame, Kind::Finite, Kind::Wild];

impl Case {
    fn draw(
        random: &mut Random,
        base: Option<&Dtype>,
        terms: &[Dtype],
        elements: usize,
        kind: Kind,
    ) -> Self {
        let mut draw = |dtype: &Dtype| {
            let mut bytes = random.elements(dtype, elements, kind == Kind::Tame);
            if kind == Kind::Finite {
                for element in bytes.chunks_exact_mut(size(dtype)) {
                    if !widen(dtype, element).is_some_and(f64::is_finite) {
                        element.fill(0x21);
                    }
                }
            }
            (dtype.clone(), bytes)
        };
        let base = base.map(&mut draw);
        Self { base, terms: terms.iter().map(draw).collect(), elements }
    }

    /// What the tests call it when it fails.
    fn describe(&self) -> String {
        let terms: Vec<_> = self.terms.iter().map(|(dtype, _)| dtype.as_str()).collect();
        let base = self.base.as_ref().map(|(dtype, _)| dtype.as_str());
        format!("base {base:?}, terms {terms:?}, {} elements", self.elements)
    }

    /// Calls with elements `start..start + count`, each operand `offset` bytes past an allocation's start.
    fn with<T>(
        &self,
        start: usize,
        count: usize,
        offset: usize,
        call: impl FnOnce(&SweepTile<'_>) -> T,
    ) -> T {
        let cut = |(dtype, bytes): &(Dtype, Vec<u8>)| {
            let bytes = &bytes[start * size(dtype)..][..count * size(dtype)];
            (dtype.clone(), [&vec![0xa5; offset], bytes].concat())
        };
        let base = self.base.as_ref().map(cut);
        let terms: Vec<_> = self.terms.iter().map(cut).collect();
        let base = base.as_ref().map(|(dtype, bytes)| Operand { dtype, bytes: &bytes[offset..] });
        let terms: Vec<_> =
            terms.iter().map(|(dtype, bytes)| Operand { dtype, bytes: &bytes[offset..] }).collect();
        call(&SweepTile::new(base, &terms))
    }

    fn sums(&self, device: &dyn Device, start: usize, count: usize, offset: usize) -> Vec<f64> {
        let length = leaves_of(count) * sums_of(self.terms.len());
        // What is there before does not matter, and nothing beside it is touched.
        let mut sums = vec![7.5; length + 2];
        let inner = &mut sums[1..=length];
        self.with(start, count, offset, |tile| device.sums(tile, inner).unwrap());
        assert!(sums[0].to_bits() == 7.5_f64.to_bits(), "wrote before");
        assert!(sums[length + 1].to_bits() == 7.5_f64.to_bits(), "wrote past the end");
        sums[1..=length].to_vec()
    }

    fn counts(&self, device: &dyn Device, digit: Digit, offset: usize) -> Vec<u64> {
        let mut counts = vec![0; digit.bins()];
        self.with(0, self.elements, offset, |tile| {
            device.histogram(tile, digit, &mut counts).unwrap();
        });
        counts
    }

    fn is_double(&self) -> bool {
        self.base.iter().chain(&self.terms).any(|(dtype, _)| *dtype == Dtype::F64)
    }

    /// A value by the crates that convert, and one subtraction.
    fn value(&self, term: usize, i: usize) -> f64 {
        let at = |(dtype, bytes): &(Dtype, Vec<u8>)| {
            let bytes = &bytes[i * size(dtype)..][..size(dtype)];
            widen(dtype, bytes).unwrap_or(f64::NAN)
        };
        let x = at(&self.terms[term]);
        match &self.base {
            None => x,
            Some(base) if self.is_double() => x - at(base),
            Some(base) => (x as f32 - at(base) as f32).into(),
        }
    }

    /// The magnitude that a histogram counts.
    fn magnitude(&self, i: usize) -> u32 {
        let value = self.value(0, i) as f32;
        if value.is_nan() { 0x7fc0_0000 } else { value.abs().to_bits() }
    }
}

fn bits(sums: &[f64]) -> Vec<u64> {
    sums.iter().map(|sum| sum.to_bits()).collect()
}

/// The numbers of two terms.
fn all(gram: &Gram) -> Vec<u64> {
    bits(&[gram.l1(0), gram.l1(1), gram.dot(0, 0), gram.dot(0, 1), gram.dot(1, 1)])
}

pub(super) fn conforms(device: &dyn Device) {
    sums_of_one_dtype(device);
    sums_of_mixed_dtypes(device);
    tiles_add_up_to_the_whole(device);
    histograms(device);
    wrong_tiles_are_refused(device);
}

fn check_sums(device: &dyn Device, case: &Case) {
    let expected = bits(&case.sums(&Reference, 0, case.elements, 0));
    for offset in [0, 1] {
        let found = bits(&case.sums(device, 0, case.elements, offset));
        let pairs = found.iter().zip(&expected);
        if let Some(at) = pairs.enumerate().find(|(_, (a, b))| a != b) {
            let (name, case) = (device.name(), case.describe());
            panic!("{name}: (sum, (found, expected)) {at:x?}: {case}, offset {offset}");
        }
    }
}

fn sums_of_one_dtype(device: &dyn Device) {
    let mut random = Random(11);
    for dtype in &FLOATS {
        for (turn, elements) in LENGTHS.into_iter().enumerate() {
            for terms in 1..=5 {
                for base in [None, Some(dtype)] {
                    let kind = KINDS[(turn + terms) % KINDS.len()];
                    let dtypes = vec![dtype.clone(); terms];
                    check_sums(device, &Case::draw(&mut random, base, &dtypes, elements, kind));
                }
            }
        }
    }
}

fn sums_of_mixed_dtypes(device: &dyn Device) {
    let mut random = Random(12);
    for base in FLOATS.iter().map(Some).chain([None]) {
        for term in &FLOATS {
            for kind in KINDS {
                let second = FLOATS[random.below(FLOATS.len())].clone();
                let dtypes = [term.clone(), second, term.clone()];
                let dtypes = &dtypes[..=random.below(3)];
                let elements = random.below(2 * LEAF);
                check_sums(device, &Case::draw(&mut random, base, dtypes, elements, kind));
            }
        }
    }
}

fn tiles_add_up_to_the_whole(device: &dyn Device) {
    let mut random = Random(13);
    for dtype in &FLOATS {
        let elements = 6 * LEAF + 77;
        let dtypes = vec![dtype.clone(); 2];
        let case = Case::draw(&mut random, Some(dtype), &dtypes, elements, Kind::Finite);
        let whole = case.sums(device, 0, elements, 0);
        let mut sum = TreeSum::new(2, elements as u64);
        sum.add(0, &whole);
        let expected = all(&sum.finish().unwrap());
        for leaves in [1, 2, 3, 5] {
            let tiles = (0..elements).step_by(leaves * LEAF);
            let tiles = tiles.map(|start| (start, (elements - start).min(leaves * LEAF)));
            let mut sum = TreeSum::new(2, elements as u64);
            let mut joined = Vec::new();
            for (start, count) in tiles.rev() {
                let sums = case.sums(device, start, count, 0);
                sum.add((start / LEAF) as u64, &sums);
                joined.splice(0..0, sums);
            }
            assert_eq!(bits(&joined), bits(&whole), "{dtype} by {leaves} leaves");
            assert_eq!(all(&sum.finish().unwrap()), expected, "{dtype} by {leaves} leaves");
        }
    }
}

fn histograms(device: &dyn Device) {
    let mut random = Random(14);
    for term in &FLOATS {
        for base in [None, Some(term), Some(&Dtype::BF16), Some(&Dtype::F64)] {
            for (turn, elements) in [0, 1, 1023, 1025, LEAF + 5].into_iter().enumerate() {
                let dtypes = [term.clone()];
                let kind = KINDS[turn % KINDS.len()];
                let case = Case::draw(&mut random, base, &dtypes, elements, kind);
                // Zero, NaN, and what some elements have.
                let mut digits = vec![Digit::High, Digit::Low(0), Digit::Low(0xff80)];
                for _ in 0..elements.min(2) {
                    let magnitude = case.magnitude(random.below(elements));
                    digits.push(Digit::Low(u16::try_from(magnitude >> 15).unwrap()));
                }
                for digit in digits {
                    let expected = case.counts(&Reference, digit, 0);
                    for offset in [0, 1] {
                        let same = case.counts(device, digit, offset) == expected;
                        let (name, case) = (device.name(), case.describe());
                        assert!(same, "{name}: {digit:?}: {case}, offset {offset}");
                    }
                }
            }
        }
    }
    counts_are_added(device);
}

fn counts_are_added(device: &dyn Device) {
    let case = Case { base: None, terms: vec![(Dtype::BF16, vec![0; 2 * 100])], elements: 100 };
    for digit in [Digit::High, Digit::Low(0), Digit::Low(1)] {
        let mut counts = vec![u64::from(u32::MAX); digit.bins()];
        for _ in 0..2 {
            case.with(0, 100, 0, |tile| device.histogram(tile, digit, &mut counts).unwrap());
        }
        let counted = if digit == Digit::Low(1) { 0 } else { 200 };
        assert_eq!(counts[0], u64::from(u32::MAX) + counted);
        assert!(counts[1..].iter().all(|count| *count == u64::from(u32::MAX)));
    }
}

fn wrong_tiles_are_refused(device: &dyn Device) {
    let operand = |dtype, bytes| Operand { dtype, bytes };
    let four = operand(&Dtype::BF16, &[0; 8]);
    let three = operand(&Dtype::BF16, &[0; 6]);
    let torn = operand(&Dtype::BF16, &[0; 7]);
    let integers = operand(&Dtype::I16, &[0; 8]);
    let sums = |base: Option<Operand<'_>>, terms: &[Operand<'_>], room: usize| {
        device.sums(&SweepTile::new(base, terms), &mut vec![0.0; room])
    };
    assert!(sums(None, &[four], 2).is_ok());
    assert!(sums(Some(four), &[four, four], 5).is_ok());
    assert!(sums(None, &[], 0).is_err());
    assert!(sums(None, &[integers], 2).is_err());
    assert!(sums(Some(integers), &[four], 2).is_err());
    assert!(sums(Some(three), &[four], 2).is_err());
    assert!(sums(None, &[four, three], 5).is_err());
    assert!(sums(None, &[torn], 2).is_err());
    assert!(sums(None, &[four], 1).is_err());
    assert!(sums(None, &[four], 3).is_err());
    assert!(sums(None, &[four], 4).is_err());
    let histogram = |terms: &[Operand<'_>], digit, room: usize| {
        device.histogram(&SweepTile::new(None, terms), digit, &mut vec![0; room])
    };
    assert!(histogram(&[four], Digit::High, 1 << 16).is_ok());
    assert!(histogram(&[four], Digit::Low(7), 1 << 15).is_ok());
    assert!(histogram(&[], Digit::High, 1 << 16).is_err());
    assert!(histogram(&[four, four], Digit::High, 1 << 16).is_err());
    assert!(histogram(&[integers], Digit::High, 1 << 16).is_err());
    assert!(histogram(&[torn], Digit::High, 1 << 16).is_err());
    assert!(histogram(&[four], Digit::High, 1 << 15).is_err());
    assert!(histogram(&[four], Digit::Low(7), 1 << 16).is_err());
}

/// Lanes `lane`, `lane + stride`, ..: the halves of every halving, from the last to the first.
fn tree(lane: usize, stride: usize, sum: &dyn Fn(usize) -> f64) -> f64 {
    if stride == LANES {
        return sum(lane);
    }
    tree(lane, 2 * stride, sum) + tree(lane + stride, 2 * stride, sum)
}

#[test]
fn reference_adds_up_in_the_order_of_the_contract() {
    let mut random = Random(15);
    let mut differently = 0;
    for dtype in &FLOATS {
        for base in [None, Some(dtype), Some(&Dtype::F32)] {
            for kind in KINDS {
                for elements in [1, 257, LEAF + 999] {
                    let dtypes = [dtype.clone(), Dtype::F32, dtype.clone()];
                    let case = Case::draw(&mut random, base, &dtypes, elements, kind);
                    let found = case.sums(&Reference, 0, elements, 0);
                    let mut expected = Vec::new();
                    for start in (0..elements).step_by(LEAF) {
                        let end = elements.min(start + LEAF);
                        let mut sum = |value: &dyn Fn(usize) -> f64| {
                            let lane = |lane| {
                                let lane = (start + lane..end).step_by(LANES);
                                lane.fold(0.0, |sum, i| sum + value(i))
                            };
                            let sum = tree(0, 1, &lane);
                            let plain: f64 = (start..end).map(value).sum();
                            differently += usize::from(plain.to_bits() != sum.to_bits());
                            expected.push(if sum.is_nan() {
                                f64::from_bits(0x7ff8 << 48)
                            } else {
                                sum
                            });
                        };
                        (0..3).for_each(|t| sum(&|i| case.value(t, i).abs()));
                        for (t, u) in [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)] {
                            sum(&|i| case.value(t, i) * case.value(u, i));
                        }
                    }
                    assert_eq!(bits(&found), bits(&expected), "{kind:?}: {}", case.describe());
                }
            }
        }
    }
    assert!(differently > 100, "the order matters: {differently}");
}

#[test]
fn reference_counts_magnitudes() {
    let mut random = Random(16);
    for dtype in &FLOATS {
        for base in [None, Some(dtype)] {
            let case = Case::draw(&mut random, base, slice::from_ref(dtype), 3000, Kind::Wild);
            let magnitudes: Vec<u32> = (0..3000).map(|i| case.magnitude(i)).collect();
            let mut expected = vec![0; 1 << 16];
            for magnitude in &magnitudes {
                expected[*magnitude as usize / 0x8000] += 1;
            }
            assert!(case.counts(&Reference, Digit::High, 0) == expected, "{dtype}");
            for high in [0, 0xff00, 0xff80, magnitudes[5] / 0x8000] {
                let mut expected = vec![0; 1 << 15];
                for magnitude in magnitudes.iter().filter(|m| **m / 0x8000 == high) {
                    expected[*magnitude as usize % 0x8000] += 1;
                }
                let digit = Digit::Low(u16::try_from(high).unwrap());
                assert!(case.counts(&Reference, digit, 0) == expected, "{dtype}, {high:x}");
            }
        }
    }
}

/// Ties in plenty, NaNs, zeros, the first and the last.
#[test]
fn the_kth_magnitude_is_that_of_a_sort() {
    let mut random = Random(17);
    let device = Simd::new();
    for dtype in &FLOATS {
        for base in [None, Some(dtype)] {
            for kind in KINDS {
                for elements in [1, 2, 100, 2000] {
                    let dtypes = [dtype.clone()];
                    let mut case = Case::draw(&mut random, base, &dtypes, elements, kind);
                    // The second half is the first again, or zeros.
                    let bytes = &mut case.terms[0].1;
                    let half = elements / 2 * size(dtype);
                    match kind {
                        Kind::Tame => bytes[..half].fill(0),
                        _ => bytes.copy_within(..half, half),
                    }
                    let mut sorted: Vec<u32> = (0..elements).map(|i| case.magnitude(i)).collect();
                    sorted.sort_unstable_by(|a, b| b.cmp(a));
                    let high = case.counts(&device, Digit::High, 0);
                    let ks = [1, 2, 3, elements / 3, elements / 2, elements - 1, elements];
                    for k in ks.into_iter().filter(|k| (1..=elements).contains(k)) {
                        let place = locate(&high, k as u64).unwrap();
                        let low = case.counts(&device, place.low_digit(), 0);
                        let found = place.magnitude(&low).unwrap();
                        let expected = sorted[k - 1];
                        let above = sorted.iter().filter(|m| **m > expected).count();
                        let ties = sorted.iter().filter(|m| **m == expected).count();
                        let found = (found.magnitude.to_bits(), found.above, found.ties);
                        let expected = (expected, above as u64, ties as u64);
                        assert_eq!(found, expected, "{k} of {}", case.describe());
                    }
                    assert_eq!(locate(&high, elements as u64 + 1), None);
                }
            }
        }
    }
}
