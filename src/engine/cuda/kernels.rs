//! The kernels: their names, their parameters, and which of them a blend takes.
//!
//! The structs are those of `kernels/*.cuh`, field by field.

#![expect(unsafe_code, reason = "says that plain data may be passed to a kernel")]

use cudarc::driver::DeviceRepr;

use crate::engine::float::Float;
use crate::engine::sweep::{Digit, Want};

/// The kernels as PTX, made from `kernels/` by `kernels/build.sh`; the driver compiles it for its GPU.
pub(super) const PTX: &str = include_str!("../../../kernels/elo_surgery.ptx");

/// Most terms of one launch.
pub(super) const MAX_TERMS: usize = 64;

/// Threads of a block.
pub(super) const BLOCK: u32 = 256;

/// Elements in GPU memory, without a length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) float: Float,
    pub(super) address: u64,
}

/// The kernel's number of a format.
fn code(float: Float) -> u8 {
    match float {
        Float::F64 => 0,
        Float::F32 => 1,
        Float::F16 => 2,
        Float::BF16 => 3,
        Float::E4M3 => 4,
        Float::E5M2 => 5,
        Float::E4M3Fnuz => 6,
        Float::E5M2Fnuz => 7,
    }
}

macro_rules! entries {
    ($($name:ident = $text:literal,)*) => {
        /// An entry point of the PTX.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Entry { $($name),* }

        impl Entry {
            pub(super) const ALL: &[Self] = &[$(Self::$name),*];

            pub(super) const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

entries! {
    ChatVectorBF16 = "chat_vector_bf16",
    ChatVectorF16 = "chat_vector_f16",
    ChatVectorF32 = "chat_vector_f32",
    ChatVectorE4M3 = "chat_vector_e4m3",
    ChatVectorE5M2 = "chat_vector_e5m2",
    BlendSingle = "blend_single",
    BlendDouble = "blend_double",
    RuledSingle = "ruled_single",
    RuledDouble = "ruled_double",
    SumsSingle = "sums_single",
    SumsDouble = "sums_double",
    MaskedSumsSingle = "masked_sums_single",
    MaskedSumsDouble = "masked_sums_double",
    HistogramSingle = "histogram_single",
    HistogramDouble = "histogram_double",
}

/// Parameters of the blend kernels; `R` is the type of the arithmetic.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct BlendParameters<R> {
    elements: u64,
    out: u64,
    base: u64,
    health: u64,
    term: [u64; MAX_TERMS],
    weight: [R; MAX_TERMS],
    lambda: R,
    unused: R,
    terms: u32,
    term_dtype: [u8; MAX_TERMS],
    out_dtype: u8,
    base_dtype: u8,
    padding: [u8; 2],
}

// SAFETY: numbers only, laid out as C lays them out.
unsafe impl DeviceRepr for BlendParameters<f32> {}
// SAFETY: as above.
unsafe impl DeviceRepr for BlendParameters<f64> {}

/// Parameters of the kernels that add up.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct SumsParameters {
    elements: u64,
    base: u64,
    sums: u64,
    term: [u64; MAX_TERMS],
    terms: u32,
    term_dtype: [u8; MAX_TERMS],
    base_dtype: u8,
    want: u8,
    padding: [u8; 2],
}

// SAFETY: as above.
unsafe impl DeviceRepr for SumsParameters {}

impl SumsParameters {
    /// At most [`MAX_TERMS`] terms; `sums` is an address.
    pub(super) fn new(
        elements: u64,
        base: Option<Place>,
        terms: &[Place],
        want: Want,
        sums: u64,
    ) -> Self {
        let mut parameters = Self {
            elements,
            base: base.map_or(0, |base| base.address),
            sums,
            term: [0; MAX_TERMS],
            terms: u32::try_from(terms.len()).unwrap_or(0),
            term_dtype: [0; MAX_TERMS],
            base_dtype: base.map_or(0, |base| code(base.float)),
            want: u8::from(want.magnitudes()) | u8::from(want.products()) << 1,
            padding: [0; 2],
        };
        for (i, place) in terms.iter().enumerate().take(MAX_TERMS) {
            parameters.term[i] = place.address;
            parameters.term_dtype[i] = code(place.float);
        }
        parameters
    }
}

/// Parameters of the kernels that count.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct HistogramParameters {
    elements: u64,
    base: u64,
    term: u64,
    counts: u64,
    low: u32,
    high: u32,
    base_dtype: u8,
    term_dtype: u8,
    padding: [u8; 6],
}

// SAFETY: as above.
unsafe impl DeviceRepr for HistogramParameters {}

impl HistogramParameters {
    /// `counts` is an address.
    pub(super) fn new(
        elements: u64,
        base: Option<Place>,
        term: Place,
        digit: Digit,
        counts: u64,
    ) -> Self {
        let (low, high) = match digit {
            Digit::High => (0, 0),
            Digit::Low(high) => (1, high.into()),
        };
        Self {
            elements,
            base: base.map_or(0, |base| base.address),
            term: term.address,
            counts,
            low,
            high,
            base_dtype: base.map_or(0, |base| code(base.float)),
            term_dtype: code(term.float),
            padding: [0; 6],
        }
    }
}

/// A blend of elements in GPU memory.
#[derive(Clone, Copy)]
pub(super) struct BlendAt<'a> {
    pub(super) elements: u64,
    pub(super) out: Place,
    pub(super) base: Option<Place>,
    /// At most [`MAX_TERMS`].
    pub(super) terms: &'a [(Place, f64)],
    pub(super) lambda: f64,
    /// Address of the three counters.
    pub(super) health: u64,
}

impl BlendAt<'_> {
    pub(super) fn is_double(&self) -> bool {
        self.places().any(|place| place.float == Float::F64)
    }

    /// The output, the base, the terms.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        let terms = self.terms.iter().map(|(place, _)| *place);
        [self.out].into_iter().chain(self.base).chain(terms)
    }

    /// The kernel for it: the fused one of a dtype for its common shape, else the one for all, which with rules is another.
    pub(super) fn entry(&self, ruled: bool) -> Entry {
        match (self.is_double(), ruled) {
            (true, true) => return Entry::RuledDouble,
            (false, true) => return Entry::RuledSingle,
            (true, false) => return Entry::BlendDouble,
            (false, false) => {}
        }
        let uniform = self.places().all(|place| place.float == self.out.float);
        if self.base.is_none() || self.terms.len() != 2 || !uniform {
            return Entry::BlendSingle;
        }
        match self.out.float {
            Float::BF16 => Entry::ChatVectorBF16,
            Float::F16 => Entry::ChatVectorF16,
            Float::F32 => Entry::ChatVectorF32,
            Float::E4M3 => Entry::ChatVectorE4M3,
            Float::E5M2 => Entry::ChatVectorE5M2,
            _ => Entry::BlendSingle,
        }
    }

    /// The parameters, with the weights rounded to the arithmetic's type by `round`.
    pub(super) fn parameters<R: Copy + Default>(
        &self,
        round: impl Fn(f64) -> R,
    ) -> BlendParameters<R> {
        let mut parameters = BlendParameters {
            elements: self.elements,
            out: self.out.address,
            base: self.base.map_or(0, |base| base.address),
            health: self.health,
            term: [0; MAX_TERMS],
            weight: [R::default(); MAX_TERMS],
            lambda: round(self.lambda),
            unused: R::default(),
            terms: u32::try_from(self.terms.len()).unwrap_or(0),
            term_dtype: [0; MAX_TERMS],
            out_dtype: code(self.out.float),
            base_dtype: self.base.map_or(0, |base| code(base.float)),
            padding: [0; 2],
        };
        for (i, (place, weight)) in self.terms.iter().enumerate().take(MAX_TERMS) {
            parameters.term[i] = place.address;
            parameters.weight[i] = round(*weight);
            parameters.term_dtype[i] = code(place.float);
        }
        parameters
    }
}

// The sizes that `kernels/*.cuh` assert too: those of the fields, so that every byte of the structs is one of a field.
const fn of_blend(real: usize) -> usize {
    4 * 8 + MAX_TERMS * (8 + real + 1) + 2 * real + 4 + 4
}
const _: () = assert!(size_of::<BlendParameters<f32>>() == 880 && of_blend(4) == 880);
const _: () = assert!(size_of::<BlendParameters<f64>>() == 1144 && of_blend(8) == 1144);
const _: () = assert!(size_of::<SumsParameters>() == 608 && 3 * 8 + MAX_TERMS * 9 + 8 == 608);
const _: () = assert!(size_of::<HistogramParameters>() == 48);
const _: () = assert!(size_of::<HistogramParameters>() == 4 * 8 + 2 * 4 + 8);
