//! How the loops read and write each format: element by element in safe code that the compiler vectorises.
//!
//! A format may replace whole loops where the compiler cannot find the instruction by itself (`f16c`).

#![expect(
    clippy::inline_always,
    reason = "the loops are compiled for an instruction set by being inlined where it is enabled"
)]

use crate::engine::float::{
    Float, bf16_from_f32, bf16_to_f32, f8_from_f32, f8_table, f16_from_f32, f16_to_f32,
};

/// An element type the f32 loops work on.
pub(super) trait Format: Copy {
    /// One element in memory: `[u8; N]`, so that slices of it need no alignment.
    type Bits: Copy;

    /// Cuts bytes into elements; a part of one at the end is left out.
    fn split(bytes: &[u8]) -> &[Self::Bits];

    /// Cuts bytes into elements; a part of one at the end is left out.
    fn split_mut(bytes: &mut [u8]) -> &mut [Self::Bits];

    /// Exact.
    fn widen(self, bits: Self::Bits) -> f32;

    /// To nearest even, NaNs canonical.
    fn round(self, value: f32) -> Self::Bits;

    /// Whether the element is a NaN or an infinity.
    fn is_special(self, bits: Self::Bits) -> bool;

    /// Widens as many elements as both slices have.
    #[inline(always)]
    fn widen_all(self, from: &[Self::Bits], to: &mut [f32]) {
        for (from, to) in from.iter().zip(to) {
            *to = self.widen(*from);
        }
    }

    /// Rounds as many elements as both slices have; says whether any result is special.
    #[inline(always)]
    fn round_all(self, from: &[f32], to: &mut [Self::Bits]) -> bool {
        let mut special = false;
        for (from, to) in from.iter().zip(to) {
            let bits = self.round(*from);
            special |= self.is_special(bits);
            *to = bits;
        }
        special
    }

    /// `out = base + lambda * (w0*x0 + w1*x1 + ...)` in registers; says whether any result is special.
    /// `base` and `terms` are at least as long as `out`.
    #[inline(always)]
    fn fused<const N: usize>(
        self,
        base: &[Self::Bits],
        terms: [&[Self::Bits]; N],
        factors: &Factors<N>,
        out: &mut [Self::Bits],
    ) -> bool {
        let count = out.len();
        let (base, terms) = (&base[..count], terms.map(|term| &term[..count]));
        let mut special = false;
        for i in 0..count {
            let mut sum = factors.weights[0] * self.widen(terms[0][i]);
            for (term, weight) in terms.iter().zip(&factors.weights).skip(1) {
                sum += weight * self.widen(term[i]);
            }
            let bits = self.round(self.widen(base[i]) + factors.lambda * sum);
            special |= self.is_special(bits);
            out[i] = bits;
        }
        special
    }

    /// As [`Self::fused`], of differences from the base.
    #[inline(always)]
    fn fused_deltas<const N: usize>(
        self,
        base: &[Self::Bits],
        terms: [&[Self::Bits]; N],
        factors: &Factors<N>,
        out: &mut [Self::Bits],
    ) -> bool {
        let count = out.len();
        let (base, terms) = (&base[..count], terms.map(|term| &term[..count]));
        let mut special = false;
        for i in 0..count {
            let base = self.widen(base[i]);
            let mut sum = factors.weights[0] * (self.widen(terms[0][i]) - base);
            for (term, weight) in terms.iter().zip(&factors.weights).skip(1) {
                sum += weight * (self.widen(term[i]) - base);
            }
            let bits = self.round(base + factors.lambda * sum);
            special |= self.is_special(bits);
            out[i] = bits;
        }
        special
    }

    /// As [`Self::fused`], without a base.
    #[inline(always)]
    fn fused_sum<const N: usize>(
        self,
        terms: [&[Self::Bits]; N],
        factors: &Factors<N>,
        out: &mut [Self::Bits],
    ) -> bool {
        let count = out.len();
        let terms = terms.map(|term| &term[..count]);
        let mut special = false;
        for i in 0..count {
            let mut sum = factors.weights[0] * self.widen(terms[0][i]);
            for (term, weight) in terms.iter().zip(&factors.weights).skip(1) {
                sum += weight * self.widen(term[i]);
            }
            let bits = self.round(factors.lambda * sum);
            special |= self.is_special(bits);
            out[i] = bits;
        }
        special
    }
}

/// The scalars of a blend, rounded to f32.
pub(super) struct Factors<const N: usize> {
    pub(super) weights: [f32; N],
    pub(super) lambda: f32,
}

#[derive(Clone, Copy)]
pub(super) struct F32;

impl Format for F32 {
    type Bits = [u8; 4];

    #[inline(always)]
    fn split(bytes: &[u8]) -> &[[u8; 4]] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn split_mut(bytes: &mut [u8]) -> &mut [[u8; 4]] {
        bytes.as_chunks_mut().0
    }

    #[inline(always)]
    fn widen(self, bits: [u8; 4]) -> f32 {
        f32::from_le_bytes(bits)
    }

    #[inline(always)]
    fn round(self, value: f32) -> [u8; 4] {
        let canonical = if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() };
        canonical.to_le_bytes()
    }

    #[inline(always)]
    fn is_special(self, bits: [u8; 4]) -> bool {
        u32::from_le_bytes(bits) & 0x7f80_0000 == 0x7f80_0000
    }
}

macro_rules! sixteen_bits {
    ($name:ident, $widen:ident, $round:ident, $exponent:literal) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl Format for $name {
            type Bits = [u8; 2];

            #[inline(always)]
            fn split(bytes: &[u8]) -> &[[u8; 2]] {
                bytes.as_chunks().0
            }

            #[inline(always)]
            fn split_mut(bytes: &mut [u8]) -> &mut [[u8; 2]] {
                bytes.as_chunks_mut().0
            }

            #[inline(always)]
            fn widen(self, bits: [u8; 2]) -> f32 {
                $widen(u16::from_le_bytes(bits))
            }

            #[inline(always)]
            fn round(self, value: f32) -> [u8; 2] {
                $round(value).to_le_bytes()
            }

            #[inline(always)]
            fn is_special(self, bits: [u8; 2]) -> bool {
                u16::from_le_bytes(bits) & $exponent == $exponent
            }
        }
    };
}

sixteen_bits!(BF16, bf16_to_f32, bf16_from_f32, 0x7f80);
sixteen_bits!(F16, f16_to_f32, f16_from_f32, 0x7c00);

macro_rules! eight_bits {
    ($name:ident, $special:expr) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl Format for $name {
            type Bits = [u8; 1];

            #[inline(always)]
            fn split(bytes: &[u8]) -> &[[u8; 1]] {
                bytes.as_chunks().0
            }

            #[inline(always)]
            fn split_mut(bytes: &mut [u8]) -> &mut [[u8; 1]] {
                bytes.as_chunks_mut().0
            }

            #[inline(always)]
            fn widen(self, bits: [u8; 1]) -> f32 {
                static VALUES: [f32; 256] = f8_table(Float::$name);
                VALUES[usize::from(bits[0])]
            }

            #[inline(always)]
            fn round(self, value: f32) -> [u8; 1] {
                [f8_from_f32(Float::$name, value)]
            }

            #[inline(always)]
            fn is_special(self, bits: [u8; 1]) -> bool {
                let special: fn(u8) -> bool = $special;
                special(bits[0])
            }
        }
    };
}

eight_bits!(E4M3, |bits| bits & 0x7f == 0x7f);
eight_bits!(E5M2, |bits| bits & 0x7c == 0x7c);
eight_bits!(E4M3Fnuz, |bits| bits == 0x80);
eight_bits!(E5M2Fnuz, |bits| bits == 0x80);

/// Calls the body with the [`Format`] of a float; f64 never comes here.
macro_rules! with_format {
    ($float:expr, $half:expr, $format:ident => $body:expr) => {
        match $float {
            Float::F64 | Float::F32 => {
                let $format = F32;
                $body
            }
            Float::F16 => {
                let $format = $half;
                $body
            }
            Float::BF16 => {
                let $format = BF16;
                $body
            }
            Float::E4M3 => {
                let $format = E4M3;
                $body
            }
            Float::E5M2 => {
                let $format = E5M2;
                $body
            }
            Float::E4M3Fnuz => {
                let $format = E4M3Fnuz;
                $body
            }
            Float::E5M2Fnuz => {
                let $format = E5M2Fnuz;
                $body
            }
        }
    };
}

pub(super) use with_format;
