//! The staging directory `.NAME.elo-staging` beside an output: lock, journal and the tree that will become the output.
//!
//! The output appears by one rename, or by one exchange with the old one. Whatever a kill leaves behind is either
//! continued by the same command or recognised as done and removed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::journal::{Begun, Entry, Finished, Journal, Mark};
use super::output::sync_directory;
use super::sidecar::write_whole;
use crate::error::{Error, IoContext, Result};
use crate::format::FileRecord;

const SUFFIX: &str = ".elo-staging";

/// A staging directory that this process has locked.
#[derive(Debug)]
pub(super) struct Staging {
    dir: PathBuf,
    out: PathBuf,
    journal: Journal,
    finished: Vec<Finished>,
    /// Those of the finished shards that are not here, but where an earlier run's sink put them.
    taken: BTreeMap<String, FileRecord>,
    sync: bool,
    _lock: File,
}

/// What opening a staging directory found.
pub(super) enum Opened {
    /// Work to do, perhaps continued.
    Ready(Staging),
    /// An earlier run of the same plan was killed after its output had appeared.
    Done,
}

/// How to treat what is there.
#[derive(Clone, Copy)]
pub(super) struct Policy {
    pub(super) overwrite: bool,
    pub(super) restart: bool,
    pub(super) sync: bool,
    /// Whether shards may be where a sink put them.
    pub(super) sink: bool,
}

impl Staging {
    /// Locks the output and finds out what is already done.
    pub(super) fn open(out: &Path, begun: &Begun, policy: Policy) -> Result<Opened> {
        let out = absolute(out)?;
        let dir = staging_path(&out);
        let lock = lock(&dir, &out)?;
        let journal_path = dir.join("journal.jsonl");
        let entries = Journal::read(&journal_path);
        if let Some(mark) = publishing(&entries) {
            let same = matches!(entries.first(), Some(Entry::Begun(old)) if old == begun);
            let staged = dir.join("tree");
            let published = Mark::of(&out).is_ok_and(|m| m == mark);
            // After an exchange, what lies in `tree` is the old output.
            let unpublished = Mark::of(&staged).is_ok_and(|m| m.is_same_file(mark));
            if !unpublished {
                clear(&dir)?;
            }
            if published && same {
                remove(&dir)?;
                return Ok(Opened::Done);
            }
        }
        let (finished, taken) = match resumable(&journal_path, begun, policy, &dir)? {
            Some(found) => found,
            None => {
                clear(&dir)?;
                (Vec::new(), BTreeMap::new())
            }
        };
        if is_occupied(&out) && !policy.overwrite {
            if finished.is_empty() {
                remove(&dir)?;
            }
            return Err(Error::OutputExists { path: out });
        }
        let mut journal = Journal::append_to(&journal_path, policy.sync)?;
        if finished.is_empty() {
            clear(&dir)?;
            journal = Journal::append_to(&journal_path, policy.sync)?;
            journal.add(&Entry::Begun(begun.clone()))?;
        }
        let sync = policy.sync;
        let staging = Self { dir, out, journal, finished, taken, sync, _lock: lock };
        fs::create_dir_all(staging.tree()).at("create", staging.tree())?;
        if policy.sync {
            sync_directory(&staging.dir)?;
        }
        Ok(Opened::Ready(staging))
    }

    /// The directory that will become the output.
    pub(super) fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    /// Shards that an earlier run finished.
    pub(super) fn finished(&self) -> &[Finished] {
        &self.finished
    }

    /// Records a finished shard.
    pub(super) fn finish(&mut self, shard: Finished) -> Result<()> {
        self.journal.add(&Entry::Shard(shard.clone()))?;
        self.finished.push(shard);
        Ok(())
    }

    /// Finished shards that an earlier run's sink has.
    pub(super) fn taken(&self) -> &BTreeMap<String, FileRecord> {
        &self.taken
    }

    /// Records that a finished shard is where the sink put it: the file here may go.
    pub(super) fn take_away(&mut self, shard: FileRecord) -> Result<()> {
        self.journal.add(&Entry::Taken(shard.clone()))?;
        self.taken.insert(shard.file.clone(), shard);
        Ok(())
    }

    /// Finished shards are not finished after all: they are to be made again.
    pub(super) fn lose(&mut self, lost: &BTreeSet<String>) {
        self.finished.retain(|shard| !lost.contains(&shard.file));
        self.taken.retain(|file, _| !lost.contains(file));
    }

    /// Ends a run whose output is elsewhere now: nothing of it stays here.
    pub(super) fn dissolve(self) -> Result<()> {
        remove(&self.dir)
    }

    /// Makes the tree the output, in one step, and removes everything else.
    pub(super) fn publish(mut self) -> Result<PathBuf> {
        let tree = self.tree();
        if self.sync {
            sync_directory(&tree)?;
        }
        let mark = Mark::of(&tree).at("examine", &tree)?;
        self.journal.add(&Entry::Publishing(mark))?;
        if is_occupied(&self.out) {
            exchange(&tree, &self.out, &self.dir.join("old"))?;
        } else {
            appear(&tree, &self.out)?;
        }
        if let (true, Some(parent)) = (self.sync, self.out.parent()) {
            sync_directory(parent)?;
        }
        remove(&self.dir)?;
        Ok(self.out)
    }

    /// Ends a run that failed: keeps the directory if it holds finished work and the cause can pass.
    pub(super) fn abandon(self, error: Error) -> Error {
        let kept = error.is_resumable() && !self.finished.is_empty();
        if !kept {
            // The run's own error is what the user must see.
            let _ = remove(&self.dir);
        }
        match error {
            Error::Interrupted { .. } => Error::Interrupted { resumable: kept },
            other => other,
        }
    }
}

/// Where the staging directory of an output lies.
fn staging_path(out: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(out.file_name().unwrap_or_default());
    name.push(SUFFIX);
    out.with_file_name(name)
}

/// The output's path with its parent resolved; the parent is created if need be.
fn absolute(out: &Path) -> Result<PathBuf> {
    let out = resolved(out)?;
    if let Some(parent) = out.parent() {
        fs::create_dir_all(parent).at("create", parent)?;
    }
    Ok(out)
}

/// The output's path with everything above it resolved that is there. Nothing is created.
pub(super) fn resolved(out: &Path) -> Result<PathBuf> {
    let mut there = out;
    let mut new = Vec::new();
    loop {
        let Some(name) = there.file_name() else {
            return Err(Error::Usage {
                problem: format!("`{}` cannot be an output directory", out.display()),
                hint: "give a path that ends in the name of the new directory".into(),
            });
        };
        new.push(name);
        there = match there.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        match fs::canonicalize(there) {
            Ok(mut path) => {
                path.extend(new.iter().rev());
                return Ok(path);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).at("resolve", there),
        }
    }
}

/// Whether something stands at the output's place. An empty directory is no obstacle.
fn is_occupied(out: &Path) -> bool {
    match fs::symlink_metadata(out) {
        Err(_) => false,
        Ok(meta) if meta.is_dir() => {
            fs::read_dir(out).map_or(true, |mut list| list.next().is_some())
        }
        Ok(_) => true,
    }
}

/// Takes the lock of a staging directory, creating both. Held until the file is closed.
fn lock(dir: &Path, out: &Path) -> Result<File> {
    let path = dir.join("lock");
    // Another run may remove the directory between our steps: then start over.
    for _ in 0..100 {
        match fs::create_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e).at("create", dir),
            _ => {}
        }
        let file =
            match File::options().read(true).write(true).create(true).truncate(false).open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.at("create", &path)?,
            };
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => match holder(&path) {
                Some(holder) => return Err(Error::Locked { path: out.to_owned(), holder }),
                None => continue,
            },
            Err(fs::TryLockError::Error(e)) => return Err(e).at("lock", &path),
        }
        let here = fs::metadata(&path).map(|m| (m.dev(), m.ino())).ok();
        let held = file.metadata().map(|m| (m.dev(), m.ino())).ok();
        if here.is_some() && here == held {
            write_whole(&path, owner().as_bytes(), false)?;
            return Ok(file);
        }
    }
    Err(Error::Locked {
        path: out.to_owned(),
        holder: "other processes, one after the other".into(),
    })
}

/// Who holds a lock; none if it is gone. A holder writes its name right after it has the lock: wait for that.
fn holder(path: &Path) -> Option<String> {
    for _ in 0..100 {
        let text = fs::read_to_string(path).ok()?;
        if !text.is_empty() {
            return Some(text);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Some("another process".to_owned())
}

fn owner() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    format!("process {} on host {host} since {}", std::process::id(), utc(since))
}

/// Seconds since 1970 as `2026-11-21 10:30:00 UTC`. Days to dates as in Hinnant, "chrono-compatible low-level date
/// algorithms".
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
}

/// What an earlier run of the same plan finished, and what of it is where its sink put it.
type Earlier = (Vec<Finished>, BTreeMap<String, FileRecord>);

/// The finished shards of an earlier run of the same plan; `None` to start from nothing.
fn resumable(path: &Path, begun: &Begun, policy: Policy, dir: &Path) -> Result<Option<Earlier>> {
    let entries = Journal::read(path);
    let Some(Entry::Begun(old)) = entries.first() else {
        return Ok(None);
    };
    let taken_away = |file: &String| {
        let mut entries = entries.iter().rev().filter(|_| policy.sink);
        entries.find_map(|entry| match entry {
            Entry::Taken(shard) if shard.file == *file => Some(shard.clone()),
            _ => None,
        })
    };
    let mut taken = BTreeMap::new();
    let mut finished: Vec<Finished> = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Shard(shard) => Some(shard.clone()),
            _ => None,
        })
        .filter(|shard| {
            let file = dir.join("tree").join(&shard.file);
            let here = fs::metadata(file).is_ok_and(|m| m.len() == shard.size);
            let there = if here { None } else { taken_away(&shard.file) };
            let there = there.map(|record| taken.insert(shard.file.clone(), record));
            here || there.is_some()
        })
        .collect();
    // One that was lost, and made again, is told of twice.
    finished.reverse();
    let mut seen = BTreeSet::new();
    finished.retain(|shard| seen.insert(shard.file.clone()));
    if policy.restart || finished.is_empty() {
        return Ok(None);
    }
    match old.difference(begun) {
        Some(difference) => Err(Error::CannotResume { path: dir.to_owned(), difference }),
        None => {
            drop_torn_line(path)?;
            Ok(Some((finished, taken)))
        }
    }
}

/// A kill during a write may have left half a line; entries after it would be lost with it.
fn drop_torn_line(path: &Path) -> Result<()> {
    let bytes = fs::read(path).at("read", path)?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    if whole < bytes.len() {
        let file = File::options().write(true).open(path).at("open", path)?;
        file.set_len(whole as u64).at("truncate", path)?;
    }
    Ok(())
}

/// The mark of the tree that the journal's run was about to publish. An old output of the same plan does not have it.
fn publishing(entries: &[Entry]) -> Option<Mark> {
    entries.iter().rev().find_map(|entry| match entry {
        Entry::Publishing(mark) => Some(*mark),
        _ => None,
    })
}

/// Renames `tree` to a free place, never over something that came to be there meanwhile.
fn appear(tree: &Path, out: &Path) -> Result<()> {
    if out.is_dir() {
        // An empty directory: rename replaces it atomically and refuses one that has been filled.
        return fs::rename(tree, out).at("rename to", out);
    }
    match rustix::fs::renameat_with(CWD, tree, CWD, out, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => Err(Error::OutputExists { path: out.to_owned() }),
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(tree, out).at("rename to", out),
        other => other.at("rename to", out),
    }
}

/// Swaps `tree` and the existing output. Without support for that, the old one is moved aside first.
fn exchange(tree: &Path, out: &Path, aside: &Path) -> Result<()> {
    match rustix::fs::renameat_with(CWD, tree, CWD, out, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS) => {
            fs::rename(out, aside).at("rename", out)?;
            fs::rename(tree, out).at("rename to", out)
        }
        other => other.at("exchange with", out),
    }
}

/// Removes everything but the lock.
fn clear(dir: &Path) -> Result<()> {
    for name in ["tree", "old", "journal.jsonl"] {
        let path = dir.join(name);
        let gone = match fs::symlink_metadata(&path) {
            Err(_) => continue,
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
        };
        gone.at("remove", &path)?;
    }
    Ok(())
}

/// Removes a staging directory, the lock last. A newcomer may take it over in between: that is fine.
fn remove(dir: &Path) -> Result<()> {
    clear(dir)?;
    super::output::remove_if_there(&dir.join("lock"))?;
    match fs::remove_dir(dir) {
        Err(e)
            if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) =>
        {
            Err(e).at("remove", dir)
        }
        _ => Ok(()),
    }
}

/// A staging directory that an interrupted run left behind.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LeftOver {
    /// The staging directory.
    pub path: PathBuf,
    /// The output it was for.
    pub out: PathBuf,
    /// Whether a running process holds it.
    pub locked: bool,
    /// Bytes of its files.
    pub bytes: u64,
}

/// Lists the staging directories in `dir`.
pub fn stagings(dir: &Path) -> Result<Vec<LeftOver>> {
    left_overs(dir, SUFFIX, "tree")
}

/// Lists the folders `.NAME` + `suffix` in `dir`, which hold work on the output `NAME`: a `lock`, and their files in `inside`.
pub fn left_overs(dir: &Path, suffix: &str, inside: &str) -> Result<Vec<LeftOver>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        let path = entry.at("list", dir)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(out) = name.strip_prefix('.').and_then(|n| n.strip_suffix(suffix)) else {
            continue;
        };
        let lock = path.join("lock");
        let locked = File::open(&lock)
            .is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)));
        let files = fs::read_dir(path.join(inside)).into_iter().flatten().flatten();
        let bytes = files.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum();
        found.push(LeftOver { out: dir.join(out), path, locked, bytes });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Removes a staging directory that no running process holds.
pub fn remove_staging(left: &LeftOver) -> Result<()> {
    let _lock = lock(&left.path, &left.out)?;
    remove(&left.path)
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn times_read_as_utc() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_827_696), "2000-02-29 12:34:56 UTC");
        assert_eq!(utc(1_795_257_000), "2026-11-21 10:30:00 UTC");
    }
}
