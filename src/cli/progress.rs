//! Watching a run: a bar on a terminal, JSON lines for programs, nothing in a pipe.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::process::is_cancelled;
use super::session::Session;
use crate::audit::ReadObserver;
use crate::engine::{Observer, Progress};

/// Least time between two updates of a bar.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// Least time between two JSON lines.
const LINE_EVERY: Duration = Duration::from_millis(500);

/// Shows where a run is and stops it when asked to.
pub(super) struct Watcher<'a> {
    session: &'a Session,
    cancelled: Arc<AtomicBool>,
    bar: Option<ProgressBar>,
    started: Instant,
    /// When the next update is due, in milliseconds since the start.
    due: AtomicU64,
    /// Bytes read so far and in all, where a reading is watched.
    read: AtomicU64,
    to_read: AtomicU64,
}

impl<'a> Watcher<'a> {
    pub(super) fn new(session: &'a Session, cancelled: Arc<AtomicBool>) -> Self {
        Self {
            session,
            cancelled,
            bar: session.has_bar().then(bar),
            started: Instant::now(),
            due: AtomicU64::new(0),
            read: AtomicU64::new(0),
            to_read: AtomicU64::new(0),
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Shows how far a fetch is.
    #[cfg(feature = "hub")]
    pub(super) fn fetching(&self, done: u64, total: u64) {
        self.show("fetch", &Progress { done, total, shard: "from the Hub" });
    }

    fn show(&self, event: &str, progress: &Progress<'_>) {
        let Progress { done, total, shard } = *progress;
        if let Some(bar) = &self.bar {
            if self.is_due(BAR_EVERY) {
                bar.set_length(total);
                bar.set_message(shard.to_owned());
                bar.set_position(done);
            }
        } else if self.session.json && !self.session.quiet && self.is_due(LINE_EVERY) {
            Session::event(&json!({
                "event": event,
                "done": done,
                "total": total,
                "shard": shard,
                "seconds": self.started.elapsed().as_secs_f64(),
            }));
        }
    }

    /// Whether an update is due; of many threads asking at once one is told so.
    fn is_due(&self, every: Duration) -> bool {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = self.due.load(Ordering::Relaxed);
        let next = now.saturating_add(u64::try_from(every.as_millis()).unwrap_or(u64::MAX));
        let swap = |to| self.due.compare_exchange(due, to, Ordering::Relaxed, Ordering::Relaxed);
        now >= due && swap(next).is_ok()
    }
}

impl ReadObserver for Watcher<'_> {
    fn begin(&self, total_bytes: u64) {
        self.to_read.store(total_bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        let done = self.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = self.to_read.load(Ordering::Relaxed);
        let shard = "";
        self.progress(Progress { done, total, shard });
    }

    fn is_interrupted(&self) -> bool {
        is_cancelled(&self.cancelled)
    }
}

impl Observer for Watcher<'_> {
    fn progress(&self, progress: Progress<'_>) {
        self.show("progress", &progress);
    }

    fn note(&self, note: &str) {
        if self.session.json && !self.session.quiet {
            Session::event(&json!({ "event": "note", "message": note }));
        } else if let Some(bar) = &self.bar {
            bar.suspend(|| self.session.note(note));
        } else {
            self.session.note(note);
        }
    }

    fn cancelled(&self) -> bool {
        is_cancelled(&self.cancelled)
    }
}

fn bar() -> ProgressBar {
    let template = "{bar:16} {percent:>3}%  {decimal_bytes}/{decimal_total_bytes}  \
                    {decimal_bytes_per_sec}  {eta} left  {wide_msg}";
    // The template is a constant; were it wrong, the plain bar would still do.
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar
}
