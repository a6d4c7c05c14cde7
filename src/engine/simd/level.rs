//! Instruction sets: the same loops compiled for each, and the proof that the CPU has one before it is used.

#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "calls of functions compiled for a CPU feature, behind a value that proves the feature"
    )
)]

#[cfg(target_arch = "x86_64")]
use super::f16c::F16c;
use super::format::{F16, Format};

/// Work to be compiled for each instruction set.
pub(super) trait Job {
    type Output;

    /// Does it, with the instruction set's way to convert f16. To be compiled for that set it must be
    /// `#[inline(always)]`, and so must what it calls.
    fn run<H: Format<Bits = [u8; 2]>>(self, half: H) -> Self::Output;
}

/// An instruction set that this CPU has.
#[derive(Clone, Copy)]
pub(super) struct Level(Set);

/// Nothing but [`Level::present`] makes these, after asking the CPU.
#[derive(Clone, Copy)]
enum Set {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2(F16c),
    #[cfg(target_arch = "x86_64")]
    Avx512(F16c),
}

impl Level {
    /// What every CPU of the target has.
    pub(super) const BASELINE: Self = Self(Set::Baseline);

    /// Every instruction set of this CPU, from the narrowest to the widest.
    pub(super) fn present() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))]
        let mut sets = vec![Self::BASELINE];
        #[cfg(target_arch = "x86_64")]
        if let Some(half) = F16c::new().filter(|_| is_x86_feature_detected!("avx2")) {
            sets.push(Self(Set::Avx2(half)));
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                sets.push(Self(Set::Avx512(half)));
            }
        }
        sets
    }

    pub(super) fn name(self) -> &'static str {
        match self.0 {
            Set::Baseline => "baseline",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => "avx512",
        }
    }

    pub(super) fn run<J: Job>(self, job: J) -> J::Output {
        match self.0 {
            Set::Baseline => job.run(F16),
            // SAFETY: `present` made this value after it found AVX2 and F16C.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(half) => unsafe { avx2(job, half) },
            // SAFETY: `present` made this value after it found AVX2, F16C and these parts of AVX-512.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(half) => unsafe { avx512(job, half) },
        }
    }
}

macro_rules! instance {
    ($name:ident, $features:literal) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name<J: Job>(job: J, half: F16c) -> J::Output {
            job.run(half)
        }
    };
}

instance!(avx2, "avx2,f16c");
instance!(avx512, "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl");
