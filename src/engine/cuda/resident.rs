//! Tensors that are on a GPU already: the same arithmetic without the way there and back.

#![expect(
    unsafe_code,
    reason = "addresses of GPU memory come from the caller, who vouches for them"
)]

use super::kernels::{BlendAt, Place};
use super::{Cuda, check_terms};
use crate::engine::device::{Health, not_a_float};
use crate::engine::float::Float;
use crate::error::{Error, Result};
use crate::format::Dtype;

/// Elements in GPU memory.
#[derive(Clone, Copy, Debug)]
pub struct ResidentOperand<'a> {
    /// Their type.
    pub dtype: &'a Dtype,
    /// Where the first one lies: a `CUdeviceptr`, what PyTorch calls `data_ptr()`. A multiple of the element's size.
    pub address: u64,
}

/// `out = base + lambda * (w0*x0 + w1*x1 + ...)` over elements in the memory of one GPU, with the arithmetic of
/// [`Blend`](crate::plan::Blend).
#[derive(Clone, Copy, Debug)]
pub struct ResidentBlend<'a> {
    /// Elements of every operand and of the result, each contiguous.
    pub elements: u64,
    /// What the weighted sum is added to.
    pub base: Option<ResidentOperand<'a>>,
    /// The operands and their weights, in the order of summation; 1 to 64.
    pub terms: &'a [(ResidentOperand<'a>, f64)],
    /// Factor of the weighted sum.
    pub lambda: f64,
    /// Where the result goes. It may be an operand of the same width itself, but must not overlap one otherwise.
    pub out: ResidentOperand<'a>,
}

impl Cuda {
    /// Computes on GPU `gpu` with operands and result in its memory, and waits for it. The bytes are those of every
    /// other device.
    ///
    /// A chat vector in place: `base` and `out` are the tensor of C, the terms are `(A, 1.0)` and `(B, -1.0)`.
    ///
    /// # Safety
    ///
    /// Every address must be that of `elements` elements of its dtype in the memory of this GPU, in its primary context,
    /// allocated until the call returns. Work of other streams that writes the operands or touches `out` must
    /// have ended: synchronise them first.
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] for dtypes that are not floats, no terms, addresses that are not aligned and results that overlap an
    /// operand; [`Error::Device`] for a GPU that was not started, too many terms and failures of the driver.
    pub unsafe fn blend_resident(&self, gpu: u32, blend: &ResidentBlend<'_>) -> Result<Health> {
        let out = place(&blend.out)?;
        let base = blend.base.as_ref().map(place).transpose()?;
        let terms: Vec<(Place, f64)> = blend
            .terms
            .iter()
            .map(|(operand, weight)| Ok((place(operand)?, *weight)))
            .collect::<Result<_>>()?;
        if terms.is_empty() {
            return Err(Error::Plan { problem: "a blend has no terms".into() });
        }
        let opened = self.gpus.iter().position(|open| open.gpu.index == gpu);
        let opened = opened.ok_or_else(|| Error::Device {
            device: format!("cuda:{gpu}"),
            reason: "this GPU was not started".into(),
            hint: "name it in `CudaOptions::gpus`".into(),
        })?;
        check_terms(terms.len(), &self.gpus[opened].gpu.to_string())?;
        for operand in base.iter().chain(terms.iter().map(|(place, _)| place)) {
            check_overlap(operand, &out, blend.elements)?;
        }
        if blend.elements == 0 {
            return Ok(Health::default());
        }
        let (elements, lambda) = (blend.elements, blend.lambda);
        let at = BlendAt { elements, out, base, terms: &terms, lambda, health: 0 };
        self.pool.with_lane(Some(opened), |lane| lane.blend_resident(at))
    }
}

fn place(operand: &ResidentOperand<'_>) -> Result<Place> {
    let float = Float::of(operand.dtype).ok_or_else(|| not_a_float(operand.dtype))?;
    if !operand.address.is_multiple_of(float.size() as u64) {
        let problem =
            format!("address {:#x} is not a multiple of {} bytes", operand.address, float.size());
        return Err(Error::Plan { problem });
    }
    Ok(Place { float, address: operand.address })
}

/// A result may replace an operand element by element; anything else would be read after it was written.
fn check_overlap(operand: &Place, out: &Place, elements: u64) -> Result<()> {
    let end = |place: &Place| {
        let bytes = elements.checked_mul(place.float.size() as u64);
        bytes.and_then(|bytes| place.address.checked_add(bytes)).ok_or_else(|| Error::Plan {
            problem: format!("{elements} elements do not fit the address space"),
        })
    };
    let same = operand.address == out.address && operand.float.size() == out.float.size();
    if same || end(operand)? <= out.address || end(out)? <= operand.address {
        return Ok(());
    }
    Err(Error::Plan { problem: "the result overlaps an operand".into() })
}
