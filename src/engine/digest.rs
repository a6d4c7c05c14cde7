//! Digests of output files: BLAKE3 from tiles hashed in any order, SHA-256 from a pass over the file.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use sha2::Digest as _;

use crate::error::{Error, IoContext, Result};
use crate::format::{Digest, DigestAlgorithm};

type ChainingValue = [u8; 32];

/// The BLAKE3 digest of a file whose tiles are hashed separately.
///
/// BLAKE3 is a binary tree over 1 KiB chunks. A tile of a power of two bytes at a multiple of its size is a complete
/// subtree, so the tiles' chaining values merge into the digest of the whole file.
#[derive(Debug)]
pub struct TreeDigest {
    tile: u64,
    values: Vec<ChainingValue>,
}

impl TreeDigest {
    /// For a file of `size` bytes cut into tiles of `tile` bytes, a power of two from 1 KiB on.
    pub fn new(size: u64, tile: u64) -> Self {
        let tiles = usize::try_from(size.div_ceil(tile)).unwrap_or(usize::MAX);
        Self { tile, values: vec![[0; 32]; tiles] }
    }

    /// Hashes the tile of a file of `size` bytes that starts at byte `at`. A file of one tile has no subtree: its
    /// digest is final at once.
    pub fn hash_tile(at: u64, bytes: &[u8], size: u64) -> ChainingValue {
        if bytes.len() as u64 == size {
            return *blake3::hash(bytes).as_bytes();
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(at).update(bytes).finalize_non_root()
    }

    /// Keeps the value of the tile that starts at byte `at`.
    pub fn put(&mut self, at: u64, value: ChainingValue) {
        let tile = usize::try_from(at / self.tile).unwrap_or(usize::MAX);
        if let Some(place) = self.values.get_mut(tile) {
            *place = value;
        }
    }

    /// The digest of the whole file, once every tile has been put.
    pub fn finish(&self) -> Digest {
        let hex = match self.values.as_slice() {
            [] => blake3::hash(&[]).to_hex().to_string(),
            [only] => blake3::Hash::from_bytes(*only).to_hex().to_string(),
            values => {
                let (left, right) = values.split_at(left_len(values.len()));
                merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).to_hex().to_string()
            }
        };
        Digest { algorithm: DigestAlgorithm::Blake3, hex }
    }
}

fn merge(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [] => [0; 32],
        [only] => *only,
        _ => {
            let (left, right) = values.split_at(left_len(values.len()));
            merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
        }
    }
}

/// The left subtree holds the largest power of two of tiles that leaves something to the right.
fn left_len(tiles: usize) -> usize {
    tiles.next_power_of_two() / 2
}

/// Digests a file by reading it from start to end.
///
/// # Errors
/// Reading fails, or `step` (called with the bytes read so far) says to stop.
pub fn digest_file(
    path: &Path,
    algorithm: DigestAlgorithm,
    step: &mut dyn FnMut(u64) -> bool,
) -> Result<Digest> {
    let mut file = File::open(path).at("open", path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut blake = blake3::Hasher::new();
    let mut sha = sha2::Sha256::new();
    let mut done = 0;
    loop {
        let n = file.read(&mut buffer).at("read", path)?;
        if n == 0 {
            break;
        }
        match algorithm {
            DigestAlgorithm::Blake3 => _ = blake.update(&buffer[..n]),
            DigestAlgorithm::Sha256 => sha.update(&buffer[..n]),
        }
        done += n as u64;
        if !step(done) {
            return Err(Error::Interrupted { resumable: true });
        }
    }
    let hex = match algorithm {
        DigestAlgorithm::Blake3 => blake.finalize().to_hex().to_string(),
        DigestAlgorithm::Sha256 => hex(&sha.finalize()),
    };
    Ok(Digest { algorithm, hex })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_in_any_order_give_the_digest_of_the_whole() {
        let data: Vec<u8> =
            (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for tile in [1024_u64, 4096, 65536] {
            for size in
                [0, 1, 1023, 1024, 1025, 4096, 5000, 65536, 65537, 131_072, 200_001, 300_000]
            {
                let bytes = &data[..size];
                let mut tree = TreeDigest::new(size as u64, tile);
                let tile_len = usize::try_from(tile).unwrap();
                for (i, part) in bytes.chunks(tile_len).enumerate().rev() {
                    let at = i as u64 * tile;
                    let value = TreeDigest::hash_tile(at, part, size as u64);
                    tree.put(at, value);
                }
                assert_eq!(
                    tree.finish().hex,
                    blake3::hash(bytes).to_hex().to_string(),
                    "{tile} {size}"
                );
            }
        }
    }
}
