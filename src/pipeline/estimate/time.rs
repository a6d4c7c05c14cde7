//! Time from arithmetic: what share of the hardware's peak is reached.

use std::ops::Range;

use super::{Flops, Request, amount};

/// Dense bf16 FLOP/s of an H100 or H200 SXM, by NVIDIA's data sheet.
pub const H100_PEAK: f64 = 989e12;
/// Dense bf16 FLOP/s of an A100, by NVIDIA's data sheet.
pub const A100_PEAK: f64 = 312e12;

/// Shares of a GPU's peak that model FLOPs reach, slow and fast; 40 % is common on one node. The times in the ELO
/// paper (arXiv 2601.03648: 1.5 h for 2.5 B tokens, full fine-tuning 19.8 h for 2.8 B) are 30 % and 26 % of 8 H100.
pub(super) const UTILISATION: Range<f64> = 0.25..0.5;

/// FLOP/s of one core in the built-in backend: about 100e9 was measured over whole steps with AVX-512; half of that
/// where cores share a vector unit or have AVX2.
pub(super) const CORE: Range<f64> = 50e9..110e9;

/// From the fastest to the slowest that is likely. GPUs count model FLOPs, since shares of the peak do; the CPU what
/// is computed.
pub(super) fn seconds(request: &Request<'_>, flops: &Flops) -> Option<Range<f64>> {
    if request.tokens == 0 {
        return None;
    }
    let tokens = amount(request.tokens);
    let (work, slow, fast) = if request.is_builtin() {
        let cores = f64::from(request.threads.max(1));
        (flops.hardware() * tokens, cores * CORE.start, cores * CORE.end)
    } else {
        let peak = request.peak * amount(request.devices());
        (flops.model() * tokens, peak * UTILISATION.start, peak * UTILISATION.end)
    };
    Some(work / fast..work / slow)
}
