//! Tensors in files to f32 and back: exact on the way in, one rounding to nearest even on the way out.

use half::{bf16, f16};

use crate::format::Dtype;

/// Values of little-endian bytes; `None` for a dtype that is not trained in.
pub(super) fn decode(dtype: &Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    Some(match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => return None,
    })
}

/// Little-endian bytes of values; `None` for a dtype that is not trained in.
pub(super) fn encode(dtype: &Dtype, values: &[f32]) -> Option<Vec<u8>> {
    Some(match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_and_ties_go_to_even() {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            let exact = [0.0, -0.0, 1.0, -2.5, 6.5e-5, 240.0];
            let near = decode(&dtype, &encode(&dtype, &exact).unwrap()).unwrap();
            let again = encode(&dtype, &near).unwrap();
            assert_eq!(decode(&dtype, &again).unwrap(), near);
            assert_eq!(near[..4], exact[..4]);
        }
        let tie = |n: f32| decode(&Dtype::BF16, &encode(&Dtype::BF16, &[n]).unwrap()).unwrap()[0];
        assert_eq!([tie(257.0), tie(259.0)], [256.0, 260.0]);
        assert_eq!(decode(&Dtype::I8, &[1]), None);
    }
}
