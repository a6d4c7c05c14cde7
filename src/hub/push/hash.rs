//! The names that a file's bytes have on the Hub, computed in one reading.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::super::hash::{blob, hex};
use crate::error::Result;
use crate::format::{Digest, DigestAlgorithm, Identity, SourceFile};

/// Bytes read at once.
const TILE: usize = 1 << 20;

/// What a file's bytes are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashes {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256, the name of a large file.
    pub sha256: String,
    /// SHA-1 over git's header and the bytes, the name of a small file.
    pub git: String,
}

impl Hashes {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let size = bytes.len() as u64;
        let (mut sha256, mut git) = (Sha256::new(), blob(size));
        sha256.update(bytes);
        git.update(bytes);
        Self { size, sha256: hex(&sha256.finalize()), git: hex(&git.finalize()) }
    }
}

/// A file that was read once, whole.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) hashes: Hashes,
    /// What the file was while it was read.
    pub(super) identity: Identity,
    /// Its digest by the function that its record asks for.
    pub(super) digest: Option<Digest>,
}

/// Reads a file once. `step` is told of every piece; its error ends the reading.
pub(super) fn read(
    path: &Path,
    algorithm: Option<DigestAlgorithm>,
    step: &dyn Fn(u64) -> Result<()>,
) -> Result<Read> {
    let source = SourceFile::open(path)?;
    let identity = source.identity();
    source.require(&(0..identity.size))?;
    let (mut sha256, mut git) = (Sha256::new(), blob(identity.size));
    let mut tree = (algorithm == Some(DigestAlgorithm::Blake3)).then(blake3::Hasher::new);
    let mut tile = vec![0; TILE];
    let mut at = 0;
    while at < identity.size {
        let left = usize::try_from(identity.size - at).unwrap_or(TILE).min(TILE);
        let piece = &mut tile[..left];
        source.read_exact_at(piece, at)?;
        sha256.update(&*piece);
        git.update(&*piece);
        if let Some(tree) = &mut tree {
            tree.update(piece);
        }
        at += left as u64;
        step(left as u64)?;
    }
    source.check_unchanged(None)?;
    let sha256 = hex(&sha256.finalize());
    let digest = match (algorithm, tree) {
        (Some(algorithm), Some(tree)) => {
            Some(Digest { algorithm, hex: tree.finalize().to_hex().to_string() })
        }
        (Some(algorithm), None) => Some(Digest { algorithm, hex: sha256.clone() }),
        (None, _) => None,
    };
    let hashes = Hashes { size: identity.size, sha256, git: hex(&git.finalize()) };
    Ok(Read { hashes, identity, digest })
}

/// Base64 with padding (RFC 4648), as commits carry small files.
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * i) & 63).unwrap_or(0);
            text.push(if i <= group.len() { char::from(DIGITS[digit]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_git_and_the_hub() {
        // `printf 'hello\n' | git hash-object --stdin`, `| sha256sum`.
        let hashes = Hashes::of(b"hello\n");
        assert_eq!(hashes.git, "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(
            hashes.sha256,
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
        assert_eq!(Hashes::of(b"").git, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    }

    #[test]
    fn one_reading_gives_all_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..3_000_017_u32).map(|i| (i * 7 % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let told = std::sync::atomic::AtomicU64::new(0);
        let step = |n| {
            told.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        };
        let found = read(&path, Some(DigestAlgorithm::Blake3), &step).unwrap();
        assert_eq!(found.hashes, Hashes::of(&bytes));
        assert_eq!(found.digest.unwrap().hex, blake3::hash(&bytes).to_hex().to_string());
        assert_eq!(told.into_inner(), bytes.len() as u64);
        let found = read(&path, Some(DigestAlgorithm::Sha256), &|_| Ok(())).unwrap();
        assert_eq!(found.digest.unwrap().hex, found.hashes.sha256);
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        for (text, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }
}
