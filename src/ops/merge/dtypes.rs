//! The dtype a tensor is computed in and the one it is written in.

use crate::format::Dtype;

/// The dtype of an output tensor and whether mergekit would have rounded some input to `dtype` before anything else, or why its
/// inputs cannot be brought into one.
///
/// Inputs stay what they are: `dtype` is that of the result, unless `out_dtype` is.
pub(super) fn output_dtype(
    inputs: &[&Dtype],
    dtype: Option<&Dtype>,
    out_dtype: Option<&Dtype>,
    computes: bool,
) -> Result<(Dtype, bool), String> {
    let common = match dtype {
        Some(dtype) => dtype.clone(),
        None => promoted(inputs)?,
    };
    let out = out_dtype.unwrap_or(&common).clone();
    if computes && common == Dtype::F64 && !inputs.contains(&&Dtype::F64) && out != Dtype::F64 {
        return Err(format!(
            "float64 arithmetic on {} inputs for {out} output is not supported yet: use `dtype: float32`",
            inputs.first().map_or("no", |input| input.as_str())
        ));
    }
    let rounded = inputs.iter().any(|input| !holds(&common, input));
    Ok((out.clone(), rounded && (computes || out != common)))
}

/// The dtype that mergekit computes in, and the one that it writes: inputs are cast to the first, whatever they lose.
/// Some methods leave it for `wider`.
pub(super) fn chain_dtypes(
    inputs: &[&Dtype],
    dtype: Option<&Dtype>,
    out_dtype: Option<&Dtype>,
    wider: bool,
) -> Result<(Dtype, Dtype), String> {
    let common = match dtype {
        Some(dtype) => dtype.clone(),
        None => promoted(inputs)?,
    };
    let made = if wider && common != Dtype::F64 { Dtype::F32 } else { common.clone() };
    Ok((common, out_dtype.cloned().unwrap_or(made)))
}

/// The smallest dtype that holds all of them, as PyTorch promotes.
fn promoted(inputs: &[&Dtype]) -> Result<Dtype, String> {
    let Some(first) = inputs.first() else {
        return Ok(Dtype::F32);
    };
    if inputs.iter().all(|input| input == first) {
        return Ok((*first).clone());
    }
    if inputs.iter().any(|input| input.is_f8()) {
        let names: Vec<&str> = inputs.iter().map(|input| input.as_str()).collect();
        return Err(format!("no common dtype for {}: `dtype` must say which", names.join(", ")));
    }
    Ok(if inputs.contains(&&Dtype::F64) { Dtype::F64 } else { Dtype::F32 })
}

/// Whether every value of `narrow` is one of `wide`.
fn holds(wide: &Dtype, narrow: &Dtype) -> bool {
    match wide {
        _ if wide == narrow => true,
        Dtype::F64 => narrow.is_float(),
        Dtype::F32 => narrow.is_float() && *narrow != Dtype::F64,
        Dtype::F16 | Dtype::BF16 => narrow.is_f8(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_has_the_dtype_that_is_asked_for() {
        let (bf16, f16, f32, f64) = (&Dtype::BF16, &Dtype::F16, &Dtype::F32, &Dtype::F64);
        let out = |inputs: &[&Dtype], dtype, out, computes| {
            output_dtype(inputs, dtype, out, computes).ok()
        };
        assert_eq!(out(&[bf16, bf16], None, None, true), Some((Dtype::BF16, false)));
        assert_eq!(out(&[bf16, f16], None, None, true), Some((Dtype::F32, false)));
        assert_eq!(out(&[bf16, f64], None, Some(bf16), true), Some((Dtype::BF16, false)));
        assert_eq!(out(&[bf16], Some(f32), Some(bf16), true), Some((Dtype::BF16, false)));
        assert_eq!(out(&[bf16], Some(f64), None, true), Some((Dtype::F64, false)));
        assert_eq!(out(&[bf16], Some(f64), Some(f32), true), None);
        assert_eq!(out(&[bf16, &Dtype::F8E4M3], None, None, true), None);
        let mixed: &[&Dtype] = &[bf16, &Dtype::F8E4M3];
        assert_eq!(out(mixed, Some(bf16), None, true), Some((Dtype::BF16, false)));
    }

    #[test]
    fn inputs_that_mergekit_rounds_first_are_told() {
        let (bf16, f16, f32) = (&Dtype::BF16, &Dtype::F16, &Dtype::F32);
        let told = |inputs: &[&Dtype], dtype, out, computes| {
            output_dtype(inputs, Some(dtype), out, computes).unwrap()
        };
        assert_eq!(told(&[f16, f16], bf16, None, true), (Dtype::BF16, true));
        assert_eq!(told(&[bf16], f16, None, true), (Dtype::F16, true));
        assert_eq!(told(&[f32], bf16, Some(f32), false), (Dtype::F32, true));
        // A copy is rounded once in any case.
        assert_eq!(told(&[f32], bf16, None, false), (Dtype::BF16, false));
    }
}
