//! f16 by the processor's own conversions, eight lanes at a time: the one format where the compiler needs a hand.

#![expect(
    clippy::inline_always,
    reason = "the loops are compiled for an instruction set by being inlined where it is enabled"
)]
#![expect(unsafe_code, reason = "intrinsics, behind a token that proves the CPU has them")]

use std::arch::x86_64::{
    __m128i, __m256, _CMP_UNORD_Q, _MM_FROUND_TO_NEAREST_INT, _mm_and_si128, _mm_cmpeq_epi16,
    _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi16, _mm_setzero_si128,
    _mm_storeu_si128, _mm256_add_ps, _mm256_blendv_ps, _mm256_cmp_ps, _mm256_cvtph_ps,
    _mm256_cvtps_ph, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps,
};

use super::format::{F16, Factors, Format};

/// f16 on a CPU with AVX and F16C; a value of this type is the proof.
#[derive(Clone, Copy)]
pub(super) struct F16c(());

impl F16c {
    /// `None` where the CPU lacks AVX or F16C.
    pub(super) fn new() -> Option<Self> {
        let present = is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c");
        present.then_some(Self(()))
    }
}

type Eight = [[u8; 2]; 8];

impl Format for F16c {
    type Bits = [u8; 2];

    #[inline(always)]
    fn split(bytes: &[u8]) -> &[[u8; 2]] {
        F16::split(bytes)
    }

    #[inline(always)]
    fn split_mut(bytes: &mut [u8]) -> &mut [[u8; 2]] {
        F16::split_mut(bytes)
    }

    #[inline(always)]
    fn widen(self, bits: [u8; 2]) -> f32 {
        F16.widen(bits)
    }

    #[inline(always)]
    fn round(self, value: f32) -> [u8; 2] {
        F16.round(value)
    }

    #[inline(always)]
    fn is_special(self, bits: [u8; 2]) -> bool {
        F16.is_special(bits)
    }

    #[inline(always)]
    fn widen_all(self, from: &[[u8; 2]], to: &mut [f32]) {
        // SAFETY: `self` exists only on CPUs with AVX and F16C.
        unsafe { widen_all(from, to) }
    }

    #[inline(always)]
    fn round_all(self, from: &[f32], to: &mut [[u8; 2]]) -> bool {
        // SAFETY: `self` exists only on CPUs with AVX and F16C.
        unsafe { round_all(from, to) }
    }

    #[inline(always)]
    fn fused<const N: usize>(
        self,
        base: &[[u8; 2]],
        terms: [&[[u8; 2]]; N],
        factors: &Factors<N>,
        out: &mut [[u8; 2]],
    ) -> bool {
        // SAFETY: `self` exists only on CPUs with AVX and F16C.
        unsafe { fused(base, terms, factors, out) }
    }
}

#[inline]
#[target_feature(enable = "avx,f16c")]
fn widen_all(from: &[[u8; 2]], to: &mut [f32]) {
    let count = from.len().min(to.len());
    let (from, from_rest) = from[..count].as_chunks();
    let (to, to_rest) = to[..count].as_chunks_mut();
    for (from, to) in from.iter().zip(to) {
        store_f32(load(from), to);
    }
    F16.widen_all(from_rest, to_rest);
}

#[inline]
#[target_feature(enable = "avx,f16c")]
fn round_all(from: &[f32], to: &mut [[u8; 2]]) -> bool {
    let count = from.len().min(to.len());
    let (from, from_rest) = from[..count].as_chunks();
    let (to, to_rest) = to[..count].as_chunks_mut();
    let mut special = _mm_setzero_si128();
    for (from, to) in from.iter().zip(to) {
        special = _mm_or_si128(special, store(load_f32(from), to));
    }
    F16.round_all(from_rest, to_rest) | (_mm_movemask_epi8(special) != 0)
}

#[inline]
#[target_feature(enable = "avx,f16c")]
fn fused<const N: usize>(
    base: &[[u8; 2]],
    terms: [&[[u8; 2]]; N],
    factors: &Factors<N>,
    out: &mut [[u8; 2]],
) -> bool {
    let count = out.len();
    let (base, base_rest) = base[..count].as_chunks();
    let whole = terms.map(|term| term[..count].as_chunks().0);
    let (out, out_rest) = out.as_chunks_mut();
    let lambda = _mm256_set1_ps(factors.lambda);
    let mut special = _mm_setzero_si128();
    for i in 0..out.len() {
        let mut sum = _mm256_mul_ps(_mm256_set1_ps(factors.weights[0]), load(&whole[0][i]));
        #[expect(
            clippy::needless_range_loop,
            reason = "it indexes the weights as well, and unrolls"
        )]
        for n in 1..N {
            let product = _mm256_mul_ps(_mm256_set1_ps(factors.weights[n]), load(&whole[n][i]));
            sum = _mm256_add_ps(sum, product);
        }
        let value = _mm256_add_ps(load(&base[i]), _mm256_mul_ps(lambda, sum));
        special = _mm_or_si128(special, store(value, &mut out[i]));
    }
    let rest = terms.map(|term| &term[..count][8 * whole[0].len()..]);
    F16.fused(base_rest, rest, factors, out_rest) | (_mm_movemask_epi8(special) != 0)
}

#[inline]
#[target_feature(enable = "avx,f16c")]
fn load(bits: &Eight) -> __m256 {
    #[expect(clippy::cast_ptr_alignment, reason = "the load is the unaligned one")]
    // SAFETY: the reference is to 16 readable bytes; the load needs no alignment.
    let bits = unsafe { _mm_loadu_si128(bits.as_ptr().cast::<__m128i>()) };
    _mm256_cvtph_ps(bits)
}

/// Rounds and stores; returns ones in the lanes of NaNs and infinities.
#[inline]
#[target_feature(enable = "avx,f16c")]
fn store(value: __m256, bits: &mut Eight) -> __m128i {
    // The conversion keeps payloads; the canonical f32 NaN becomes the canonical f16 NaN.
    let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value);
    let value = _mm256_blendv_ps(value, _mm256_set1_ps(f32::from_bits(0x7fc0_0000)), nan);
    let rounded = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
    #[expect(clippy::cast_ptr_alignment, reason = "the store is the unaligned one")]
    // SAFETY: the reference is to 16 writable bytes; the store needs no alignment.
    unsafe {
        _mm_storeu_si128(bits.as_mut_ptr().cast::<__m128i>(), rounded);
    }
    let exponent = _mm_set1_epi16(0x7c00);
    _mm_cmpeq_epi16(_mm_and_si128(rounded, exponent), exponent)
}

#[inline]
#[target_feature(enable = "avx")]
fn load_f32(values: &[f32; 8]) -> __m256 {
    // SAFETY: the reference is to 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx")]
fn store_f32(value: __m256, values: &mut [f32; 8]) {
    // SAFETY: the reference is to 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), value) }
}
