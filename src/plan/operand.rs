//! What values are read from: bytes of a file as they are, codes with their scales, low-rank products on top, rows in another order, means of several.

use serde::{Deserialize, Serialize};

use super::mean::{Mean, cut};
use super::{Gather, Slice};
use crate::format::{Coding, Dtype, Shape};

/// What the values of a base or a term are read from.
///
/// Plain operands are the elements of a slice. Others are made on the host before a device sees them, each to one f32 (f64 if
/// the slice is `F64`), for element `e`:
///
/// 1. the slice's element widened exactly; with [`codes`](Self::codes), `(code - zero) * scale`, the product rounded once to f32;
/// 2. plus `scale * sum(left * right)` of each of the [`adapters`](Self::adapters) in order: in f64, the sum over the rank in
///    order from zero, every product and sum rounded once (products of f32 values are exact in f64);
/// 3. rounded once to f32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operand {
    /// The elements; with `codes`, all codes of the tensor.
    pub slice: Slice,
    /// What makes values of codes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes: Option<Box<Codes>>,
    /// What is added to the values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<LowRank>,
    /// The values are rows of the slice and of others, in another order. Neither codes nor adapters go with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gather: Option<Box<Gather>>,
    /// The values are the mean of the slice and of others. Neither codes, adapters nor gathered rows go with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Box<Mean>>,
}

/// Codes of a quantised tensor, and which of its values are meant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Codes {
    /// How codes and scales lie.
    pub coding: Coding,
    /// Dimensions of the whole tensor's values.
    pub whole: Shape,
    /// All scales of the tensor.
    pub scales: Slice,
    /// All zero points of the tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zeros: Option<Slice>,
    /// The first value that is meant, by its number in the whole tensor in row-major order.
    #[serde(default)]
    pub first: u64,
    /// Dimensions of what is meant.
    pub shape: Shape,
}

/// A low-rank product, `scale * up * down`, of which a run of elements is meant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowRank {
    /// `[rank, in]`.
    pub down: Slice,
    /// `[out, rank]`.
    pub up: Slice,
    /// Factor of the product.
    pub scale: f64,
    /// Whether the values are the product's transpose, `[in, out]`: embeddings, and layers that store their weight so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transposed: bool,
    /// The first element that is meant, by its number in the product in row-major order.
    #[serde(default)]
    pub first: u64,
}

/// The dtype of values that are made.
static MADE: Dtype = Dtype::F32;

impl Operand {
    /// Whether its bytes are its values.
    pub fn is_plain(&self) -> bool {
        let own = self.codes.is_none() && self.adapters.is_empty();
        own && self.gather.is_none() && self.mean.is_none()
    }

    /// Dimensions of its values.
    pub fn shape(&self) -> &Shape {
        match (&self.gather, &self.codes) {
            (Some(gather), _) => &gather.shape,
            (None, Some(codes)) => &codes.shape,
            (None, None) => &self.slice.shape,
        }
    }

    /// Number of values; `None` if that does not fit 64 bits.
    pub fn elements(&self) -> Option<u64> {
        self.shape().elements()
    }

    /// The dtype that a device sees.
    pub fn dtype(&self) -> &Dtype {
        if let Some(gather) = &self.gather {
            return gather.dtype(&self.slice.dtype);
        }
        if let Some(mean) = &self.mean {
            return mean.dtype(&self.slice.dtype);
        }
        if self.is_plain() || self.slice.dtype == Dtype::F64 { &self.slice.dtype } else { &MADE }
    }

    /// Everything it is made of.
    pub fn slices(&self) -> impl Iterator<Item = &Slice> {
        let codes = self.codes.as_deref();
        let beside = codes.into_iter().flat_map(|c| std::iter::once(&c.scales).chain(&c.zeros));
        let adapters = self.adapters.iter().flat_map(|a| [&a.down, &a.up]);
        let further = self.gather.iter().flat_map(|gather| &gather.further);
        let meant = self.mean.iter().flat_map(|mean| mean.slices());
        std::iter::once(&self.slice).chain(beside).chain(adapters).chain(further).chain(meant)
    }

    /// Bytes that are read for it, of codes the share of its values.
    pub fn bytes(&self) -> u64 {
        if let Some(gather) = &self.gather {
            return gather.bytes(&self.slice);
        }
        let len = |slice: &Slice| slice.bytes.end.saturating_sub(slice.bytes.start);
        let own = match &self.codes {
            Some(codes) => {
                let stored =
                    std::iter::once(&self.slice).chain([&codes.scales]).chain(&codes.zeros);
                let stored: u128 = stored.map(|slice| u128::from(len(slice))).sum();
                let of = |shape: &Shape| u128::from(shape.elements().unwrap_or(0));
                u64::try_from(stored.saturating_mul(of(&codes.shape)) / of(&codes.whole).max(1))
                    .unwrap_or(u64::MAX)
            }
            None => len(&self.slice),
        };
        let factors = self.adapters.iter().flat_map(|a| [len(&a.down), len(&a.up)]);
        let meant = self.mean.iter().flat_map(|mean| mean.slices().map(len));
        factors.chain(meant).fold(own, u64::saturating_add)
    }

    /// Elements `from..to` of its values, as a vector; none of gathered ones.
    #[must_use]
    pub fn cut(&self, from: u64, to: u64) -> Option<Self> {
        if self.gather.is_some() {
            return None;
        }
        let mut part = self.clone();
        for adapter in &mut part.adapters {
            adapter.first = adapter.first.checked_add(from)?;
        }
        if let Some(codes) = &mut part.codes {
            codes.first = codes.first.checked_add(from)?;
            codes.shape = Shape(vec![to.checked_sub(from)?]);
        } else {
            part.slice = cut(&self.slice, from, to)?;
        }
        if let Some(mean) = &mut part.mean {
            **mean = mean.cut(from, to)?;
        }
        Some(part)
    }

    /// Rows `from..to` of dimension 0.
    #[must_use]
    pub fn rows(&self, from: u64, to: u64) -> Option<Self> {
        let row = self.shape().with_rows(1).elements()?;
        let mut rows = self.cut(from.checked_mul(row)?, to.checked_mul(row)?)?;
        let shape = self.shape().with_rows(to - from);
        match &mut rows.codes {
            Some(codes) => codes.shape = shape,
            None => rows.slice.shape = shape,
        }
        Some(rows)
    }

    /// What a plan from a file may have wrong, slices by themselves left out.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(gather) = &self.gather {
            if self.codes.is_some() || !self.adapters.is_empty() || self.mean.is_some() {
                return Err("gathered rows of codes or low-rank products".into());
            }
            return gather.check(&self.slice);
        }
        if let Some(mean) = &self.mean {
            if self.codes.is_some() || !self.adapters.is_empty() || self.gather.is_some() {
                return Err("a mean of codes, low-rank products or gathered rows".into());
            }
            return mean.check(&self.slice);
        }
        let count = self.elements().ok_or("its size overflows 64 bits")?;
        if let Some(codes) = &self.codes {
            let (stored, scales, zeros) = codes.coding.shapes(&codes.whole)?;
            let zero = codes.zeros.as_ref();
            let found = [Some(&self.slice), Some(&codes.scales), zero];
            for (slice, shape) in found.into_iter().zip([stored, scales, zeros]) {
                if let Some(odd) = slice.filter(|slice| slice.shape.elements() != shape.elements())
                {
                    return Err(format!(
                        "codes or scales of shape {} instead of {shape}",
                        odd.shape
                    ));
                }
            }
            let (dtype, scales) = (&self.slice.dtype, &codes.scales.dtype);
            if !codes.coding.takes(dtype, scales, zero.map(|z| &z.dtype)) {
                return Err(format!(
                    "{dtype} codes with {scales} scales are not {:?}",
                    codes.coding
                ));
            }
            inside(codes.first, count, codes.whole.elements())?;
        }
        let dtype = &self.slice.dtype;
        if !self.adapters.is_empty() && self.codes.is_none() && !dtype.is_float() {
            return Err(format!("a product added to {dtype}, which cannot be computed on"));
        }
        self.adapters.iter().try_for_each(|adapter| adapter.check(count))?;
        let size = |a: &LowRank| (a.sides().map(|(_, rows, columns)| (rows, columns)), a.first);
        if self.adapters.windows(2).any(|pair| size(&pair[0]) != size(&pair[1])) {
            return Err("products of different sizes on one operand".into());
        }
        Ok(())
    }
}

impl LowRank {
    /// Rank, rows and columns of the values it makes; `None` if its factors do not fit together.
    pub fn sides(&self) -> Option<(u64, u64, u64)> {
        let (&[rank, inner], &[outer, same]) = (&self.down.shape.0[..], &self.up.shape.0[..])
        else {
            return None;
        };
        let (rows, columns) = if self.transposed { (inner, outer) } else { (outer, inner) };
        (rank == same).then_some((rank, rows, columns))
    }

    fn check(&self, count: u64) -> Result<(), String> {
        let (down, up) = (&self.down, &self.up);
        let Some((rank, rows, columns)) = self.sides() else {
            return Err(format!("a product of shapes {} and {}", up.shape, down.shape));
        };
        if rank == 0 {
            return Err("a product of rank 0".into());
        }
        if let Some(odd) = [down, up].into_iter().find(|slice| !slice.dtype.is_float()) {
            return Err(format!("{} cannot be computed on", odd.dtype));
        }
        if !self.scale.is_finite() {
            return Err(format!("a product times {}", self.scale));
        }
        inside(self.first, count, rows.checked_mul(columns))
    }
}

fn inside(first: u64, count: u64, all: Option<u64>) -> Result<(), String> {
    let all = all.ok_or("its size overflows 64 bits")?;
    match first.checked_add(count) {
        Some(end) if end <= all => Ok(()),
        _ => Err(format!("{count} values from number {first} are not among {all}")),
    }
}

impl From<Slice> for Operand {
    fn from(slice: Slice) -> Self {
        Self { slice, codes: None, adapters: Vec::new(), gather: None, mean: None }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SourceId;
    use super::*;

    fn slice(dtype: Dtype, dims: &[u64]) -> Slice {
        let shape = Shape(dims.to_vec());
        let bytes = 0..shape.byte_len(&dtype).unwrap_or(0);
        Slice { source: SourceId(0), bytes, dtype, shape }
    }

    fn adapted() -> Operand {
        let (down, up) = (slice(Dtype::BF16, &[2, 6]), slice(Dtype::BF16, &[4, 2]));
        let product = LowRank { down, up, scale: 0.5, transposed: false, first: 0 };
        Operand { adapters: vec![product], ..slice(Dtype::BF16, &[4, 6]).into() }
    }

    fn coded() -> Operand {
        let (whole, shape) = (Shape(vec![4, 6]), Shape(vec![4, 6]));
        let scales = slice(Dtype::F32, &[2, 2]);
        let coding = Coding::Blocks { rows: 2, columns: 4 };
        let codes = Codes { coding, whole, scales, zeros: None, first: 0, shape };
        Operand { codes: Some(Box::new(codes)), ..slice(Dtype::F8E4M3, &[4, 6]).into() }
    }

    #[test]
    fn what_devices_see_and_what_is_read() {
        let plain: Operand = slice(Dtype::BF16, &[4, 6]).into();
        assert!(plain.is_plain() && !adapted().is_plain() && !coded().is_plain());
        assert_eq!(*plain.dtype(), Dtype::BF16);
        assert_eq!((adapted().dtype(), coded().dtype()), (&Dtype::F32, &Dtype::F32));
        let wide = Operand { slice: slice(Dtype::F64, &[4, 6]), ..adapted() };
        assert_eq!(*wide.dtype(), Dtype::F64);
        assert_eq!(
            (plain.bytes(), adapted().bytes(), coded().bytes()),
            (48, 48 + 24 + 16, 24 + 16)
        );
        assert_eq!(adapted().slices().count(), 3);
        // Half of the values is half of the codes and scales.
        assert_eq!(coded().cut(0, 12).map(|half| half.bytes()), Some(20));
    }

    #[test]
    fn cuts_count_in_the_whole() {
        for operand in [adapted(), coded()] {
            let rows = operand.rows(1, 3).unwrap();
            assert_eq!(*rows.shape(), Shape(vec![2, 6]));
            let cut = rows.cut(2, 5).unwrap();
            assert_eq!(cut.elements(), Some(3));
            let first = cut.codes.as_ref().map_or_else(|| cut.adapters[0].first, |c| c.first);
            assert_eq!(first, 8);
            assert_eq!(cut.check(), Ok(()));
        }
        assert_eq!(adapted().cut(8, 11).unwrap().slice.bytes, 16..22);
    }

    fn meant() -> Operand {
        let (importances, further) =
            (vec![slice(Dtype::F32, &[24]); 2], vec![slice(Dtype::F16, &[4, 6])]);
        let mean = Mean { weights: vec![0.5, 1.5], importances, further };
        Operand { mean: Some(Box::new(mean)), ..slice(Dtype::BF16, &[4, 6]).into() }
    }

    #[test]
    fn means_are_of_all_their_tensors() {
        let whole = meant();
        assert_eq!(whole.check(), Ok(()));
        assert!(!whole.is_plain());
        assert_eq!((whole.dtype(), whole.elements()), (&Dtype::F32, Some(24)));
        assert_eq!((whole.slices().count(), whole.bytes()), (4, 48 + 48 + 96 + 96));
        let rows = whole.rows(1, 3).unwrap();
        assert_eq!((rows.check(), rows.shape()), (Ok(()), &Shape(vec![2, 6])));
        let ranges: Vec<_> = rows.slices().map(|slice| slice.bytes.clone()).collect();
        assert_eq!(ranges, [12..36, 12..36, 24..72, 24..72]);
        let json = serde_json::to_string(&whole).unwrap();
        assert_eq!(serde_json::from_str::<Operand>(&json).unwrap(), whole);
        let wrong = |words: &str, change: &dyn Fn(&mut Mean)| {
            let mut operand = meant();
            operand.mean.iter_mut().for_each(|mean| change(mean));
            let told = operand.check().unwrap_err();
            assert!(told.contains(words), "{told}");
        };
        wrong("with 3 weights", &|mean| mean.weights.push(1.0));
        wrong("and 1 importances", &|mean| mean.importances.truncate(1));
        wrong("with weights [-1.0, 1.5]", &|mean| mean.weights[0] = -1.0);
        wrong("with weights [0.0, 0.0]", &|mean| mean.weights = vec![0.0; 2]);
        wrong("a mean of I8", &|mean| mean.further[0].dtype = Dtype::I8);
        wrong("a mean of shapes", &|mean| mean.importances[1].shape = Shape(vec![23]));
        let both = Operand { adapters: adapted().adapters, ..meant() };
        assert!(both.check().unwrap_err().contains("a mean of codes"));
    }

    #[test]
    fn what_does_not_fit_is_found() {
        assert_eq!(adapted().check(), Ok(()));
        assert_eq!(coded().check(), Ok(()));
        let broken = |words: &str, change: &dyn Fn(&mut Operand)| {
            for mut operand in [adapted(), coded()] {
                change(&mut operand);
                if let Err(why) = operand.check() {
                    assert!(why.contains(words), "{why}");
                    return;
                }
            }
            panic!("{words}: nothing was found");
        };
        let product = |change: fn(&mut LowRank)| {
            move |operand: &mut Operand| operand.adapters.iter_mut().for_each(change)
        };
        broken("not among 24", &product(|p| p.first = 1));
        broken("not among 24", &product(|p| p.first = u64::MAX));
        broken("a product of shapes", &product(|p| p.up.shape = Shape(vec![4, 3])));
        broken("a product of shapes", &product(|p| p.down.shape = Shape(vec![12])));
        broken(
            "rank 0",
            &product(|p| {
                p.down.shape = Shape(vec![0, 6]);
                p.up.shape = Shape(vec![4, 0]);
            }),
        );
        broken("added to I16", &|operand| operand.slice.dtype = Dtype::I16);
        broken("times inf", &product(|p| p.scale = f64::INFINITY));
        broken("I8 cannot be computed on", &product(|p| p.up.dtype = Dtype::I8));
        broken("different sizes", &|operand| {
            let mut other = operand.adapters.clone();
            for product in &mut other {
                product.up.shape = Shape(vec![5, 2]);
            }
            operand.adapters.extend(other);
        });
        let codes = |change: fn(&mut Codes)| {
            move |operand: &mut Operand| operand.codes.iter_mut().for_each(|c| change(c))
        };
        broken("not among 24", &codes(|c| c.first = 1));
        broken(
            "blocks of no values",
            &codes(|c| c.coding = Coding::Blocks { rows: 0, columns: 1 }),
        );
        broken("codes or scales of shape", &codes(|c| c.scales.shape = Shape(vec![2, 3])));
        broken("codes or scales of shape", &codes(|c| c.whole = Shape(vec![40, 6])));
        broken("are no matrices", &codes(|c| c.whole = Shape(vec![24])));
        broken("are not Blocks", &codes(|c| c.scales.dtype = Dtype::I64));
        broken("overflows", &codes(|c| c.shape = Shape(vec![1 << 40, 1 << 40])));
    }
}
