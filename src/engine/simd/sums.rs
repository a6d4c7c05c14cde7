//! The loops behind [`statistics`](crate::engine::statistics): counting and comparing.
//!
//! Lane `i` of eight sums the elements whose index is `i` modulo eight, on every instruction set.

use super::format::{BF16, E4M3, E4M3Fnuz, E5M2, E5M2Fnuz, F32, Format, with_format};
use super::level::Job;
use super::{BLOCK, Simd, widen};
use crate::engine::device::Values;
use crate::engine::float::Float;
use crate::engine::statistics::Comparison;

const LANES: usize = 8;

impl Simd {
    /// Counts `(NaNs, infinities)`.
    pub(in crate::engine) fn non_finite(&self, values: &Values<'_>) -> (u64, u64) {
        self.level.run(Count(values))
    }

    /// Compares as many elements as both have.
    pub(in crate::engine) fn compare(&self, a: &Values<'_>, b: &Values<'_>) -> Comparison {
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
            for bits in block {
                let (special, is_nan) = (is_special(bits), is_nan(bits));
                nan += u64::from(is_nan);
                infinite += u64::from(special & !is_nan);
            }
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
        let double = self.a.float == Float::F64 || self.b.float == Float::F64;
        let mut sums = Sums::default();
        let (mut a, mut b) = ([0.0_f32; BLOCK], [0.0_f32; BLOCK]);
        let (mut wide_a, mut wide_b) = ([0.0_f64; BLOCK], [0.0_f64; BLOCK]);
        for start in (0..elements).step_by(BLOCK) {
            let count = BLOCK.min(elements - start);
            let (run_a, run_b) = (self.a.run(start, count), self.b.run(start, count));
            if double {
                read_f64(half, &run_a, &mut a[..count], &mut wide_a[..count]);
                read_f64(half, &run_b, &mut b[..count], &mut wide_b[..count]);
                sums.add(&mut wide_a, &mut wide_b, count);
            } else {
                read_f32(half, &run_a, &mut a[..count]);
                read_f32(half, &run_b, &mut b[..count]);
                sums.add(&mut a, &mut b, count);
            }
        }
        sums.comparison(elements as u64)
    }
}

#[inline(always)]
fn read_f32<H: Format<Bits = [u8; 2]>>(half: H, values: &Values<'_>, out: &mut [f32]) {
    with_format!(values.float, half, format => widen(format, values.bytes, out));
}

#[inline(always)]
fn read_f64<H: Format<Bits = [u8; 2]>>(
    half: H,
    values: &Values<'_>,
    block: &mut [f32],
    out: &mut [f64],
) {
    if values.float == Float::F64 {
        for (bits, out) in values.bytes.as_chunks().0.iter().zip(out) {
            *out = f64::from_le_bytes(*bits);
        }
        return;
    }
    read_f32(half, values, block);
    for (value, out) in block.iter().zip(out) {
        *out = f64::from(*value);
    }
}

/// f32 or f64.
trait Real: Copy + Default + PartialEq + Into<f64> {
    fn finite(self) -> bool;
}

impl Real for f32 {
    #[inline(always)]
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Real for f64 {
    #[inline(always)]
    fn finite(self) -> bool {
        self.is_finite()
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
    fn add<T: Real>(&mut self, a: &mut [T; BLOCK], b: &mut [T; BLOCK], count: usize) {
        let (mut equal, mut special) = (0_u32, 0_u32);
        for (x, y) in a[..count].iter().zip(&b[..count]) {
            equal += u32::from(x == y);
            special += u32::from(!x.finite() | !y.finite());
        }
        if special > 0 {
            for (x, y) in a[..count].iter_mut().zip(&mut b[..count]) {
                #[expect(clippy::eq_op, reason = "only NaN differs from itself")]
                let both_nan = (*x != *x) & (*y != *y);
                equal += u32::from(both_nan);
                if !x.finite() | !y.finite() {
                    (*x, *y) = (T::default(), T::default());
                }
            }
        }
        self.equal += u64::from(equal);
        self.non_finite += u64::from(special);
        // Zeros up to the last lane change no sum.
        let whole = count.next_multiple_of(LANES);
        a[count..whole].fill(T::default());
        b[count..whole].fill(T::default());
        self.accumulate(a[..whole].as_chunks().0, b[..whole].as_chunks().0);
    }

    #[inline(always)]
    fn accumulate<T: Real>(&mut self, a: &[[T; LANES]], b: &[[T; LANES]]) {
        let (mut squares_a, mut squares_b) = (self.squares_a, self.squares_b);
        let (mut dot, mut squares_difference) = (self.dot, self.squares_difference);
        let mut largest = self.largest;
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                let (a, b): (f64, f64) = (a[lane].into(), b[lane].into());
                let difference = b - a;
                let magnitude = difference.abs();
                squares_a[lane] += a * a;
                squares_b[lane] += b * b;
                dot[lane] += a * b;
                squares_difference[lane] += difference * difference;
                // Not `f64::max`: its care for NaN, which cannot be here, costs instructions.
                largest[lane] = if magnitude > largest[lane] {
                    magnitude
                } else {
                    largest[lane]
                };
            }
        }
        (self.squares_a, self.squares_b) = (squares_a, squares_b);
        (self.dot, self.squares_difference) = (dot, squares_difference);
        self.largest = largest;
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

/// Neighbours first.
fn tree([a, b, c, d, e, f, g, h]: [f64; LANES]) -> f64 {
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}
