//! The first reading: who is there. Every document leaves 32 bytes: its identity, its place and its size.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::Watch;
use super::inputs::{Family, data};
use super::read::{Place, records};
use super::sort::{Sorted, Sorter};
use crate::error::{Error, Result, printable};
use crate::pipeline::project::OnBad;

/// Records that cannot be used which are listed.
const LISTED: usize = 10;
/// After so many of them, and nothing else, a file is given up.
const HOPELESS: u64 = 100;

/// Identity (16), input (4), ordinal (8), bytes (4).
pub(super) type Entry = [u8; 32];

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) empty: u64,
    pub(super) bad: u64,
    /// blake3 of the file.
    pub(super) digest: String,
}

/// A family, scanned.
pub(super) struct Scanned {
    pub(super) entries: Sorted<32>,
    /// By input.
    pub(super) tallies: Vec<Tally>,
}

/// Reads every file of a family once.
pub(super) fn scan(
    family: &Family,
    key: &[u8; 32],
    on_bad: OnBad,
    scratch: &Path,
    watch: &dyn Watch,
) -> Result<Scanned> {
    let mut sorter = Sorter::new(scratch, "entries");
    let mut tallies = Vec::new();
    let mut bad = Bad::default();
    for (number, input) in family.inputs.iter().enumerate() {
        let mut hasher = blake3::Hasher::new();
        let mut tally = Tally::default();
        let number = u32::try_from(number).map_err(|_| data(&input.path, "too many files", ""))?;
        let mut ordinal = 0_u64;
        records(input, Some(&mut hasher), watch, &mut |place, record| {
            ordinal += 1;
            let problem = match record {
                Err(problem) => Some(problem),
                Ok(record) if record.is_blank() => {
                    tally.empty += 1;
                    return Ok(true);
                }
                Ok(record) => match record.problem() {
                    None => {
                        let bytes = u32::try_from(record.bytes()).unwrap_or(u32::MAX);
                        tally.records += 1;
                        tally.bytes += u64::from(bytes);
                        sorter.push(entry(record.identity(key), number, ordinal, bytes))?;
                        None
                    }
                    problem => problem,
                },
            };
            if let Some(problem) = problem {
                tally.bad += 1;
                bad.note(&input.path, place, &problem);
                if tally.bad >= HOPELESS && tally.records == 0 && on_bad == OnBad::Error {
                    bad.gave_up = true;
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        input.check_unchanged()?;
        if bad.gave_up {
            break;
        }
        tally.digest = hasher.finalize().to_hex().to_string();
        tallies.push(tally);
    }
    if on_bad == OnBad::Error {
        bad.refuse()?;
    }
    for share in family.stages.iter().flat_map(|stage| &stage.shares) {
        let found: u64 = share.inputs.iter().map(|&input| tallies[input].records).sum();
        let skipped: u64 = share.inputs.iter().map(|&input| tallies[input].bad).sum();
        if found == 0 {
            let problem = match skipped {
                0 => "it holds no text".to_owned(),
                n => format!("it holds nothing but {n} records that cannot be used"),
            };
            return Err(data(&share.path, &problem, "leave the source out, or fill it"));
        }
    }
    Ok(Scanned { entries: sorter.finish()?, tallies })
}

fn entry(identity: [u8; 16], input: u32, ordinal: u64, bytes: u32) -> Entry {
    let mut entry = [0; 32];
    entry[..16].copy_from_slice(&identity);
    entry[16..20].copy_from_slice(&input.to_be_bytes());
    entry[20..28].copy_from_slice(&ordinal.to_be_bytes());
    entry[28..].copy_from_slice(&bytes.to_be_bytes());
    entry
}

/// Records that cannot be used.
#[derive(Default)]
struct Bad {
    count: u64,
    listed: Vec<(PathBuf, Place, String)>,
    gave_up: bool,
}

impl Bad {
    fn note(&mut self, path: &Path, place: Place, problem: &str) {
        self.count += 1;
        if self.listed.len() < LISTED {
            self.listed.push((path.to_owned(), place, printable(problem)));
        }
    }

    fn refuse(&self) -> Result<()> {
        let Some((path, place, problem)) = self.listed.first() else {
            return Ok(());
        };
        let skip = "mend them, or leave them out with `data.on_bad: skip`";
        let missing = problem.contains("it has no field");
        let hint =
            if missing { format!("name the field with `field`, or {skip}") } else { skip.into() };
        if self.count == 1 {
            let (line, problem) = match place {
                Place::Line(line) => (Some(*line), problem.clone()),
                Place::Row(row) => (None, format!("record {row}: {problem}")),
            };
            return Err(Error::Data { path: path.clone(), line, problem, hint });
        }
        let more = if self.gave_up { "the first " } else { "" };
        let mut text = format!("{more}{} records cannot be used", self.count);
        for (path, place, problem) in &self.listed {
            let place = match place {
                Place::Line(line) => format!("line {line}"),
                Place::Row(row) => format!("record {row}"),
            };
            let path = printable(&path.to_string_lossy());
            let _ = write!(text, "\n  `{path}` {place}: {problem}");
        }
        let rest = self.count - self.listed.len() as u64;
        if rest > 0 {
            let _ = write!(text, "\n  ... and {rest} more");
        }
        Err(Error::Data { path: path.clone(), line: None, problem: text, hint })
    }
}
