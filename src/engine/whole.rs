//! Thresholds over everything that a plan makes: which magnitude is the k-th largest of all values of a group of terms.
//!
//! They are found before the first tile, by two histograms over all members of a group, and put into a copy of the plan: from
//! then on such a term keeps what is [above](Keep::Above) a number. Nothing of it is saved: a run that continues finds them again.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::device::{Device, Operand};
use super::observer::Observer;
use super::options::Execution;
use super::sweep::{Digit, SweepTile, Want, locate};
use super::tile::index;
use crate::error::{Error, Result};
use crate::format::SourceFile;
use crate::plan::{Blend, Keep, Part, Plan, Slice, SourceId};

/// Elements looked at together.
const STEP: u64 = 1 << 18;

/// The values of one term.
struct Member<'a> {
    group: usize,
    slice: &'a Slice,
    base: Option<&'a Slice>,
    elements: u64,
}

/// Terms that share a threshold.
struct Group {
    number: u32,
    share: f64,
    elements: u64,
}

/// The plan with every threshold over the whole of it in its place; the plan itself if there is none.
pub(super) fn resolved<'p>(
    plan: &'p Plan,
    device: &dyn Device,
    options: &Execution,
    observer: &dyn Observer,
) -> Result<Cow<'p, Plan>> {
    let (groups, members) = members(plan);
    if groups.is_empty() {
        return Ok(Cow::Borrowed(plan));
    }
    observer.note("reading everything twice to find the magnitudes from which changes count");
    let look =
        Look { members: &members, sources: open(plan, &members, options)?, device, observer };
    // Of all of a group there is nothing to find.
    let ranks: Vec<Option<u64>> = groups.iter().map(Group::rank).collect();
    let high = look.count(&vec![Some(Digit::High); groups.len()], options.threads)?;
    let places: Vec<_> =
        high.iter().zip(&ranks).map(|(counts, rank)| locate(counts, (*rank)?)).collect();
    let digits: Vec<_> = places.iter().map(|place| Some(Digit::Low(place.as_ref()?.bin))).collect();
    let low = look.count(&digits, options.threads)?;
    let mut found = BTreeMap::new();
    for (((group, counts), rank), place) in groups.iter().zip(&low).zip(&ranks).zip(places) {
        let keep = match (rank, place) {
            (None, _) => Keep::All,
            (Some(_), Some(place)) => {
                let low = locate(counts, place.rank).ok_or_else(|| unfound(group.number))?;
                above_or_equal((u32::from(place.bin) << 15) | u32::from(low.bin))
                    .ok_or_else(|| unfound(group.number))?
            }
            (Some(_), None) => return Err(unfound(group.number)),
        };
        found.insert(group.number, keep);
    }
    Ok(Cow::Owned(with(plan, &found)))
}

impl Group {
    /// Which of the largest the threshold is: the paper's code keeps what is not smaller than the element that has as many
    /// larger ones as the share asks for, which is one more than that.
    fn rank(&self) -> Option<u64> {
        let kept = share(self.share, self.elements);
        (kept < self.elements).then_some(kept + 1)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the paper's code: the product in f64, cut"
)]
fn share(of: f64, elements: u64) -> u64 {
    (of * elements as f64) as u64
}

/// What keeps everything from a magnitude on, given by its bits.
fn above_or_equal(key: u32) -> Option<Keep> {
    let below = key.checked_sub(1).map(f32::from_bits);
    match below {
        None => Some(Keep::All),
        Some(below) => below.is_finite().then(|| Keep::Above { magnitude: f64::from(below) }),
    }
}

fn unfound(group: u32) -> Error {
    Error::Plan {
        problem: format!(
            "so many values of group {group} are NaN or infinite that the largest of it cannot be told apart"
        ),
    }
}

fn members(plan: &Plan) -> (Vec<Group>, Vec<Member<'_>>) {
    let (mut groups, mut members): (Vec<Group>, _) = (Vec::new(), Vec::new());
    for blend in blends(plan) {
        let elements = blend.elements();
        for term in &blend.terms {
            let Keep::LargestOfAll { group, share } = term.keep else { continue };
            let at = groups.iter().position(|g| g.number == group).unwrap_or_else(|| {
                groups.push(Group { number: group, share, elements: 0 });
                groups.len() - 1
            });
            if let Some(group) = groups.get_mut(at) {
                group.elements = group.elements.saturating_add(elements);
            }
            let base = blend.base.as_ref().filter(|_| blend.deltas).map(|base| &base.slice);
            members.push(Member { group: at, slice: &term.operand.slice, base, elements });
        }
    }
    (groups, members)
}

fn blends(plan: &Plan) -> impl Iterator<Item = &Blend> {
    let parts = plan.tensors.iter().flat_map(|tensor| &tensor.parts);
    parts.filter_map(|part| match part {
        Part::Blend(blend) => Some(blend.as_ref()),
        _ => None,
    })
}

fn open(
    plan: &Plan,
    members: &[Member<'_>],
    options: &Execution,
) -> Result<BTreeMap<SourceId, SourceFile>> {
    let mut sources = BTreeMap::new();
    for slice in members.iter().flat_map(|member| std::iter::once(member.slice).chain(member.base))
    {
        let Some(described) = plan.sources.get(slice.source.0 as usize) else { continue };
        if let Entry::Vacant(place) = sources.entry(slice.source) {
            let source = SourceFile::open(&described.path)?;
            source.check_identity(&described.identity)?;
            place.insert(source.reading(options.reading));
        }
    }
    Ok(sources)
}

/// The plan with what was found.
fn with(plan: &Plan, found: &BTreeMap<u32, Keep>) -> Plan {
    let mut plan = plan.clone();
    let parts = plan.tensors.iter_mut().flat_map(|tensor| &mut tensor.parts);
    for part in parts {
        let Part::Blend(blend) = part else { continue };
        for term in &mut blend.terms {
            if let Keep::LargestOfAll { group, .. } = term.keep {
                term.keep = found.get(&group).copied().unwrap_or(term.keep);
            }
        }
    }
    plan
}

/// One reading of all members.
struct Look<'a> {
    members: &'a [Member<'a>],
    sources: BTreeMap<SourceId, SourceFile>,
    device: &'a dyn Device,
    observer: &'a dyn Observer,
}

impl Look<'_> {
    /// A histogram for every group that has a digit to be looked at.
    fn count(&self, digits: &[Option<Digit>], threads: usize) -> Result<Vec<Vec<u64>>> {
        let steps: Vec<(usize, Range<u64>)> = self
            .members
            .iter()
            .enumerate()
            .filter(|(_, member)| digits.get(member.group).is_some_and(Option::is_some))
            .flat_map(|(at, member)| {
                let starts = (0..member.elements).step_by(index(STEP));
                starts.map(move |start| (at, start..(start + STEP).min(member.elements)))
            })
            .collect();
        let empty = || digits.iter().map(|d| vec![0_u64; d.map_or(0, Digit::bins)]).collect();
        let sums: Mutex<Result<Vec<Vec<u64>>>> = Mutex::new(Ok(empty()));
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let worker = || {
            let mut own: Vec<Vec<u64>> = empty();
            let mut scratch = (Vec::new(), Vec::new());
            let mut worked = Ok(());
            while let Some((at, range)) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                worked = self.step(*at, range, digits, &mut own, &mut scratch);
                if worked.is_err() {
                    stop.store(true, Ordering::Relaxed);
                    break;
                }
            }
            let mut sums = sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match (&mut *sums, worked) {
                (Ok(sums), Ok(())) => {
                    for (sum, own) in sums.iter_mut().flatten().zip(own.iter().flatten()) {
                        *sum += own;
                    }
                }
                (Ok(_), Err(error)) => *sums = Err(error),
                (Err(_), _) => {}
            }
        };
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.min(steps.len()) {
                scope.spawn(worker);
            }
            worker();
        });
        sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn step(
        &self,
        at: usize,
        range: &Range<u64>,
        digits: &[Option<Digit>],
        counts: &mut [Vec<u64>],
        (values, base): &mut (Vec<u8>, Vec<u8>),
    ) -> Result<()> {
        if self.observer.cancelled() {
            return Err(Error::Interrupted { resumable: true });
        }
        let Some(member) = self.members.get(at) else { return Ok(()) };
        let found = digits.get(member.group).copied().flatten().zip(counts.get_mut(member.group));
        let Some((digit, counts)) = found else { return Ok(()) };
        let term = self.read(member.slice, range, values)?;
        let base = member.base.map(|slice| self.read(slice, range, base)).transpose()?;
        let terms = [term];
        let tile = SweepTile {
            base,
            terms: &terms,
            first: range.start,
            masks: &[],
            want: Want::default(),
        };
        self.device.histogram(&tile, digit, counts)?;
        for slice in std::iter::once(member.slice).chain(member.base) {
            self.source(slice)?.check_unchanged(None)?;
        }
        Ok(())
    }

    fn source(&self, slice: &Slice) -> Result<&SourceFile> {
        self.sources.get(&slice.source).ok_or_else(|| Error::Plan {
            problem: format!("there is no source {}", slice.source.0),
        })
    }

    /// Elements of a slice.
    fn read<'b>(
        &self,
        slice: &'b Slice,
        range: &Range<u64>,
        bytes: &'b mut Vec<u8>,
    ) -> Result<Operand<'b>> {
        let width = slice.dtype.bytes().unwrap_or(1);
        let start = slice.bytes.start + range.start * width;
        bytes.resize(index((range.end - range.start) * width), 0);
        self.source(slice)?.read_exact_at(bytes, start)?;
        Ok(Operand { dtype: &slice.dtype, bytes })
    }
}
