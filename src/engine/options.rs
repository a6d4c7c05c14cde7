//! How to carry out a plan, and what came of it.

use std::path::PathBuf;

use serde::Serialize;

use crate::format::{DigestAlgorithm, Reading};

/// How unchanged bytes get into the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// Share blocks where the filesystem can (reflink), copy otherwise.
    #[default]
    Auto,
    /// Hard links for files that do not change at all. The output then changes when the source is written to.
    Hard,
    /// Always copy.
    Never,
}

/// How to carry out a plan. None of these change the bytes of the output.
#[derive(Clone, Debug)]
pub struct Execution {
    /// The output directory.
    pub out: PathBuf,
    /// Replace an existing output, in one step.
    pub overwrite: bool,
    /// Discard an unfinished run of another plan.
    pub restart: bool,
    /// Worker threads; 0 means one a core.
    pub threads: usize,
    /// Bytes of the output that are worked on at once by one thread: a power of two from 64 KiB on.
    pub tile: u64,
    /// Whether files are flushed to the device before the output appears (safe against power loss).
    pub sync: bool,
    /// Digest of the output files in `elo-surgery.json`.
    pub digest: Option<DigestAlgorithm>,
    /// How unchanged bytes get into the output.
    pub link: Link,
    /// How sources are read.
    pub reading: Reading,
    /// Allow values that become NaN or infinite although every input was finite.
    pub allow_nonfinite: bool,
}

impl Execution {
    /// Default tile. Mapping and giving back pages costs something for every tile, a tile that leaves the processor's
    /// caches for every byte: 1 MiB was the fastest of 64 KiB to 4 MiB (`docs/performance.md`).
    pub const TILE: u64 = 1 << 20;

    /// The defaults for an output directory.
    pub fn to(out: impl Into<PathBuf>) -> Self {
        Self {
            out: out.into(),
            overwrite: false,
            restart: false,
            threads: 0,
            tile: Self::TILE,
            sync: true,
            digest: Some(DigestAlgorithm::Blake3),
            link: Link::Auto,
            reading: Reading::Calls,
            allow_nonfinite: false,
        }
    }
}

/// What was done.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The output directory.
    pub out: PathBuf,
    /// Bytes written.
    pub written: u64,
    /// Bytes shared with a source instead of written (reflinks and hard links).
    pub shared: u64,
    /// Shards taken over from an interrupted run.
    pub resumed: u64,
    /// Shards of the output.
    pub shards: u64,
    /// Digest of the plan.
    pub plan: String,
    /// The compute device.
    pub device: String,
    /// Tensors with NaN or infinite values among those computed: name, NaNs, infinities.
    pub non_finite: Vec<(String, u64, u64)>,
}
