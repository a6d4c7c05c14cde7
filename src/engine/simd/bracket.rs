//! The loops that count magnitudes to brackets: base and terms are read once, for every threshold of every term.

#![expect(
    clippy::inline_always,
    reason = "the loops are compiled for an instruction set by being inlined where it is enabled"
)]

use super::format::{BF16, E4M3, E4M3Fnuz, E5M2, E5M2Fnuz, F32, Format, with_format};
use super::level::Job;
use super::{BLOCK, Simd, widen};
use crate::engine::bracket::Tally;
use crate::engine::device::Values;
use crate::engine::float::Float;

impl Simd {
    /// Counts magnitudes of values that are not `F64`, minus those of the base. A tally comes with the number of its term.
    pub(in crate::engine) fn tally(
        self,
        base: Option<&Values<'_>>,
        terms: &[Values<'_>],
        tallies: &mut [(usize, &mut Tally)],
    ) {
        self.level.run(Count { base, terms, tallies });
    }
}

struct Count<'a, 't> {
    base: Option<&'a Values<'a>>,
    terms: &'a [Values<'a>],
    tallies: &'a mut [(usize, &'t mut Tally)],
}

impl Job for Count<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<H: Format<Bits = [u8; 2]>>(self, half: H) {
        let elements = self.terms.iter().map(|term| term.bytes.len() / term.float.size());
        let elements = elements.min().unwrap_or(0);
        let (mut base, mut wide) = ([0.0; BLOCK], [0.0; BLOCK]);
        let mut magnitudes = [0; BLOCK];
        for start in (0..elements).step_by(BLOCK) {
            let count = BLOCK.min(elements - start);
            if let Some(operand) = self.base {
                let bytes = operand.run(start, count).bytes;
                with_format!(operand.float, half, format => widen(format, bytes, &mut base));
            }
            for (number, term) in self.terms.iter().enumerate() {
                let bytes = term.run(start, count).bytes;
                with_format!(term.float, half, format => widen(format, bytes, &mut wide));
                let values = wide.iter().zip(&base).zip(&mut magnitudes);
                if self.base.is_some() {
                    for ((x, base), magnitude) in values {
                        *magnitude = (x - base).to_bits() & 0x7fff_ffff;
                    }
                } else {
                    for ((x, _), magnitude) in values {
                        *magnitude = x.to_bits() & 0x7fff_ffff;
                    }
                }
                for (_, tally) in self.tallies.iter_mut().filter(|(term, _)| *term == number) {
                    tally.count(&magnitudes[..count]);
                }
            }
        }
    }
}
