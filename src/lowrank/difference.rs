//! The difference of two tensors, read in blocks of rows.

use ndarray::Array2;

use crate::checkpoint::{Checkpoint, Stretch, locate};
use crate::engine::{BlendTile, Device, Operand, Simd};
use crate::error::{Error, Result};
use crate::format::{Dtype, Reading, Shape, SourceFile};

/// Bytes of a block, as f32.
pub(super) const BLOCK: u64 = 4 << 20;

/// `a - b` in f32, row by row.
pub(super) struct Difference {
    name: String,
    pub(super) rows: u64,
    pub(super) columns: u64,
    sides: [Side; 2],
    device: Simd,
}

struct Side {
    source: SourceFile,
    start: u64,
    dtype: Dtype,
    width: u64,
}

impl Difference {
    /// Of the tensor `name`; why there is none otherwise.
    pub(super) fn open(name: &str, a: &Checkpoint, b: &Checkpoint) -> Result<Result<Self, String>> {
        let one = |model: &Checkpoint| match found(name, model) {
            Ok((shape, stretch)) => Ok(Ok((shape, Side::open(&stretch)?))),
            Err(why) => Ok(Err(why)),
        };
        let ((shape, a), (other, b)) = match (one(a)?, one(b)?) {
            (Ok(a), Ok(b)) => (a, b),
            (Err(why), _) | (_, Err(why)) => return Ok(Err(why)),
        };
        if shape != other {
            return Ok(Err(format!("tensor `{name}` is {shape} and {other}")));
        }
        let columns = shape.0.last().copied().unwrap_or(1).max(1);
        let rows = shape.elements().unwrap_or(0) / columns;
        let (name, device) = (name.to_owned(), Simd::new());
        Ok(Ok(Self { name, rows, columns, sides: [a, b], device }))
    }

    /// Bytes that one pass reads.
    pub(super) fn bytes(&self) -> u64 {
        self.sides.iter().map(|side| side.width * self.rows * self.columns).sum()
    }

    /// Hands blocks of rows to `take`, in order, with the number of the first row.
    pub(super) fn each_block(
        &self,
        mut take: impl FnMut(usize, Array2<f32>) -> Result<()>,
    ) -> Result<()> {
        let height = (BLOCK / (self.columns * 4)).max(1);
        let columns = index(self.columns);
        let mut row = 0;
        while row < self.rows {
            let end = (row + height).min(self.rows);
            let elements = row * self.columns..end * self.columns;
            let mut scratch = [Vec::new(), Vec::new()];
            let mut tiles = Vec::new();
            for (side, scratch) in self.sides.iter().zip(&mut scratch) {
                let bytes = side.start + elements.start * side.width
                    ..side.start + elements.end * side.width;
                tiles.push((side, side.source.tile(bytes, scratch)?));
            }
            let operand = |i: usize| Operand { dtype: &tiles[i].0.dtype, bytes: &tiles[i].1 };
            let terms = [(operand(0), 1.0), (operand(1), -1.0)];
            let tile = BlendTile {
                base: None,
                terms: &terms,
                lambda: 1.0,
                dtype: &Dtype::F32,
                rules: None,
            };
            let mut bytes = vec![0; index(elements.end - elements.start) * 4];
            let health = self.device.blend(&tile, &mut bytes)?;
            if health.nan + health.infinite > 0 {
                return Err(Error::NonFinite {
                    tensor: self.name.clone(),
                    count: health.nan + health.infinite,
                    dtype: "the difference".into(),
                });
            }
            for (side, _) in &tiles {
                side.source.check_unchanged(Some(&self.name))?;
            }
            let numbers: Vec<f32> = bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            let block = Array2::from_shape_vec((index(end - row), columns), numbers);
            take(index(row), block.map_err(|e| Error::Plan { problem: e.to_string() })?)?;
            row = end;
        }
        Ok(())
    }
}

impl Side {
    fn open(stretch: &Stretch<'_>) -> Result<Self> {
        let source = stretch.shard.source()?.reading(Reading::default());
        let width = stretch.dtype.bytes().unwrap_or(1);
        Ok(Self { source, start: stretch.bytes.start, dtype: stretch.dtype.clone(), width })
    }
}

/// Where a tensor lies, as one run of floats.
fn found<'a>(name: &str, model: &'a Checkpoint) -> Result<(Shape, Stretch<'a>), String> {
    let missing = || format!("tensor `{name}` is missing in `{}`", model.name());
    let (shape, stretches) = locate(model, name).ok_or_else(missing)?;
    let [stretch] = stretches.as_slice() else {
        return Err(format!("tensor `{name}` of `{}` lies in several pieces", model.name()));
    };
    if stretch.recipe.is_some() || !stretch.dtype.is_float() {
        return Err(format!(
            "tensor `{name}` of `{}` is {}, not a float",
            model.name(),
            stretch.dtype
        ));
    }
    Ok((shape, stretch.clone()))
}

/// Sizes of what is in memory fit it.
pub(super) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
