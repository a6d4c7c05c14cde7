//! Watching and stopping a run.

/// Where a run is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress<'a> {
    /// Output bytes done so far. Where inputs are read several times, a part of the bytes counts as done each time.
    pub done: u64,
    /// Output bytes in all.
    pub total: u64,
    /// The shard at work.
    pub shard: &'a str,
}

/// Watches a run. Calls come from worker threads, often; they should be cheap.
pub trait Observer: Sync {
    /// Some bytes of the output are done.
    fn progress(&self, progress: Progress<'_>) {
        let _ = progress;
    }

    /// Something worth telling: a fallback taken, a shard resumed.
    fn note(&self, note: &str) {
        let _ = note;
    }

    /// Asked before every tile; `true` ends the run with [`crate::Error::Interrupted`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}
