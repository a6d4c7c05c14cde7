//! Streaming through tensor data: threads, progress, and files read once in tiles of fixed size.

use std::num::NonZeroUsize;
use std::ops::Range;

use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::engine::Operand;
use crate::engine::statistics::non_finite;
use crate::error::{Error, Result};
use crate::format::{Digest, DigestAlgorithm, Dtype, SourceFile};

/// Bytes read at a time. A power of two, so that tiles are subtrees of BLAKE3; fixed, so that results
/// depend neither on the number of threads nor on the order of work.
pub(super) const TILE: u64 = 4 << 20;
/// Elements that begin in a tile end at most so many bytes later.
const WIDEST_ELEMENT: u64 = 8;

/// Watches a long reading. Any `Fn(u64) + Sync` is one, called with the bytes read since its last call.
pub trait ReadObserver: Sync {
    /// Told once, before the first byte: how many bytes there are to read.
    fn begin(&self, _total_bytes: u64) {}

    /// Told after each tile, from any thread.
    fn advance(&self, bytes: u64);

    /// Whether to stop with [`Error::Interrupted`]. Asked after each tile.
    fn is_interrupted(&self) -> bool {
        false
    }
}

impl<F: Fn(u64) + Sync> ReadObserver for F {
    fn advance(&self, bytes: u64) {
        self(bytes);
    }
}

/// Reports a tile, and stops if it was told to.
pub(super) fn advance(observer: &dyn ReadObserver, bytes: u64) -> Result<()> {
    observer.advance(bytes);
    if observer.is_interrupted() {
        return Err(Error::Interrupted { resumable: false });
    }
    Ok(())
}

/// Runs `work` on so many threads; `None` is one for each core.
pub(super) fn on_threads<T: Send>(
    threads: Option<NonZeroUsize>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let Some(threads) = threads else {
        return work();
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get());
    let pool = pool.build().map_err(|e| Error::Io {
        action: "start threads for",
        path: "reading".into(),
        source: std::io::Error::other(e),
    })?;
    pool.install(work)
}

/// A tensor to look for NaN and infinities in.
pub(super) struct Counted<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: &'a Dtype,
    /// Its bytes in the file.
    pub(super) bytes: Range<u64>,
}

/// One pass over a file, for its digest, its non-finite values, or both.
pub(super) struct FileScan<'a> {
    pub(super) source: SourceFile,
    /// Float tensors, by position.
    pub(super) tensors: Vec<Counted<'a>>,
    pub(super) digest: Option<DigestAlgorithm>,
}

/// What a pass over a file found.
pub(super) struct FileFindings {
    /// NaN and infinities of each tensor scanned.
    pub(super) non_finite: Vec<(u64, u64)>,
    pub(super) digest: Option<Digest>,
}

/// What one tile says: tensors it holds elements of, with their counts, and its part of the BLAKE3 tree.
struct TileFindings {
    counts: Vec<(usize, u64, u64)>,
    subtree: Option<ChainingValue>,
}

impl FileScan<'_> {
    /// Reads the file once. BLAKE3 works on tiles in parallel; SHA-256 is a chain, one tile after another.
    pub(super) fn run(&self, observer: &dyn ReadObserver) -> Result<FileFindings> {
        let tiles = self.source.identity().size.div_ceil(TILE);
        let mut chain = Sha256::new();
        let found: Vec<TileFindings> = if self.digest == Some(DigestAlgorithm::Sha256) {
            let mut scratch = Vec::new();
            (0..tiles)
                .map(|tile| self.tile(tile, &mut scratch, Some(&mut chain), observer))
                .collect::<Result<_>>()?
        } else {
            (0..tiles)
                .into_par_iter()
                .map_init(Vec::new, |scratch, tile| self.tile(tile, scratch, None, observer))
                .collect::<Result<_>>()?
        };
        let hex = match self.digest {
            None => None,
            Some(DigestAlgorithm::Blake3) => Some(Self::root(&found)),
            Some(DigestAlgorithm::Sha256) => Some(hex(&chain.finalize())),
        };
        let mut non_finite = vec![(0, 0); self.tensors.len()];
        for (tensor, nan, infinite) in found.iter().flat_map(|tile| &tile.counts) {
            non_finite[*tensor].0 += nan;
            non_finite[*tensor].1 += infinite;
        }
        let digest = self.digest.zip(hex);
        Ok(FileFindings {
            non_finite,
            digest: digest.map(|(algorithm, hex)| Digest { algorithm, hex }),
        })
    }

    fn tile(
        &self,
        number: u64,
        scratch: &mut Vec<u8>,
        chain: Option<&mut Sha256>,
        observer: &dyn ReadObserver,
    ) -> Result<TileFindings> {
        let size = self.source.identity().size;
        let here = number * TILE..((number + 1) * TILE).min(size);
        let padded = here.start..(here.end + WIDEST_ELEMENT).min(size);
        let (counts, subtree) = {
            let bytes = self.source.tile(padded, scratch)?;
            let own = &bytes[..to_usize(here.end - here.start)];
            if let Some(chain) = chain {
                chain.update(own);
            }
            (self.count(&here, &bytes), self.subtree(here.start, own))
        };
        self.source.check_unchanged(None)?;
        advance(observer, here.end - here.start)?;
        Ok(TileFindings { counts, subtree })
    }

    /// Counts the elements that begin in a tile. `bytes` starts where the tile does and reaches past its end.
    fn count(&self, here: &Range<u64>, bytes: &[u8]) -> Vec<(usize, u64, u64)> {
        let first = self.tensors.partition_point(|t| t.bytes.end <= here.start);
        let mut counts = Vec::new();
        for (index, tensor) in self.tensors.iter().enumerate().skip(first) {
            if tensor.bytes.start >= here.end {
                break;
            }
            let width = tensor.dtype.bytes().unwrap_or(1);
            // Boundaries inside the tensor, rounded up to whole elements from its own start.
            let from = here.start.saturating_sub(tensor.bytes.start);
            let to = here.end.min(tensor.bytes.end) - tensor.bytes.start;
            let from = tensor.bytes.start + from.next_multiple_of(width);
            let to = tensor.bytes.start + to.next_multiple_of(width);
            let slice = &bytes[to_usize(from - here.start)..to_usize(to - here.start)];
            let (nan, infinite) = non_finite(Operand { dtype: tensor.dtype, bytes: slice });
            if nan + infinite > 0 {
                counts.push((index, nan, infinite));
            }
        }
        counts
    }

    /// The BLAKE3 digest of the file from those of its tiles.
    fn root(found: &[TileFindings]) -> String {
        let subtrees: Vec<ChainingValue> = found.iter().filter_map(|tile| tile.subtree).collect();
        match subtrees.as_slice() {
            [] => blake3::hash(&[]).to_hex().to_string(),
            [whole] => hex(whole),
            several => {
                let (left, right) = several.split_at(left_part(several.len()));
                let root = hazmat::merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash);
                root.to_hex().to_string()
            }
        }
    }

    /// A tile's place in the BLAKE3 tree: a subtree, or the root where it is the whole file.
    fn subtree(&self, start: u64, bytes: &[u8]) -> Option<ChainingValue> {
        if self.digest != Some(DigestAlgorithm::Blake3) {
            return None;
        }
        if self.source.identity().size <= TILE {
            return Some(*blake3::hash(bytes).as_bytes());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(start).update(bytes);
        Some(hasher.finalize_non_root())
    }
}

fn subtree(tiles: &[ChainingValue]) -> ChainingValue {
    if let [one] = tiles {
        return *one;
    }
    let (left, right) = tiles.split_at(left_part(tiles.len()));
    hazmat::merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// BLAKE3's tree: the left side is the largest power of two that leaves something for the right.
fn left_part(tiles: usize) -> usize {
    tiles.next_power_of_two() / 2
}

fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n)]);
    let pairs = bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]);
    pairs.collect()
}

/// Tiles fit memory; offsets index it only on 64-bit systems, which is all this crate supports.
pub(super) fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::format::Reading;

    fn scan(bytes: &[u8], digest: DigestAlgorithm, reading: Reading) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let scan = FileScan {
            source: SourceFile::open(file.path()).unwrap().reading(reading),
            tensors: Vec::new(),
            digest: Some(digest),
        };
        let read = AtomicU64::new(0);
        let observer = |bytes: u64| {
            read.fetch_add(bytes, Ordering::Relaxed);
        };
        let found = scan.run(&observer).unwrap();
        assert_eq!(read.into_inner(), bytes.len() as u64);
        found.digest.unwrap().hex
    }

    #[test]
    fn digests_by_tiles_are_the_files_digests() {
        let tile = to_usize(TILE);
        for len in [0, 1, tile - 1, tile, tile + 1, 2 * tile, 2 * tile + 5, 5 * tile + 1] {
            let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
            let expected = blake3::hash(&bytes).to_hex().to_string();
            assert_eq!(scan(&bytes, DigestAlgorithm::Blake3, Reading::Mapped), expected);
            assert_eq!(scan(&bytes, DigestAlgorithm::Blake3, Reading::Calls), expected);
            let expected = hex(&Sha256::digest(&bytes));
            assert_eq!(scan(&bytes, DigestAlgorithm::Sha256, Reading::Mapped), expected);
        }
    }

    #[test]
    fn elements_that_straddle_tiles_are_counted_once() {
        let tile = to_usize(TILE);
        for shift in 0..9 {
            let mut bytes = vec![0; shift];
            let elements = 2 * tile / 4;
            bytes.extend((0..elements).flat_map(|_| f32::NAN.to_le_bytes()));
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            let tensor =
                Counted { name: "x", dtype: &Dtype::F32, bytes: shift as u64..bytes.len() as u64 };
            let scan = FileScan {
                source: SourceFile::open(file.path()).unwrap(),
                tensors: vec![tensor],
                digest: None,
            };
            let found = scan.run(&|_: u64| {}).unwrap();
            assert_eq!(found.non_finite, [(elements as u64, 0)], "shift {shift}");
        }
    }

    #[test]
    fn a_reading_can_be_interrupted() {
        struct Stop;
        impl ReadObserver for Stop {
            fn advance(&self, _: u64) {}
            fn is_interrupted(&self) -> bool {
                true
            }
        }
        assert!(matches!(advance(&Stop, 1), Err(Error::Interrupted { .. })));
    }
}
