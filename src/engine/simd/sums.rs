//! The loops behind [`statistics`](crate::engine::statistics): counting and comparing.
//!
//! Lane `i` of sixteen sums the elements whose index is `i` modulo sixteen, on every instruction set.

#![expect(
    clippy::inline_always,
    reason = "the loops are compiled for an instruction set by being inlined where it is enabled"
)]

use super::format::{BF16, E4M3, E4M3Fnuz, E5M2, E5M2Fnuz, F32, Format, with_format};
use super::level::Job;
use super::{BLOCK, Simd, widen};
use crate::engine::device::Values;
use crate::engine::float::Float;
use crate::engine::statistics::Comparison;

const LANES: usize = 16;

impl Simd {
    /// Counts `(NaNs, infinities)`.
    pub(in crate::engine) fn non_finite(self, values: &Values<'_>) -> (u64, u64) {
        self.level.run(Count(values))
    }

    /// Compares as many elements as both have.
    pub(in crate::engine) fn compare(self, a: &Values<'_>, b: &Values<'_>) -> Comparison {
        self.level.run(Compare { a, b })
    }
}

struct Count<'a>(&'a Values<'a>);

impl Job for Count<'_> {
    type Output = (u64, u64);

    #[inline(always)]
    fn run<H: Format<Bits = [u8; 2]>>(self, half: H) -> (u64, u64) {
        let bytes = self.0.bytes;
        if self.0.float == Float::F64 {
            let is_special = |bits: &[u8; 8]| !f64::from_le_bytes(*bits).is_finite();
            let is_nan = |bits: &[u8; 8]| f64::from_le_bytes(*bits).is_nan();
            return count(bytes.as_chunks().0, is_special, is_nan);
        }
        with_format!(self.0.float, half, format => count_format(format, bytes))
    }
}

#[inline(always)]
fn count_format<F: Format>(format: F, bytes: &[u8]) -> (u64, u64) {
    let is_special = |bits: &F::Bits| format.is_special(*bits);
    let is_nan = |bits: &F::Bits| format.widen(*bits).is_nan();
    count(F::split(bytes), is_special, is_nan)
}

/// A block without any special element, which is nearly every block, costs one test of an element's bits.
#[inline(always)]
fn count<B: Copy>(
    bits: &[B],
    is_special: impl Fn(&B) -> bool,
    is_nan: impl Fn(&B) -> bool,
) -> (u64, u64) {
    let (mut nan, mut infinite) = (0, 0);
    for block in bits.chunks(BLOCK) {
        let mut any = false;
        for bits in block {
            any |= is_special(bits);
        }
        if any {
            // At most a block's length; a check for overflow would keep the loop scalar.
            let (mut special, mut nans) = (0_u32, 0_u32);
            for bits in block {
                special = special.wrapping_add(u32::from(is_special(bits)));
                nans = nans.wrapping_add(u32::from(is_nan(bits)));
            }
            nan += u64::from(nans);
            infinite += u64::from(special - nans);
        }
    }
    (nan, infinite)
}

struct Compare<'a> {
    a: &'a Values<'a>,
    b: &'a Values<'a>,
}

impl Job for Compare<'_> {
    type Output = Comparison;

    #[inline(always)]
    fn run<H: Format<Bits = [u8; 2]>>(self, half: H) -> Comparison {
        let elements = |values: &Values<'_>| values.bytes.len() / values.float.size();
        let elements = elements(self.a).min(elements(self.b));
        let mut sums = Sums::default();
        let (mut a, mut b, mut single) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
        for start in (0..elements).step_by(BLOCK) {
            let count = BLOCK.min(elements - start);
            read(half, &self.a.run(start, count), &mut single, &mut a[..count]);
            read(half, &self.b.run(start, count), &mut single, &mut b[..count]);
            sums.add(&mut a, &mut b, count);
        }
        sums.comparison(elements as u64)
    }
}

#[inline(always)]
fn read<H: Format<Bits = [u8; 2]>>(
    half: H,
    values: &Values<'_>,
    single: &mut [f32; BLOCK],
    out: &mut [f64],
) {
    if values.float == Float::F64 {
        for (bits, out) in values.bytes.as_chunks().0.iter().zip(out) {
            *out = f64::from_le_bytes(*bits);
        }
        return;
    }
    let single = &mut single[..out.len()];
    with_format!(values.float, half, format => widen(format, values.bytes, single));
    for (value, out) in single.iter().zip(out) {
        *out = f64::from(*value);
    }
}

#[derive(Default)]
struct Sums {
    equal: u64,
    non_finite: u64,
    squares_a: [f64; LANES],
    squares_b: [f64; LANES],
    dot: [f64; LANES],
    squares_difference: [f64; LANES],
    largest: [f64; LANES],
}

impl Sums {
    /// Adds the first `count` elements of two blocks. The blocks are changed: what is not finite becomes zero.
    #[inline(always)]
    fn add(&mut self, a: &mut [f64; BLOCK], b: &mut [f64; BLOCK], count: usize) {
        let (mut equal, mut special) = (0_u64, 0_u64);
        // At most a block's length; a check for overflow would keep the loop scalar.
        for (x, y) in a[..count].iter().zip(&b[..count]) {
            equal = equal.wrapping_add(u64::from(same(*x, *y)));
            special = special.wrapping_add(u64::from(!x.is_finite() | !y.is_finite()));
        }
        if special > 0 {
            for (x, y) in a[..count].iter_mut().zip(&mut b[..count]) {
                equal = equal.wrapping_add(u64::from(x.is_nan() & y.is_nan()));
                if !x.is_finite() | !y.is_finite() {
                    (*x, *y) = (0.0, 0.0);
                }
            }
        }
        self.equal += equal;
        self.non_finite += special;
        // Zeros up to the last lane change no sum.
        let whole = count.next_multiple_of(LANES);
        a[count..whole].fill(0.0);
        b[count..whole].fill(0.0);
        let (a, b) = (a[..whole].as_chunks().0, b[..whole].as_chunks().0);
        // One loop a sum: together they need more registers than there are.
        each(&mut self.squares_a, a, b, |sum, a, _| sum + a * a);
        each(&mut self.squares_b, a, b, |sum, _, b| sum + b * b);
        each(&mut self.dot, a, b, |sum, a, b| sum + a * b);
        each(&mut self.squares_difference, a, b, |sum, a, b| sum + (b - a) * (b - a));
        // Not `f64::max`: its care for NaN, which cannot be here, costs instructions.
        each(&mut self.largest, a, b, |largest, a, b| {
            let magnitude = (b - a).abs();
            if magnitude > largest { magnitude } else { largest }
        });
    }

    fn comparison(&self, elements: u64) -> Comparison {
        Comparison {
            elements,
            equal: self.equal,
            sum_squares_a: tree(self.squares_a),
            sum_squares_b: tree(self.squares_b),
            dot: tree(self.dot),
            sum_squares_difference: tree(self.squares_difference),
            largest_difference: self.largest.iter().copied().fold(0.0, f64::max),
            non_finite: self.non_finite,
        }
    }
}

#[inline(always)]
#[expect(clippy::float_cmp, reason = "equal is what is asked")]
fn same(a: f64, b: f64) -> bool {
    a == b
}

#[inline(always)]
fn each(
    lanes: &mut [f64; LANES],
    a: &[[f64; LANES]],
    b: &[[f64; LANES]],
    update: impl Fn(f64, f64, f64) -> f64,
) {
    let mut sums = *lanes;
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] = update(sums[lane], a[lane], b[lane]);
        }
    }
    *lanes = sums;
}

/// Halves onto each other until one is left.
fn tree(mut lanes: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
