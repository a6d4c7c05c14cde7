//! The floats of checkpoints: what every bit pattern is worth and how a real number is rounded to one.
//!
//! [`Float`] says it once for all formats, by arithmetic: it is slow and plain, and what devices are measured by.
//! The free functions say the same by bit tricks without branches, for loops that the compiler vectorises.
//! Rounding is to nearest, ties to even, subnormals kept. Overflow is infinity where the format has one, else NaN:
//! for `F8_E4M3` as PyTorch did it before it began to saturate, which would hide the loss. Every NaN written is
//! the one PyTorch writes for a positive quiet NaN, without the sign.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "bit patterns and exponents: the values fit, and the rounding casts are the ones meant"
)]
#![expect(
    clippy::inline_always,
    reason = "the loops are compiled for an instruction set by being inlined where it is enabled"
)]

use crate::format::Dtype;

/// A float format the engine computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Float {
    F64,
    F32,
    F16,
    BF16,
    E4M3,
    E5M2,
    E4M3Fnuz,
    E5M2Fnuz,
}

/// A factor of a plan as f32 arithmetic takes it: rounded once.
pub(super) const fn single(factor: f64) -> f32 {
    factor as f32
}

/// The numbers that define a format narrower than f32.
struct Narrow {
    /// The sign's bit, alone.
    sign: u32,
    mantissa_bits: u32,
    bias: i32,
    /// Largest finite magnitude, as bits.
    largest: u32,
    /// What overflow becomes, without the sign.
    overflow: u32,
    /// The NaN to write. Where it is the pattern of `-0`, there is one zero.
    nan: u32,
}

const F16: Narrow = Narrow::new(16, 10, 15, 0x7bff, 0x7c00, 0x7e00);
const BF16: Narrow = Narrow::new(16, 7, 127, 0x7f7f, 0x7f80, 0x7fc0);
const E4M3: Narrow = Narrow::new(8, 3, 7, 0x7e, 0x7f, 0x7f);
const E5M2: Narrow = Narrow::new(8, 2, 15, 0x7b, 0x7c, 0x7f);
const E4M3_FNUZ: Narrow = Narrow::new(8, 3, 8, 0x7f, 0x80, 0x80);
const E5M2_FNUZ: Narrow = Narrow::new(8, 2, 16, 0x7f, 0x80, 0x80);

impl Float {
    /// The format of a dtype; `None` for anything that is not a float of at least one byte.
    pub(super) fn of(dtype: &Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            Dtype::F8E4M3 => Self::E4M3,
            Dtype::F8E5M2 => Self::E5M2,
            Dtype::F8E4M3Fnuz => Self::E4M3Fnuz,
            Dtype::F8E5M2Fnuz => Self::E5M2Fnuz,
            _ => return None,
        })
    }

    /// Bytes of one element.
    pub(super) const fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::E4M3 | Self::E5M2 | Self::E4M3Fnuz | Self::E5M2Fnuz => 1,
        }
    }

    /// The value of a little-endian element. Exact; NaNs of all kinds become some NaN.
    pub(super) fn read(self, bytes: &[u8]) -> f64 {
        let mut bits = [0; 8];
        bits[..self.size()].copy_from_slice(&bytes[..self.size()]);
        self.value(u64::from_le_bytes(bits))
    }

    /// Rounds once and writes a little-endian element.
    pub(super) fn write(self, value: f64, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.nearest(value).to_le_bytes()[..self.size()]);
    }

    const fn narrow(self) -> Option<&'static Narrow> {
        match self {
            Self::F64 | Self::F32 => None,
            Self::F16 => Some(&F16),
            Self::BF16 => Some(&BF16),
            Self::E4M3 => Some(&E4M3),
            Self::E5M2 => Some(&E5M2),
            Self::E4M3Fnuz => Some(&E4M3_FNUZ),
            Self::E5M2Fnuz => Some(&E5M2_FNUZ),
        }
    }

    /// The value of a bit pattern.
    const fn value(self, bits: u64) -> f64 {
        match self.narrow() {
            Some(narrow) => narrow.value(bits as u32),
            None if self.size() == 8 => f64::from_bits(bits),
            None => f32::from_bits(bits as u32) as f64,
        }
    }

    /// The bit pattern nearest to a value.
    fn nearest(self, value: f64) -> u64 {
        match self {
            Self::F64 if value.is_nan() => 0x7ff8_0000_0000_0000,
            Self::F32 if value.is_nan() => 0x7fc0_0000,
            Self::F64 => value.to_bits(),
            Self::F32 => u64::from((value as f32).to_bits()),
            _ => self.narrow().map_or(0, |n| u64::from(n.nearest(value))),
        }
    }
}

impl Narrow {
    const fn new(
        width: u32,
        mantissa_bits: u32,
        bias: i32,
        largest: u32,
        overflow: u32,
        nan: u32,
    ) -> Self {
        Self { sign: 1 << (width - 1), mantissa_bits, bias, largest, overflow, nan }
    }

    const fn value(&self, bits: u32) -> f64 {
        let magnitude = bits & (self.sign - 1);
        let negative = bits & self.sign != 0;
        if magnitude == self.overflow && self.overflow != self.nan {
            return if negative { f64::NEG_INFINITY } else { f64::INFINITY };
        }
        if magnitude > self.largest || (bits == self.nan) {
            return f64::NAN;
        }
        let field = (magnitude >> self.mantissa_bits) as i32;
        let fraction = magnitude & ((1 << self.mantissa_bits) - 1);
        // Subnormals have the exponent of the first binade and no hidden bit.
        let (exponent, significand) = match field {
            0 => (1 - self.bias, fraction),
            _ => (field - self.bias, fraction | 1 << self.mantissa_bits),
        };
        let value = significand as f64 * power_of_two(exponent - self.mantissa_bits as i32);
        if negative { -value } else { value }
    }

    fn nearest(&self, value: f64) -> u32 {
        let magnitude = value.abs();
        let bits = if value.is_nan() {
            self.nan
        } else if magnitude.is_infinite() {
            self.overflow
        } else {
            // Below the first binade the spacing stays that of the first.
            let field = (exponent(magnitude) + self.bias).max(1);
            let spacing = power_of_two(field - self.bias - self.mantissa_bits as i32);
            let steps = (magnitude / spacing).round_ties_even() as u64;
            // Steps of a normal number count the hidden bit, which adds the missing one to the exponent.
            let bits = ((field as u64 - 1) << self.mantissa_bits) + steps;
            if bits > u64::from(self.largest) { self.overflow } else { bits as u32 }
        };
        self.signed(bits, if value.is_sign_negative() { self.sign } else { 0 })
    }

    /// [`Self::nearest`] of an f32, without branches. Not for bf16, whose binades are those of f32.
    #[inline(always)]
    const fn nearest_f32(&self, value: f32) -> u32 {
        let magnitude = value.to_bits() & 0x7fff_ffff;
        let dropped = 23 - self.mantissa_bits;
        let odd = (magnitude >> dropped) & 1;
        let rebias = ((127 - self.bias) as u32) << 23;
        let half = (1 << (dropped - 1)) - 1;
        let normal = magnitude.wrapping_add(half + odd).wrapping_sub(rebias) >> dropped;
        // In a sum with 2^23 smallest steps the processor rounds to the steps and leaves their number in the low bits.
        let anchor = ((127 + 24 - self.bias - self.mantissa_bits as i32) as u32) << 23;
        let sum = f32::from_bits(magnitude) + f32::from_bits(anchor);
        let subnormal = sum.to_bits().wrapping_sub(anchor);
        let first_normal = rebias + (1 << 23);
        let finite = if magnitude < first_normal { subnormal } else { normal };
        let bounded = if finite > self.largest { self.overflow } else { finite };
        let bits = if magnitude > 0x7f80_0000 { self.nan } else { bounded };
        self.signed(bits, (value.to_bits() >> 31) * self.sign)
    }

    /// Adds the sign, except to NaN and to a zero that has none.
    #[inline(always)]
    const fn signed(&self, bits: u32, sign: u32) -> u32 {
        let signless = bits == self.nan || (self.nan == self.sign && bits == 0);
        if signless { bits } else { bits | sign }
    }
}

/// `2^exponent` for exponents of normal f64.
const fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The power of two at or below a magnitude; subnormal f64, far below any format here, count as the smallest.
fn exponent(magnitude: f64) -> i32 {
    (magnitude.to_bits() >> 52) as i32 - 1023
}

/// f32 to bf16 bits.
#[inline(always)]
pub(super) const fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let odd = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7fff).wrapping_add(odd) >> 16;
    (if value.is_nan() { 0x7fc0 } else { rounded }) as u16
}

/// bf16 bits to f32.
#[inline(always)]
pub(super) const fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// f16 bits to f32.
#[inline(always)]
pub(super) const fn f16_to_f32(bits: u16) -> f32 {
    // The fields moved into place are the value with the wrong bias; a product with a power of two mends it, exactly
    // and for subnormals too. Infinities and NaNs need the full exponent.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = (bits as u32 & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * REBIAS).to_bits();
    let special = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { 0 };
    f32::from_bits(finite | special | (bits as u32 & 0x8000) << 16)
}

/// f32 to f16 bits.
#[inline(always)]
pub(super) const fn f16_from_f32(value: f32) -> u16 {
    F16.nearest_f32(value) as u16
}

/// f32 to an 8-bit float.
#[inline(always)]
pub(super) const fn f8_from_f32(float: Float, value: f32) -> u8 {
    match float.narrow() {
        Some(narrow) => narrow.nearest_f32(value) as u8,
        None => 0,
    }
}

/// The values of the 256 patterns of an 8-bit float.
pub(super) const fn f8_table(float: Float) -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        table[bits] = float.value(bits as u64) as f32;
        bits += 1;
    }
    table
}
