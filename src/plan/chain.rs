//! mergekit's arithmetic: inputs are cast to one dtype first, and every operation is rounded to it.

use serde::{Deserialize, Serialize};

use super::{Blend, Keep, Operand, Span};
use crate::format::Dtype;

/// How a [`Blend`] is computed under [`Numerics::Mergekit`](super::Numerics::Mergekit), operation by operation.
///
/// All values are cast to `dtype` (rounded to nearest even) before anything else. `R` rounds to it; f16 and bf16 are computed
/// in f32 and then rounded, f32 and f64 in themselves. The result is rounded once more, into the output dtype.
///
/// In JSON: `{"dtype": "BF16", "steps": "linear"}`, `{"dtype": "F32", "steps": {"task_vectors": {"ascending": false}}, "draws": 4096}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// What inputs are cast to and operations rounded to: `F64`, `F32`, `F16` or `BF16`.
    pub dtype: Dtype,
    /// Which operations.
    pub steps: Steps,
    /// How many 32-bit words of the random stream were taken before this part.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub draws: u64,
}

/// The operations of a [`Chain`]. `b` is the base, `x_k` and `w_k` are the terms' values and weights, `d_k = R(x_k - b)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Steps {
    /// `R(x_0 * w_0)`.
    Scaled,
    /// The sum of `x_k * w_k` from zero, each product fused with its addition, in f32 (f64 for `F64`); with a
    /// [`Divide`](super::Divide) divided by the sum of the weights, whatever that is. Rounded once.
    Linear,
    /// `m = R(sum of R(e_k * R(w_k)))`, where `e_k` is `d_k` where it is kept and zero elsewhere, with `rescale` times
    /// `R(|d_k|_1 / |e_k|_1)`. With a [`Vote`](super::Vote) only terms of the elected sign, that of the sum (zero is
    /// plus). With a divide, `R(m / R(sum of R(w_k)))` over the same terms. `R(b + R(lambda * m))`.
    ///
    /// `largest` keeps what a sort of the magnitudes puts in front. Equal magnitudes are in the order in which introsort
    /// (quicksort by the median of three down to runs of 16, then insertion) leaves them. `random` keeps an element if
    /// `u < R(probability)`, where `u` is the low 24 bits of the stream's next word as a fraction; the stream is MT19937, started
    /// from `seed`. `ranked` draws in the same way, by ranks within rows.
    TaskVectors {
        /// Whether the sort is from the smallest magnitude up.
        ascending: bool,
    },
    /// `R(b + R(sum of e_k))` of the terms that are kept (`above`): `d_k` where it is kept alone, `R(d_k / n)` where `n` terms are.
    Shares,
    /// As `shares`, but what is kept alone is first multiplied by `1 + r * min(shared / own, alpha)`, of the numbers of elements where
    /// the term is kept beside others and alone, in f32. From there on f32 (f64 for `F64`).
    SharesTimes {
        /// How much.
        r: f64,
        /// At most.
        alpha: f64,
    },
    /// `R(R(w * x_0) + R(R(1 - w) * b))` with `w = R(R(1 / max(|d_0|, 1e-6)) * t)`, at least 0 and at most 1 (`near`).
    Near,
}

impl Chain {
    /// Bits of a seed of MT19937.
    const SEED: u64 = u32::MAX as u64;

    /// No stream is longer: a thousand models of 70 billion parameters.
    const MOST_DRAWS: u64 = 1 << 46;

    /// Words of the random stream that a blend takes: one for each element of each term that is kept at random.
    pub fn words(blend: &Blend) -> u64 {
        let random = |keep: &Keep| matches!(keep, Keep::Random { .. } | Keep::Ranked { .. });
        let terms = blend.terms.iter().filter(|term| random(&term.keep)).count() as u64;
        terms.saturating_mul(blend.elements())
    }

    /// Bytes of memory to find out what is kept of a part: magnitudes, their order, and a bit for each element.
    pub fn memory(&self, blend: &Blend) -> u64 {
        let each = |keep: &Keep| match keep {
            Keep::Largest { .. } => 12,
            Keep::Ranked { .. } | Keep::Random { .. } => 4,
            _ => 0,
        };
        let most = blend.terms.iter().map(|term| each(&term.keep)).max().unwrap_or(0);
        let masks = blend.terms.iter().filter(|term| each(&term.keep) > 0).count() as u64;
        let n = blend.elements();
        n.saturating_mul(most).saturating_add(n.div_ceil(8).saturating_mul(masks))
    }

    /// Whether all of a part has to be seen before any of it can be computed.
    pub fn looks(&self, blend: &Blend) -> bool {
        let found =
            |keep: &Keep| !matches!(keep, Keep::All | Keep::Above { .. } | Keep::Near { .. });
        let counts = matches!(self.steps, Steps::SharesTimes { .. });
        counts || blend.terms.iter().any(|term| found(&term.keep))
    }

    /// Whether the steps can be taken with a blend.
    pub(super) fn check(&self, blend: &Blend) -> Result<(), String> {
        if !matches!(self.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(format!("a chain of roundings to {}", self.dtype));
        }
        if blend.solve.is_some() || blend.span != Span::Part {
            return Err("a chain of roundings with weights to be solved for".into());
        }
        if !blend.operands().all(Operand::is_plain) {
            return Err("a chain of roundings of quantised codes or low-rank products".into());
        }
        let end = self.draws.checked_add(Self::words(blend));
        if end.is_none_or(|end| end > Self::MOST_DRAWS) {
            return Err("a chain that begins beyond the end of its random stream".into());
        }
        let (single, deltas) = match self.steps {
            Steps::Scaled => (true, false),
            Steps::Linear => (false, false),
            Steps::Near => (true, true),
            _ => (false, true),
        };
        if single && blend.terms.len() != 1 {
            return Err(format!("{:?} of {} terms", self.steps, blend.terms.len()));
        }
        if blend.deltas != deltas || blend.base.is_some() != deltas {
            let with = if deltas { "without" } else { "with" };
            return Err(format!("{:?} {with} differences from a base", self.steps));
        }
        let voted = matches!(self.steps, Steps::TaskVectors { .. });
        if blend.vote.is_some() && !voted {
            return Err(format!("{:?} with a vote", self.steps));
        }
        let n = blend.elements();
        blend.terms.iter().try_for_each(|term| {
            let fits = match (self.steps, term.keep) {
                (Steps::Scaled | Steps::Linear, Keep::All) => true,
                (Steps::Near, Keep::Near { .. }) => true,
                (Steps::Shares | Steps::SharesTimes { .. }, Keep::Above { .. }) => true,
                (Steps::TaskVectors { .. }, keep) => fits(keep, n),
                _ => false,
            };
            let plain = term.alone.to_bits() == 1.0_f64.to_bits()
                && term.gain.to_bits() == 1.0_f64.to_bits();
            let rescales = !term.rescale || voted;
            if fits && plain && rescales {
                Ok(())
            } else {
                Err(format!("{:?} cannot work with {term:?}", self.steps))
            }
        })
    }
}

/// Whether a keep of task vectors makes sense for `n` elements. Those that sort count elements in 32 bits.
fn fits(keep: Keep, n: u64) -> bool {
    match keep {
        Keep::All => true,
        Keep::Largest { skip, count } => {
            u32::try_from(n).is_ok() && skip.checked_add(count).is_some_and(|end| end <= n)
        }
        Keep::Random { probability, seed } => {
            (0.0..=1.0).contains(&probability) && seed <= Chain::SEED
        }
        Keep::Ranked { low, high, seed, columns } => {
            let open = |p: f64| p > 0.0 && p < 1.0;
            let rows = columns > 1 && u32::try_from(columns).is_ok() && n.is_multiple_of(columns);
            open(low) && open(high) && seed <= Chain::SEED && rows
        }
        _ => false,
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A blend of two models' 16 elements with a chain, and what a test changes of it.
    fn check(change: impl Fn(&mut Value)) -> Result<(), String> {
        let slice =
            json!({"source": 0, "bytes": {"start": 0, "end": 64}, "dtype": "F32", "shape": [4, 4]});
        let operand = json!({"slice": slice});
        let keep = json!({"largest": {"skip": 4, "count": 12}});
        let term = json!({"operand": operand, "weight": 0.5, "keep": keep});
        let mut blend = json!({
            "base": operand, "terms": [term, term], "lambda": 1.0, "deltas": true, "vote": "weighted",
            "chain": {"dtype": "BF16", "steps": {"task_vectors": {"ascending": false}}, "draws": 5},
        });
        change(&mut blend);
        let blend: Blend = serde_json::from_value(blend).unwrap();
        blend.chain.clone().unwrap().check(&blend)
    }

    #[test]
    fn a_chain_from_a_file_is_hostile() {
        assert_eq!(check(|_| ()), Ok(()));
        let random = |probability: f64, seed: u64| json!({"random": {"probability": probability, "seed": seed}});
        let ranked = |columns: u64| json!({"ranked": {"low": 0.2, "high": 0.8, "seed": 1, "columns": columns}});
        for keep in [random(0.0, 1 << 31), random(1.0, 0), ranked(4), json!("all")] {
            assert_eq!(check(|blend| blend["terms"][1]["keep"] = keep.clone()), Ok(()), "{keep}");
        }
        for keep in [
            json!({"largest": {"skip": 5, "count": 12}}),
            json!({"largest": {"skip": u64::MAX, "count": 12}}),
            random(1.5, 0),
            random(0.5, 1 << 32),
            ranked(1),
            ranked(5),
            ranked(0),
            json!({"above": {"magnitude": 0.5}}),
        ] {
            assert!(check(|blend| blend["terms"][1]["keep"] = keep.clone()).is_err(), "{keep}");
        }
        for (key, value) in [
            ("dtype", json!("F8_E4M3")),
            ("dtype", json!("I64")),
            ("steps", json!("linear")),
            ("steps", json!("scaled")),
            ("steps", json!("near")),
            ("steps", json!("shares")),
            ("draws", json!(1_u64 << 50)),
        ] {
            assert!(check(|blend| blend["chain"][key] = value.clone()).is_err(), "{key}: {value}");
        }
        assert!(check(|blend| blend["deltas"] = json!(false)).is_err());
        assert!(check(|blend| blend["solve"] = json!("model_stock")).is_err());
        assert!(check(|blend| blend["terms"][0]["gain"] = json!(2.0)).is_err());
        let huge = |blend: &mut Value| {
            blend["chain"]["draws"] = json!((1_u64 << 46) - 8);
            blend["terms"][0]["keep"] = random(0.5, 1);
        };
        assert!(check(huge).is_err(), "the stream ends");
    }

    #[test]
    fn what_a_part_takes_of_memory_and_of_the_stream() {
        let text = json!({
            "terms": [{
                "operand": {"slice": {"source": 0, "bytes": {"start": 0, "end": 64}, "dtype": "F32", "shape": [16]}},
                "weight": 1.0, "keep": {"random": {"probability": 0.5, "seed": 1}},
            }],
            "lambda": 1.0,
        });
        let mut blend: Blend = serde_json::from_value(text).unwrap();
        let steps = Steps::TaskVectors { ascending: false };
        let chain = Chain { dtype: Dtype::F32, steps, draws: 0 };
        assert_eq!((Chain::words(&blend), chain.memory(&blend)), (16, 16 * 4 + 2));
        blend.terms[0].keep = Keep::Largest { skip: 0, count: 3 };
        assert_eq!((Chain::words(&blend), chain.memory(&blend)), (0, 16 * 12 + 2));
        blend.terms[0].keep = Keep::All;
        assert_eq!((Chain::words(&blend), chain.memory(&blend)), (0, 0));
    }
}
