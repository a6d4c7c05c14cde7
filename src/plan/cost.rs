//! What carrying out a plan takes.

use serde::Serialize;

use super::{Operand, Part, Plan};

/// Bytes by what happens to them. Every count is exact, but that of bytes read where thresholds are to be found: it is the most.
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
    cost.written = plan.layout().iter().map(|shard| shard.size).sum();
    for tensor in &plan.tensors {
        cost.elements += tensor.shape.elements().unwrap_or(0);
        for part in &tensor.parts {
            let len = tensor.part_len(part);
            match part {
                Part::Copy(_) => {
                    cost.copied += len;
                    cost.read += len;
                }
                Part::Fill { .. } | Part::Random(_) => cost.computed += len,
                Part::Blend(blend) => {
                    cost.computed += len;
                    cost.sweeps = cost.sweeps.max(blend.sweeps());
                    let operands: u64 = blend.operands().map(Operand::bytes).sum();
                    cost.read += operands * u64::from(blend.sweeps());
                }
            }
        }
    }
    cost
}
