//! What the tests share: running the binary, models made from a seed, independent readers.

pub(crate) mod checkpoint;
pub(crate) mod disk;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod tree;

use std::path::{Path, PathBuf};

/// A file or folder of `fixtures/`.
pub(crate) fn fixture(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(relative)
}

/// Prints why a test, or a part of one, did not run. Skipping in silence is not allowed.
pub(crate) fn skipped(what: &str, why: &str) {
    // The harness swallows what passing tests print: this goes past the capture.
    let note = format!("SKIPPED {what}: {why}\n");
    let _shown = std::io::Write::write_all(&mut std::io::stderr().lock(), note.as_bytes());
}
