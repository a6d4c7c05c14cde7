//! The distance between two tensors, tile by tile.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::diff::Change;
use super::scan::{ReadObserver, advance};
use crate::checkpoint::ShardFile;
use crate::engine::Operand;
use crate::engine::statistics::{Comparison, compare};
use crate::error::Result;
use crate::format::{Dtype, Reading, SourceFile};

/// Elements compared at a time. Fixed, and merged in order: sums must not depend on threads.
const TILE_ELEMENTS: u64 = 1 << 20;

/// Open shards, each opened once however many tensors are read from it.
pub(super) struct Sources {
    reading: Reading,
    open: BTreeMap<PathBuf, SourceFile>,
}

impl Sources {
    pub(super) fn new(reading: Reading) -> Self {
        Self { reading, open: BTreeMap::new() }
    }

    pub(super) fn open(&mut self, shard: &ShardFile) -> Result<()> {
        if !self.open.contains_key(&shard.path) {
            let source = shard.source()?.reading(self.reading);
            self.open.insert(shard.path.clone(), source);
        }
        Ok(())
    }

    pub(super) fn get(&self, shard: &ShardFile) -> Option<&SourceFile> {
        self.open.get::<Path>(&shard.path)
    }
}

/// A tensor's bytes in one of the two checkpoints.
pub(super) struct Side<'a> {
    pub(super) source: &'a SourceFile,
    pub(super) dtype: &'a Dtype,
    pub(super) bytes: Range<u64>,
}

impl Side<'_> {
    /// Bytes of one element; of packed dtypes bytes are compared.
    fn width(&self) -> u64 {
        self.dtype.bytes().unwrap_or(1)
    }

    fn elements(&self) -> u64 {
        (self.bytes.end - self.bytes.start) / self.width()
    }

    fn tile(&self, number: u64) -> Range<u64> {
        let len = TILE_ELEMENTS * self.width();
        let start = self.bytes.start + number * len;
        start..(start + len).min(self.bytes.end)
    }
}

/// Two tensors with equally many elements: both floats, or of one dtype.
pub(super) struct Pair<'a> {
    pub(super) name: &'a str,
    pub(super) a: Side<'a>,
    pub(super) b: Side<'a>,
}

/// What comparing a pair gave.
pub(super) enum Distance {
    /// The same bytes of the same dtype.
    SameBytes,
    /// Floats.
    Measured(Comparison),
    /// A dtype without arithmetic: elements compared and equal ones only.
    Counted(Comparison),
}

impl Distance {
    pub(super) fn is_same_bytes(&self) -> bool {
        matches!(self, Self::SameBytes)
    }

    pub(super) fn change(&self) -> Option<Change> {
        match self {
            Self::SameBytes => None,
            Self::Measured(sums) => Some(Change {
                elements: sums.elements,
                equal: sums.equal,
                relative_norm: sums.relative_norm(),
                cosine: sums.cosine(),
                largest: sums.largest_difference,
                non_finite: sums.non_finite,
            }),
            Self::Counted(sums) => Some(Change {
                elements: sums.elements,
                equal: sums.equal,
                relative_norm: f64::NAN,
                cosine: f64::NAN,
                largest: f64::NAN,
                non_finite: 0,
            }),
        }
    }
}

impl Distance {
    /// Both together. The sides of one pair are all of one kind.
    pub(super) fn merge(self, next: Self) -> Self {
        match (self, next) {
            (Self::Measured(a), Self::Measured(b)) => Self::Measured(a.merge(b)),
            (Self::Counted(a), Self::Counted(b)) => Self::Counted(a.merge(b)),
            (Self::SameBytes, found) | (found, _) => found,
        }
    }
}

/// Where tiles are read to when they are not mapped.
#[derive(Default)]
struct Scratch {
    a: Vec<u8>,
    b: Vec<u8>,
}

impl Pair<'_> {
    pub(super) fn bytes(&self) -> u64 {
        let len = |side: &Side| side.bytes.end - side.bytes.start;
        len(&self.a) + len(&self.b)
    }

    pub(super) fn measure(&self, observer: &dyn ReadObserver) -> Result<Distance> {
        let tiles = 0..self.a.elements().div_ceil(TILE_ELEMENTS);
        let first: Vec<Option<Distance>> = tiles
            .into_par_iter()
            .map_init(Scratch::default, |scratch, tile| {
                let found = self.tile(tile, scratch, false)?;
                let len = |side: &Side| side.tile(tile).end - side.tile(tile).start;
                advance(observer, len(&self.a) + len(&self.b))?;
                Ok(found)
            })
            .collect::<Result<_>>()?;
        if first.iter().all(Option::is_none) && self.a.dtype == self.b.dtype {
            return Ok(Distance::SameBytes);
        }
        // Equal tiles of a tensor that changed elsewhere still count towards its norms.
        let all: Vec<Distance> = (0_u64..)
            .zip(first)
            .collect::<Vec<_>>()
            .into_par_iter()
            .map_init(Scratch::default, |scratch, (tile, found)| match found {
                Some(found) => Ok(found),
                None => Ok(self.tile(tile, scratch, true)?.unwrap_or(Distance::SameBytes)),
            })
            .collect::<Result<_>>()?;
        Ok(all.into_iter().reduce(Distance::merge).unwrap_or(Distance::SameBytes))
    }

    /// One tile; `None` for equal bytes, unless their sums are wanted too.
    fn tile(&self, number: u64, scratch: &mut Scratch, always: bool) -> Result<Option<Distance>> {
        let found = {
            let a = self.a.source.tile(self.a.tile(number), &mut scratch.a)?;
            let b = self.b.source.tile(self.b.tile(number), &mut scratch.b)?;
            let same = self.a.dtype == self.b.dtype && *a == *b;
            (always || !same).then(|| self.compare(&a, &b))
        };
        self.a.source.check_unchanged(Some(self.name))?;
        self.b.source.check_unchanged(Some(self.name))?;
        Ok(found)
    }

    fn compare(&self, a: &[u8], b: &[u8]) -> Distance {
        let (a, b) =
            (Operand { dtype: self.a.dtype, bytes: a }, Operand { dtype: self.b.dtype, bytes: b });
        let found = compare(a, b);
        if self.a.dtype.is_float() { Distance::Measured(found) } else { Distance::Counted(found) }
    }
}
