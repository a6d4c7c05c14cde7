//! What carrying out a plan takes.

use serde::Serialize;

use super::{Blend, Operand, Part, Plan};

/// Bytes by what happens to them. Sums stop at the largest number. Every count is exact, but that of bytes read where thresholds are to be found: it is the most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Bytes read from sources: copied ones once, operands of blends once a sweep.
    pub read: u64,
    /// How often the inputs of a blend are read at most: more than once if weights or thresholds depend on whole tensors.
    pub sweeps: u32,
    /// Bytes of all output shards, headers included.
    pub written: u64,
    /// Of those, bytes copied as they are (shareable on a filesystem with reflinks).
    pub copied: u64,
    /// Of those, bytes computed.
    pub computed: u64,
    /// Number of output shards.
    pub shards: u64,
    /// Number of output tensors.
    pub tensors: u64,
    /// Number of output elements, for dtypes of whole bytes.
    pub elements: u64,
}

pub(super) fn cost(plan: &Plan) -> Cost {
    let mut cost = Cost { shards: plan.shards.len() as u64, ..Cost::default() };
    cost.tensors = plan.tensors.len() as u64;
    cost.written = sum(plan.layout().iter().map(|shard| shard.size));
    for tensor in &plan.tensors {
        add(&mut cost.elements, tensor.shape.elements().unwrap_or(0));
        for part in &tensor.parts {
            let len = tensor.part_len(part);
            match part {
                Part::Copy(_) => {
                    add(&mut cost.copied, len);
                    add(&mut cost.read, len);
                }
                Part::Fill { .. } | Part::Random(_) => add(&mut cost.computed, len),
                Part::Blend(blend) => {
                    add(&mut cost.computed, len);
                    cost.sweeps = cost.sweeps.max(blend.sweeps());
                    add(&mut cost.read, read(blend));
                }
            }
        }
    }
    cost
}

/// Bytes that are read for a blend: its operands once a sweep.
pub(super) fn read(blend: &Blend) -> u64 {
    sum(blend.operands().map(Operand::bytes)).saturating_mul(u64::from(blend.sweeps()))
}

fn sum(counts: impl Iterator<Item = u64>) -> u64 {
    counts.fold(0, u64::saturating_add)
}

const fn add(sum: &mut u64, count: u64) {
    *sum = sum.saturating_add(count);
}
