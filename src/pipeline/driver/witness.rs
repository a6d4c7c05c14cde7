//! Watching a run and stopping it: one trait for people's view, bridged to what each part below asks for.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::audit::ReadObserver;
use crate::backend::protocol::Event;
use crate::engine::{Observer, Progress};
use crate::pipeline::record::StageRecord;

/// Watches a run.
pub trait Witness: Sync {
    /// A stage begins, or goes on.
    fn stage(&self, name: &str, index: usize, of: usize) {
        let _ = (name, index, of);
    }
    /// The backend said something.
    fn event(&self, event: &Event) {
        let _ = event;
    }
    /// Bytes of a long piece of work: `extract`, `data`, `checking`.
    fn progress(&self, what: &str, done: u64, total: u64) {
        let _ = (what, done, total);
    }
    /// Something worth telling.
    fn note(&self, note: &str) {
        let _ = note;
    }
    /// A stage is done; `redone` is false where it was up to date.
    fn done(&self, record: &StageRecord, redone: bool) {
        let _ = (record, redone);
    }
    /// Whether to stop: backends get time to write a checkpoint.
    fn stop(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWitness;

impl Witness for NoWitness {}

/// A piece of work under a witness's eyes.
pub(super) struct Eyes<'a> {
    witness: &'a dyn Witness,
    what: &'a str,
    done: AtomicU64,
    total: AtomicU64,
}

impl<'a> Eyes<'a> {
    pub(super) fn on(witness: &'a dyn Witness, what: &'a str) -> Self {
        Self { witness, what, done: AtomicU64::new(0), total: AtomicU64::new(0) }
    }
}

impl Observer for Eyes<'_> {
    fn progress(&self, progress: Progress<'_>) {
        self.witness.progress(self.what, progress.done, progress.total);
    }

    fn note(&self, note: &str) {
        self.witness.note(note);
    }

    fn cancelled(&self) -> bool {
        self.witness.stop()
    }
}

impl ReadObserver for Eyes<'_> {
    fn begin(&self, total_bytes: u64) {
        self.total.store(total_bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.witness.progress(self.what, done, self.total.load(Ordering::Relaxed));
    }

    fn is_interrupted(&self) -> bool {
        self.witness.stop()
    }
}
