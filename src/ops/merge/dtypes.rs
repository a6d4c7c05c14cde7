//! The dtype a tensor is computed in and the one it is written in.

use crate::format::Dtype;

/// The dtype of an output tensor, or why its inputs cannot be brought into one.
///
/// mergekit casts inputs to `dtype` before anything else. That changes nothing where `dtype` holds every input exactly;
/// where it does not, only values that are copied are cast.
pub(super) fn output_dtype(
    inputs: &[&Dtype],
    dtype: Option<&Dtype>,
    out_dtype: Option<&Dtype>,
    computes: bool,
) -> Result<Dtype, String> {
    let common = match dtype {
        Some(dtype) => dtype.clone(),
        None => promoted(inputs)?,
    };
    let out = out_dtype.unwrap_or(&common).clone();
    if let Some(input) = inputs.iter().find(|input| !holds(&common, input)) {
        if computes {
            return Err(format!(
                "`dtype` {common} loses digits of {input} inputs before the arithmetic, which is not supported yet: leave it out and give `out_dtype`"
            ));
        }
        if out != common {
            return Err(format!(
                "casting {input} to `dtype` {common} and then to {out} rounds twice, which is not supported yet"
            ));
        }
    }
    if computes && common == Dtype::F64 && !inputs.contains(&&Dtype::F64) && out != Dtype::F64 {
        return Err(format!(
            "float64 arithmetic on {} inputs for {out} output is not supported yet: use `dtype: float32`",
            inputs.first().map_or("no", |input| input.as_str())
        ));
    }
    Ok(out)
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
    fn casting_before_arithmetic_must_lose_nothing() {
        let (bf16, f16, f32, f64) = (&Dtype::BF16, &Dtype::F16, &Dtype::F32, &Dtype::F64);
        let out =
            |inputs: &[&Dtype], dtype, out, computes| output_dtype(inputs, dtype, out, computes);
        assert_eq!(out(&[bf16, bf16], None, None, true), Ok(Dtype::BF16));
        assert_eq!(out(&[bf16, f16], None, None, true), Ok(Dtype::F32));
        assert_eq!(out(&[bf16, f64], None, Some(bf16), true), Ok(Dtype::BF16));
        assert_eq!(out(&[bf16], Some(f32), Some(bf16), true), Ok(Dtype::BF16));
        assert_eq!(out(&[bf16], Some(f64), None, true), Ok(Dtype::F64));
        assert_eq!(out(&[f32], Some(bf16), None, false), Ok(Dtype::BF16));
        assert!(out(&[f32], Some(bf16), None, true).is_err());
        assert!(out(&[f32], Some(bf16), Some(f32), false).is_err());
        assert!(out(&[bf16], Some(f16), None, true).is_err());
        assert!(out(&[bf16], Some(f64), Some(f32), true).is_err());
        assert!(out(&[bf16, &Dtype::F8E4M3], None, None, true).is_err());
        assert_eq!(out(&[bf16, &Dtype::F8E4M3], Some(bf16), None, true), Ok(Dtype::BF16));
    }
}
