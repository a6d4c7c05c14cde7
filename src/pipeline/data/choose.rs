//! Who goes where. A document's identity is a uniform draw; entries sorted by it are the corpus, shuffled.
//!
//! In that order every document goes to the first that wants it and still has room: what is held out of its language,
//! then `align`, then `pretrain`. So slices are disjoint by content, duplicates stand side by side, and a share is cut
//! within one document of its bytes. Four passes over the sorted entries, 32 bytes a document, and no state but sums.

use std::path::Path;

use super::inputs::{Family, Kind, Stage, data};
use super::sort::{Scan, Sorted, Sorter};
use crate::error::{Error, Result};

/// Largest part of documents common to `pretrain` and `align` that `align` may take, of itself and when `bytes` is set.
const COMMON: [f64; 2] = [0.1, 0.5];
/// Documents too large for what is left of a held-out slice that are passed over.
const PATIENCE: u32 = 1000;

/// Input (4), ordinal (8), destination (2), position (8).
pub(super) type Decision = [u8; 22];

/// A file to be made.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    /// The stage, or the language that is held out.
    pub(super) part: Part,
    /// Bytes of text.
    pub(super) bytes: u64,
    pub(super) records: u64,
    /// Records and bytes by source of the stage.
    pub(super) shares: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Stage(usize),
    HeldOut(usize),
}

/// What was decided.
pub(super) struct Chosen {
    pub(super) decisions: Sorted<22>,
    pub(super) destinations: Vec<Destination>,
    /// Documents that are there more than once, beyond the first.
    pub(super) duplicates: u64,
    pub(super) notes: Vec<String>,
}

/// A document with all places it stands at.
struct Member {
    input: u32,
    ordinal: u64,
    bytes: u64,
    language: usize,
    /// By stage: the first source that has it.
    sources: [Option<usize>; 2],
    /// A second draw, from 0 to 1.
    draw: f64,
    copies: u64,
}

struct Members<'a> {
    scan: Scan<'a, 32>,
    waiting: Option<[u8; 32]>,
    family: &'a Family,
}

impl<'a> Members<'a> {
    fn new(entries: &'a Sorted<32>, family: &'a Family) -> Result<Self> {
        let mut scan = entries.scan()?;
        let waiting = scan.next()?;
        Ok(Self { scan, waiting, family })
    }

    fn next(&mut self) -> Result<Option<Member>> {
        let Some(first) = self.waiting else {
            return Ok(None);
        };
        let input = big_endian::<4>(&first[16..20]);
        let sources = self.family.inputs[usize_of(input)].sources;
        let mut member = Member {
            input: u32::try_from(input).unwrap_or(u32::MAX),
            ordinal: big_endian::<8>(&first[20..28]),
            bytes: big_endian::<4>(&first[28..]),
            language: self.language(sources),
            sources: sources.map(|s| s.map(usize::from)),
            draw: fraction(big_endian::<8>(&first[8..16])),
            copies: 1,
        };
        loop {
            self.waiting = self.scan.next()?;
            let Some(next) = self.waiting.filter(|next| next[..16] == first[..16]) else {
                return Ok(Some(member));
            };
            let other = self.family.inputs[usize_of(big_endian::<4>(&next[16..20]))].sources;
            for (own, other) in member.sources.iter_mut().zip(other) {
                let other = other.map(usize::from);
                *own = match (*own, other) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
            member.copies += 1;
        }
    }

    fn language(&self, sources: [Option<u16>; 2]) -> usize {
        let of = |(stage, source): (usize, Option<u16>)| {
            let share = self.family.stages.get(stage)?.shares.get(usize::from(source?))?;
            Some(usize::from(share.language))
        };
        sources.into_iter().enumerate().find_map(of).unwrap_or(0)
    }
}

/// Room for documents.
#[derive(Clone, Copy, Debug, Default)]
struct Quota {
    limit: u64,
    taken: u64,
    records: u64,
    skipped: u32,
    closed: bool,
}

impl Quota {
    fn of(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Takes documents up to the limit, the last one if that brings it nearer. The first always.
    fn take(&mut self, bytes: u64) -> bool {
        let nearer = 2 * u128::from(self.taken) + u128::from(bytes) <= 2 * u128::from(self.limit);
        if self.closed || self.limit == 0 || !(nearer || self.records == 0) {
            self.closed = true;
            return false;
        }
        self.add(bytes);
        true
    }

    /// Takes documents up to the limit and never beyond.
    fn take_within(&mut self, bytes: u64) -> bool {
        if self.closed || self.taken + bytes > self.limit {
            self.skipped += 1;
            self.closed |= self.skipped > PATIENCE || self.taken >= self.limit / 20 * 19;
            return false;
        }
        self.add(bytes);
        true
    }

    fn add(&mut self, bytes: u64) {
        self.taken += bytes;
        self.records += 1;
    }
}

struct Router {
    held: Vec<Quota>,
    /// By stage and source. Empty: not decided yet.
    stages: Vec<Vec<Quota>>,
    common: f64,
}

impl Router {
    fn fresh(&self) -> Self {
        let again = |quotas: &Vec<Quota>| quotas.iter().map(|q| Quota::of(q.limit)).collect();
        Self {
            held: again(&self.held),
            stages: self.stages.iter().map(again).collect(),
            common: self.common,
        }
    }

    /// Where a document goes, the source it counts for, and the middle of its place in that share, from 0 to 1.
    fn route(&mut self, member: &Member) -> Option<(Part, usize, f64)> {
        let place = |quota: &Quota| {
            let middle = 2 * u128::from(quota.taken) - u128::from(member.bytes);
            ratio(middle, 2 * u128::from(quota.limit))
        };
        let held = &mut self.held[member.language];
        if held.take_within(member.bytes) {
            return Some((Part::HeldOut(member.language), 0, place(held)));
        }
        for stage in (0..self.stages.len()).rev() {
            let Some(source) = member.sources[stage].filter(|_| member.may(stage, self.common))
            else {
                continue;
            };
            if let Some(quota) = self.stages[stage].get_mut(source)
                && quota.take(member.bytes)
            {
                return Some((Part::Stage(stage), source, place(quota)));
            }
        }
        None
    }
}

impl Member {
    /// What two stages want in common goes to the second only as far as `common` says.
    fn may(&self, stage: usize, common: f64) -> bool {
        stage == 0 || self.sources[0].is_none() || self.draw < common
    }
}

/// Decides on every document of a family.
pub(super) fn choose(
    family: &Family,
    entries: &Sorted<32>,
    held_out: (u64, f64),
    scratch: &Path,
) -> Result<Chosen> {
    let mut notes = Vec::new();
    let mut totals = vec![0_u64; family.languages.len()];
    let mut duplicates = 0;
    let mut members = Members::new(entries, family)?;
    while let Some(member) = members.next()? {
        totals[member.language] += member.bytes;
        duplicates += member.copies - 1;
    }
    let limit = |total: u64| held_out.0.min(part_of(total, held_out.1));
    let mut router = Router {
        held: totals.iter().map(|&total| Quota::of(limit(total))).collect(),
        stages: vec![Vec::new(); family.stages.len()],
        common: COMMON[0],
    };
    if let Some(align) = family.stages.get(1) {
        let usual = usize::from(align.asked);
        let mut available = available(family, entries, &router, 1, COMMON)?;
        // With few documents the usual part of them may be none.
        let enough = usual == 1 || available[0].iter().all(|&bytes| bytes > 0);
        let usual = if enough { usual } else { 1 };
        router.common = COMMON[usual];
        let available = available.swap_remove(usual);
        router.stages[1] = quotas(family, align, &available, &mut notes)?;
    }
    let mut rest = available(family, entries, &router, 0, COMMON)?;
    router.stages[0] = quotas(family, &family.stages[0], &rest.swap_remove(0), &mut notes)?;
    let mut chosen = carry_out(family, entries, &router, scratch)?;
    for (language, name) in family.languages.iter().enumerate() {
        let held =
            chosen.destinations.iter().any(|d| d.part == Part::HeldOut(language) && d.records > 0);
        if !held && held_out.0 > 0 && held_out.1 > 0.0 {
            let what = if family.kind == Kind::Text { "text" } else { "chat" };
            notes.push(format!(
                "no {name} {what} is held out: its documents are too few or too large for {} bytes",
                limit(totals[language])
            ));
        }
    }
    chosen.notes = notes;
    chosen.duplicates = duplicates;
    Ok(chosen)
}

/// Bytes by source that a stage could have, for each part of the common documents, after what is decided.
fn available(
    family: &Family,
    entries: &Sorted<32>,
    router: &Router,
    stage: usize,
    common: [f64; 2],
) -> Result<Vec<Vec<u64>>> {
    let mut router = router.fresh();
    let mut available = vec![vec![0; family.stages[stage].shares.len()]; common.len()];
    let mut members = Members::new(entries, family)?;
    while let Some(member) = members.next()? {
        if router.route(&member).is_some() {
            continue;
        }
        if let Some(source) = member.sources[stage] {
            for (common, available) in common.iter().zip(&mut available) {
                if member.may(stage, *common) {
                    available[source] += member.bytes;
                }
            }
        }
    }
    Ok(available)
}

/// Cuts a stage's bytes by weight: as many as are asked for, or as the source that runs out first allows.
fn quotas(
    family: &Family,
    stage: &Stage,
    available: &[u64],
    notes: &mut Vec<String>,
) -> Result<Vec<Quota>> {
    if let Some(empty) = available.iter().position(|&bytes| bytes == 0) {
        let hint = "earlier sources, held-out text, `align` and `pretrain` all take different documents: add some";
        let problem = format!("none of its documents is left for `{}`", stage.name);
        return Err(data(&stage.shares[empty].path, &problem, hint));
    }
    let all: f64 = stage.shares.iter().map(|share| share.weight).sum();
    let mut total = stage.bytes.map_or(f64::INFINITY, float);
    let mut limiting = None;
    for (i, share) in stage.shares.iter().enumerate() {
        let most = float(available[i]) * all / share.weight;
        if most < total {
            total = most;
            limiting = Some(i);
        }
    }
    let quota = |(share, &available): (_, &u64)| {
        let share: &super::inputs::Share = share;
        Quota::of(whole(total * share.weight / all).clamp(1, available))
    };
    if let Some(short) = limiting
        && (stage.asked || stage.shares.len() > 1)
    {
        let share = &stage.shares[short];
        let language = &family.languages[usize::from(share.language)];
        let asked = match stage.bytes.filter(|_| stage.asked) {
            Some(bytes) => format!(" instead of {bytes}"),
            None => String::new(),
        };
        notes.push(format!(
            "`{}` gets {} bytes{asked}: `{}` ({language}) has {} and the weights allow no more",
            stage.name,
            whole(total),
            share.label,
            available[short]
        ));
    }
    Ok(stage.shares.iter().zip(available).map(quota).collect())
}

fn carry_out(
    family: &Family,
    entries: &Sorted<32>,
    router: &Router,
    scratch: &Path,
) -> Result<Chosen> {
    let mut router = router.fresh();
    let mut destinations: Vec<Destination> = Vec::new();
    let parts = (0..family.stages.len())
        .map(|stage| (Part::Stage(stage), family.stages[stage].shares.len()))
        .chain((0..family.languages.len()).map(|language| (Part::HeldOut(language), 1)));
    for (part, shares) in parts {
        let shares = vec![(0, 0); shares];
        destinations.push(Destination { part, bytes: 0, records: 0, shares });
    }
    let mut sorter = Sorter::<22>::new(scratch, "decisions");
    let mut members = Members::new(entries, family)?;
    while let Some(member) = members.next()? {
        let Some((part, source, place)) = router.route(&member) else {
            continue;
        };
        let number = match part {
            Part::Stage(stage) => stage,
            Part::HeldOut(language) => family.stages.len() + language,
        };
        let destination = &mut destinations[number];
        destination.bytes += member.bytes;
        destination.records += 1;
        destination.shares[source].0 += 1;
        destination.shares[source].1 += member.bytes;
        let number = u16::try_from(number).map_err(|_| Error::Usage {
            problem: "too many languages".into(),
            hint: String::new(),
        })?;
        let mut decision: Decision = [0; 22];
        decision[..4].copy_from_slice(&member.input.to_be_bytes());
        decision[4..12].copy_from_slice(&member.ordinal.to_be_bytes());
        decision[12..14].copy_from_slice(&number.to_be_bytes());
        decision[14..].copy_from_slice(&position(place).to_be_bytes());
        sorter.push(decision)?;
    }
    let decisions = sorter.finish()?;
    Ok(Chosen { decisions, destinations, duplicates: 0, notes: Vec::new() })
}

/// A big-endian number of up to eight bytes.
pub(super) fn big_endian<const N: usize>(bytes: &[u8]) -> u64 {
    bytes.iter().take(N).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

pub(super) fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a draw from 0 to 1")]
fn fraction(number: u64) -> f64 {
    number as f64 / 18_446_744_073_709_551_616.0
}

#[expect(clippy::cast_precision_loss, reason = "a place from 0 to 1")]
fn ratio(a: u128, b: u128) -> f64 {
    a as f64 / b.max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "shares of bytes, exact below 9 PB")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, never negative"
)]
fn whole(bytes: f64) -> u64 {
    bytes.max(0.0) as u64
}

fn part_of(bytes: u64, part: f64) -> u64 {
    whole(float(bytes) * part)
}

/// A place from 0 to 1 as a number to sort by.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn position(place: f64) -> u64 {
    (place * 9_223_372_036_854_775_808.0) as u64
}
