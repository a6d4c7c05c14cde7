//! Routers: random ones, and those that point where the embeddings of an expert's prompts do.

use std::collections::{BTreeMap, HashMap};

use super::super::super::draft::Draft;
use super::super::super::operand::rows_of;
use super::config::ExpertOf;
use crate::checkpoint::{Checkpoint, Role, Stretch, locate};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::plan::{Blend, Distribution, Part, Random, Term};

/// Norms below this count as this, as for mergekit.
const LEAST_NORM: f64 = 1e-8;

/// Cosine from which two routers are said to be alike.
const ALIKE: f64 = 0.9;

/// A router's row as a weighted sum of embedding rows.
pub(super) struct Gate {
    /// Rows of the embedding and what they weigh.
    rows: BTreeMap<u64, f64>,
    /// Its direction, of length 1.
    direction: Vec<f64>,
}

/// The embedding of the base model, of which some rows are read while planning: their norms say what they weigh.
pub(super) struct Embedding<'a> {
    stretch: Stretch<'a>,
    name: String,
    width: u64,
    tokens: &'a HashMap<String, Vec<u32>>,
}

impl<'a> Embedding<'a> {
    pub(super) fn of(base: &'a Checkpoint, tokens: &'a HashMap<String, Vec<u32>>) -> Result<Self> {
        let unusable = |reason: &str| Error::Unsupported {
            what: format!("`cheap_embed` with `{}`", base.name()),
            reason: reason.to_owned(),
            hint: "use `gate_mode: random` and train the routers".into(),
        };
        let name = base.names_with_role(Role::Embedding).first().map(|name| (*name).to_owned());
        let name = name.ok_or_else(|| unusable("it has no embedding"))?;
        let located = locate(base, &name).and_then(|(shape, mut s)| Some((shape, s.pop()?)));
        let (shape, stretch) = located.ok_or_else(|| unusable("its embedding is not stored"))?;
        match shape.0.as_slice() {
            [_, width] if stretch.dtype.is_float() && !stretch.dtype.is_f8() => {
                Ok(Self { stretch, name, width: *width, tokens })
            }
            _ => Err(unusable("its embedding is not a matrix of floats of 16 bits or more")),
        }
    }

    /// `normalised(normalised(sum of positive) - normalised(sum of negative))` of the embeddings of all prompts' tokens.
    pub(super) fn gate(&self, expert: &ExpertOf) -> Result<Gate> {
        let width = usize::try_from(self.width).unwrap_or(0);
        let mut rows: BTreeMap<u64, f64> = BTreeMap::new();
        let mut direction = vec![0.0; width];
        for (prompts, sign) in [(&expert.positive, 1.0), (&expert.negative, -1.0)] {
            let mut counts: BTreeMap<u64, f64> = BTreeMap::new();
            for prompt in prompts {
                let ids = self.tokens.get(prompt).map(Vec::as_slice).unwrap_or_default();
                for id in ids {
                    *counts.entry(u64::from(*id)).or_default() += 1.0;
                }
            }
            let mut sum = vec![0.0; width];
            for (id, count) in &counts {
                add(&mut sum, &self.row(*id)?, *count);
            }
            let scale = sign / norm(&sum).max(LEAST_NORM);
            add(&mut direction, &sum, scale);
            for (id, count) in counts {
                *rows.entry(id).or_default() += count * scale;
            }
        }
        let length = norm(&direction);
        if length < LEAST_NORM {
            return Err(Error::Mismatch {
                what: format!("`{}` gives no direction to route by", expert.at),
                problems: vec![
                    "the embeddings of its prompts cancel each other, or there are no tokens"
                        .into(),
                ],
                hint: "give it prompts of its own".into(),
            });
        }
        for factor in rows.values_mut().chain(&mut direction) {
            *factor /= length;
        }
        Ok(Gate { rows, direction })
    }

    /// A row of the embedding.
    fn row(&self, id: u64) -> Result<Vec<f64>> {
        let rows = self.stretch.shape.rows();
        if id >= rows {
            return Err(Error::Mismatch {
                what: "the tokenizer does not belong to the base model".into(),
                problems: vec![format!("a prompt has token {id}, `{}` has {rows} rows", self.name)],
                hint: "put the base model's tokenizer beside it".into(),
            });
        }
        let size = self.width * self.stretch.dtype.bytes().unwrap_or(1);
        let start = self.stretch.bytes.start + id * size;
        let mut buffer = Vec::new();
        let source = self.stretch.shard.source()?;
        let bytes = source.tile(start..start + size, &mut buffer)?;
        Ok(floats(self.stretch.dtype, &bytes))
    }

    /// The gate as a part of a router.
    pub(super) fn part(&self, draft: &mut Draft, role: &str, gate: &Gate) -> Part {
        let table = draft.slice(role, &self.stretch).into();
        let terms =
            gate.rows.iter().map(|(id, weight)| Term::new(rows_of(&table, *id, id + 1), *weight));
        Part::Blend(Box::new(Blend::sum(None, terms.collect(), 1.0)))
    }
}

/// Routers that point nearly the same way, by the largest cosine.
pub(super) fn alike(gates: &[Gate]) -> Option<String> {
    let mut most = (ALIKE, None);
    for (i, a) in gates.iter().enumerate() {
        for (j, b) in gates.iter().enumerate().skip(i + 1) {
            let cosine: f64 = a.direction.iter().zip(&b.direction).map(|(x, y)| x * y).sum();
            if cosine > most.0 {
                most = (cosine, Some((i, j)));
            }
        }
    }
    let (cosine, (i, j)) = (most.0, most.1?);
    Some(format!(
        "the routers of experts[{i}] and experts[{j}] point nearly the same way (cosine {cosine:.3}): their prompts are alike"
    ))
}

/// Random rows of a router; the tensor's name tells routers of one seed apart.
pub(super) fn random(name: &str, rows: u64, columns: u64, seed: u64, uniform: bool) -> Part {
    let mut stream = [0; 8];
    stream.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
    #[expect(clippy::cast_precision_loss, reason = "widths are small")]
    let distribution = if uniform {
        // As a linear layer of PyTorch begins.
        Distribution::Uniform { bound: (1.0 / columns.max(1) as f64).sqrt() }
    } else {
        Distribution::Normal { deviation: 1.0 }
    };
    Part::Random(Random { rows, seed, stream: u64::from_le_bytes(stream), distribution })
}

fn add(sum: &mut [f64], row: &[f64], factor: f64) {
    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * x);
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Little-endian floats of 16 bits or more.
fn floats(dtype: &Dtype, bytes: &[u8]) -> Vec<f64> {
    let two = || bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
    match dtype {
        Dtype::BF16 => two().map(|bits| f64::from(f32::from_bits(u32::from(bits) << 16))).collect(),
        Dtype::F16 => two().map(f16).collect(),
        Dtype::F32 => {
            let four = bytes.as_chunks::<4>().0.iter();
            four.map(|b| f64::from(f32::from_le_bytes(*b))).collect()
        }
        _ => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
    }
}

/// The value of an IEEE half.
fn f16(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits % 1024));
    sign * match exponent {
        0 => fraction * 2.0_f64.powi(-24),
        31 if fraction.abs() == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2.0_f64.powi(exponent - 25),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2.0_f64.powi(-24)), (0x7bff, 65504.0)]
        {
            assert!((f16(bits) - value).abs() == 0.0, "{bits:x}");
        }
    }
}
