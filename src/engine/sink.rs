//! Taking finished shards away while later ones are made: publication that streams.
//!
//! One thread carries shards to the [`Sink`], one at a time and in the order in which they become complete. Workers wait when one is
//! being carried and another already waits: so a sink that does not keep shards bounds what lies on the disk to those at
//! work, the one being carried and the one that waits.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use super::journal::Finished;
use super::staging::Staging;
use crate::error::{Error, IoContext, Result};
use crate::format::FileRecord;

/// Where shards go besides the output directory, or instead of it.
pub trait Sink: Sync {
    /// Takes a complete shard, which stands at `path`, and says under which digest it has it. It is called from one thread,
    /// beside the workers.
    fn take(&self, shard: &FileRecord, path: &Path) -> Result<FileRecord>;

    /// Whether a shard that an earlier run gave is still there. One that is not is made again.
    fn has(&self, shard: &FileRecord) -> Result<bool>;

    /// Whether shards stay here too, and the output directory appears. If not, each is removed once it is taken.
    fn keeps(&self) -> bool;

    /// Everything is complete. `tree` holds all other files, and the shards if they are kept.
    fn complete(&self, tree: &Path, files: &[FileRecord]) -> Result<()>;
}

/// Shards that are complete and on their way: the one being carried, the one that waits, and one that wants to.
pub(super) const CARRIED: usize = 3;

/// The way from the workers to the sink.
pub(super) struct Carrier<'a> {
    sink: &'a dyn Sink,
    staging: &'a Mutex<Staging>,
    tree: PathBuf,
    failure: Mutex<Option<Error>>,
}

impl<'a> Carrier<'a> {
    pub(super) fn new(sink: &'a dyn Sink, staging: &'a Mutex<Staging>, tree: PathBuf) -> Self {
        Self { sink, staging, tree, failure: Mutex::new(None) }
    }

    /// Does the `work`, which hands every complete shard on, and carries them beside it. `before` are complete shards of an
    /// earlier run that are here still.
    pub(super) fn beside(
        &self,
        before: &[Finished],
        work: impl FnOnce(&(dyn Fn(Finished) -> Result<()> + Sync)) -> Result<()>,
    ) -> Result<()> {
        // The one that waits is in the channel, the other in the carrier's hands.
        let (give, taken) = sync_channel::<Finished>(1);
        let worked = std::thread::scope(|scope| {
            scope.spawn(move || self.carry(&taken));
            for shard in before {
                hand_on(&give, shard.clone())?;
            }
            let worked = work(&|shard| hand_on(&give, shard));
            drop(give);
            worked
        });
        // A worker whose shard was not taken knows only that; the reason is here.
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(failure) => Err(failure),
            None => worked,
        }
    }

    /// Carries shards until there are no more, or one could not be taken: then the channel ends, and so do the workers.
    fn carry(&self, shards: &Receiver<Finished>) {
        while let Ok(shard) = shards.recv() {
            if let Err(error) = self.carry_one(&shard) {
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                return;
            }
        }
    }

    fn carry_one(&self, shard: &Finished) -> Result<()> {
        let path = self.tree.join(&shard.file);
        let record = shard.record();
        let record = self.sink.take(&record, &path)?;
        if !self.sink.keeps() {
            self.staging.lock().unwrap_or_else(PoisonError::into_inner).take_away(record)?;
            fs::remove_file(&path).at("remove", &path)?;
        }
        Ok(())
    }
}

/// Waits until there is room for the shard on its way; fails once nothing is carried any more.
fn hand_on(give: &SyncSender<Finished>, shard: Finished) -> Result<()> {
    give.send(shard).map_err(|_| Error::Interrupted { resumable: true })
}
