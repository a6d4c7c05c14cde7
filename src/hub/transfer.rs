//! Many ranges of many files at once: locked, split, joined, brought by several threads, recorded piece by piece.
//!
//! A piece is one request. Large ranges are split so that several connections work on a file and little is lost when a run
//! is killed; small gaps between ranges are fetched too where that saves requests and costs next to no bytes. A file that
//! becomes whole is verified and gets its name. A file is locked as long as something of it is fetched, and no longer.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use super::Watch;
use super::http::{Http, offline};
use super::lock::{Door, Lock, waiting};
use super::range::Bringer;
use super::target::{Stand, Target, check_space};
use crate::error::{Error, HubFailure, IoContext, Result};
use crate::format::{Fetched, Ranges};

/// Sizes of pieces.
const SMALLEST_PIECE: u64 = 8 << 20;
const LARGEST_PIECE: u64 = 32 << 20;
/// Requests in flight.
const MOST_WORKERS: usize = 16;
/// Requests in flight for small pieces, such as headers, which wait for answers rather than for bytes: one round for most models.
const MOST_SMALL_WORKERS: usize = 64;
const SMALL_PIECE: u64 = 256 << 10;
/// Larger gaps are never fetched.
const LARGEST_GAP: u64 = 1 << 20;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long threads that wait for the network are waited for when the run ends early.
const GRACE: Duration = Duration::from_millis(500);

/// What is wanted of a file.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) target: Arc<Target>,
    pub(super) ranges: Ranges,
}

impl Wanted {
    /// All of it.
    pub(super) fn whole(target: &Arc<Target>) -> Self {
        let all = 0..target.size;
        Self { target: Arc::clone(target), ranges: [all].into_iter().collect() }
    }
}

/// How to fetch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Manner {
    /// One request a file, from its start.
    pub(super) in_one: bool,
    /// Somebody has the file open, who would not notice that another takes its place.
    pub(super) open: bool,
}

/// What came of an attempt to begin with a file.
enum Begun {
    /// Nothing is left to do.
    Done,
    Open(Open),
    /// Another process is at it.
    Busy,
}

/// A file that is ours to fetch.
struct Open {
    target: Arc<Target>,
    fetched: Fetched,
    missing: Ranges,
    lock: Lock,
}

/// A file at work.
struct Item {
    target: Arc<Target>,
    fetched: Fetched,
    data: File,
    /// Pieces that are not done.
    left: AtomicUsize,
    /// None once it is given free.
    lock: RwLock<Option<Lock>>,
}

impl Item {
    /// Lets others have the file.
    fn give_free(&self) {
        self.lock.write().unwrap_or_else(PoisonError::into_inner).take();
    }
}

struct Piece {
    item: usize,
    range: Range<u64>,
}

struct Work {
    http: Arc<Http>,
    items: Vec<Item>,
    pieces: Mutex<VecDeque<Piece>>,
    arrived: AtomicU64,
    stop: AtomicBool,
}

/// Brings what is missing of what is wanted. Files that become whole are verified and named.
///
/// A file that turns out wrong although an earlier run began it is fetched once more from its start: who knows which half was wrong.
pub(super) fn fetch(
    http: &Arc<Http>,
    wanted: Vec<Wanted>,
    manner: Manner,
    watch: &dyn Watch,
) -> Result<()> {
    let begun = |one: &&Wanted| {
        one.target.has_partial() && one.target.open().is_ok_and(|here| here.bytes() > 0)
    };
    let begun: Vec<Arc<Target>> =
        wanted.iter().filter(begun).map(|one| Arc::clone(&one.target)).collect();
    match attempt(http, wanted.clone(), manner, watch) {
        Err(Error::Hub { kind: HubFailure::Corrupt, what, .. })
            if !manner.open
                && begun.iter().any(|target| target.what == what && !target.has_partial()) =>
        {
            watch.note(&format!(
                "what an earlier run fetched of `{what}` was wrong: it is fetched again"
            ));
            attempt(http, wanted, manner, watch)
        }
        outcome => outcome,
    }
}

/// What no other process is at comes first; for the rest it is waited. Nobody waits with a lock in hand, so that no two wait
/// for each other.
fn attempt(http: &Arc<Http>, wanted: Vec<Wanted>, manner: Manner, watch: &dyn Watch) -> Result<()> {
    let doored = |one: Wanted| (Door::of(&one.target.partial), one);
    let mut left: Vec<(Door, Wanted)> = merged(wanted).into_iter().map(doored).collect();
    let mut told = false;
    loop {
        let (mut open, mut busy) = (Vec::new(), Vec::new());
        for (mut door, one) in left {
            match begin(http, &mut door, &one)? {
                Begun::Done => {}
                Begun::Open(of) => open.push(of),
                Begun::Busy => busy.push((door, one)),
            }
        }
        left = busy;
        if !open.is_empty() {
            bring(http, open, manner, watch)?;
            continue;
        }
        let Some((_, one)) = left.first() else { return Ok(()) };
        if !told {
            watch.note(&waiting(&one.target.what));
            told = true;
        }
        http.wait(LOOK_EVERY)?;
    }
}

/// Each file once, with all that is wanted of it.
fn merged(mut wanted: Vec<Wanted>) -> Vec<Wanted> {
    wanted.sort_by(|a, b| a.target.partial.cmp(&b.target.partial));
    wanted.dedup_by(|next, first| {
        let same = next.target.partial == first.target.partial;
        if same {
            next.ranges.iter().for_each(|range| first.ranges.insert(range.clone()));
        }
        same
    });
    wanted
}

/// What there is to do for a file. Only what is to be fetched or checked needs its lock.
fn begin(http: &Http, door: &mut Door, wanted: &Wanted) -> Result<Begun> {
    let Wanted { target, ranges } = wanted;
    match target.stand(ranges, http)? {
        Stand::Here => return Ok(Begun::Done),
        Stand::Lacking if http.settings().offline => return Err(offline(&target.what)),
        Stand::Lacking | Stand::Unnamed => {}
    }
    let Some(lock) = door.enter(http)? else { return Ok(Begun::Busy) };
    // Whoever had it may have brought it.
    if target.stand(ranges, http)? == Stand::Here {
        return Ok(Begun::Done);
    }
    let fetched = target.open()?;
    let missing = ranges.iter().flat_map(|range| fetched.missing(range)).collect();
    Ok(Begun::Open(Open { target: Arc::clone(target), fetched, missing, lock }))
}

/// Fetches what is missing of files that are ours. Each is given free as soon as that is here.
fn bring(http: &Arc<Http>, mut open: Vec<Open>, manner: Manner, watch: &dyn Watch) -> Result<()> {
    let needed: u64 = open.iter().map(|of| of.missing.bytes()).sum();
    if let Some(of) = open.first() {
        check_space(&of.target.partial, needed)?;
    }
    join_neighbours(&mut open, needed);
    let work = Arc::new(divide(http, open, manner)?);
    let outcome = run(&work, watch);
    // Threads that still wait for the network keep nobody else waiting; they record nothing any more.
    work.items.iter().for_each(Item::give_free);
    outcome
}

/// Takes small gaps along, the smallest first, as long as they are a hundredth of all.
fn join_neighbours(open: &mut [Open], needed: u64) {
    let mut gaps: Vec<(u64, usize, Range<u64>)> = Vec::new();
    for (at, Open { fetched, missing, .. }) in open.iter().enumerate() {
        let neighbours = missing.iter().zip(missing.iter().skip(1));
        for gap in neighbours.map(|(a, b)| a.end..b.start) {
            // What lies between and is here already costs nothing less by being fetched again.
            let len = gap.end - gap.start;
            if len <= LARGEST_GAP && fetched.missing(&gap) == [gap.clone()] {
                gaps.push((len, at, gap));
            }
        }
    }
    gaps.sort_by_key(|(len, ..)| *len);
    let mut budget = needed / 100 + (64 << 10);
    for (len, at, gap) in gaps {
        let Some(left) = budget.checked_sub(len) else { break };
        budget = left;
        if let Some(of) = open.get_mut(at) {
            of.missing.insert(gap);
        }
    }
}

fn divide(http: &Arc<Http>, open: Vec<Open>, manner: Manner) -> Result<Work> {
    let total: u64 = open.iter().map(|of| of.missing.bytes()).sum();
    let size = (total / (4 * MOST_WORKERS as u64)).clamp(SMALLEST_PIECE, LARGEST_PIECE);
    let (mut items, mut pieces) = (Vec::new(), VecDeque::new());
    for Open { target, fetched, missing, lock } in open {
        let item = items.len();
        let before = pieces.len();
        if manner.in_one && missing.bytes() > 0 {
            pieces.push_back(Piece { item, range: 0..target.size });
        } else {
            for range in missing.iter() {
                let starts =
                    (range.start..range.end).step_by(usize::try_from(size).unwrap_or(usize::MAX));
                pieces.extend(
                    starts.map(|start| Piece { item, range: start..range.end.min(start + size) }),
                );
            }
        }
        if pieces.len() == before && fetched.missing(&(0..target.size)).is_empty() {
            // Everything is here: it was interrupted before it got its name.
            pieces.push_back(Piece { item, range: 0..0 });
        }
        let left = pieces.len() - before;
        let lock = RwLock::new((left > 0).then_some(lock));
        let left = AtomicUsize::new(left);
        let data = File::options().write(true).open(&target.partial).at("open", &target.partial)?;
        items.push(Item { target, fetched, data, left, lock });
    }
    let (arrived, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    Ok(Work { http: Arc::clone(http), items, pieces: Mutex::new(pieces), arrived, stop })
}

/// Lets threads work and watches them. The first failure ends all.
fn run(work: &Arc<Work>, watch: &dyn Watch) -> Result<()> {
    let pieces = work.pieces.lock().unwrap_or_else(PoisonError::into_inner);
    let (count, total): (usize, u64) =
        (pieces.len(), pieces.iter().map(|p| p.range.end - p.range.start).sum());
    drop(pieces);
    let (ends, ended) = channel();
    let small = total <= SMALL_PIECE * count as u64;
    let workers = count.min(if small { MOST_SMALL_WORKERS } else { MOST_WORKERS });
    for _ in 0..workers {
        let (work, ends) = (Arc::clone(work), ends.clone());
        // Detached: a thread that waits for the network must not keep an interrupted run from ending.
        thread::spawn(move || labour(&work, &ends));
    }
    drop(ends);
    let mut failure = None;
    let mut deadline: Option<Instant> = None;
    let mut running = workers;
    while running > 0 {
        match ended.recv_timeout(LOOK_EVERY) {
            Ok(Ok(())) => running -= 1,
            Ok(Err(error)) => {
                running -= 1;
                failure.get_or_insert(error);
                work.stop.store(true, Ordering::Relaxed);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        watch.progress(work.arrived.load(Ordering::Relaxed), total);
        if let Err(error) = work.http.check_cancelled() {
            failure.get_or_insert(error);
            work.stop.store(true, Ordering::Relaxed);
        }
        if failure.is_some() {
            let until = *deadline.get_or_insert_with(|| Instant::now() + GRACE);
            if Instant::now() > until {
                break;
            }
        }
    }
    match failure {
        Some(error) => Err(error),
        // A thread that panicked has told nobody.
        None if work.items.iter().any(|item| item.left.load(Ordering::Acquire) > 0) => {
            Err(Error::Interrupted { resumable: true })
        }
        None => Ok(()),
    }
}

/// Does pieces until none is left.
fn labour(work: &Work, ends: &Sender<Result<()>>) {
    let outcome = loop {
        if work.stop.load(Ordering::Relaxed) {
            break Ok(());
        }
        let piece = work.pieces.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(piece) = piece else { break Ok(()) };
        if let Err(error) = work.piece(&piece) {
            let wrong = matches!(
                &error,
                Error::Hub { kind: HubFailure::Corrupt | HubFailure::Missing, .. }
            );
            if let (true, Some(item)) = (wrong, work.items.get(piece.item)) {
                item.target.distrust();
            }
            break Err(error);
        }
    };
    // Nobody listens any longer when the run has ended early.
    let _ = ends.send(outcome);
}

impl Work {
    fn piece(&self, piece: &Piece) -> Result<()> {
        let Some(item) = self.items.get(piece.item) else { return Ok(()) };
        let Item { target, fetched, data, left, lock } = item;
        let bringer = Bringer {
            http: &self.http,
            target,
            fetched,
            data,
            lock,
            arrived: &self.arrived,
            stop: &self.stop,
        };
        bringer.bring(&piece.range)?;
        if left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        let held = lock.read().unwrap_or_else(PoisonError::into_inner);
        if held.is_some() && fetched.missing(&(0..target.size)).is_empty() {
            target.finish(&self.http)?;
        }
        drop(held);
        item.give_free();
        Ok(())
    }
}
