//! How the Hub writes the names of bytes.

use std::fmt::Write as _;

use sha1::{Digest as _, Sha1};

/// SHA-1 as git begins it for a file of `size` bytes.
pub(super) fn blob(size: u64) -> Sha1 {
    let mut git = Sha1::new();
    git.update(format!("blob {size}\0"));
    git
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
