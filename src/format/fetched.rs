//! Partly fetched files: a file of its full size of which only some bytes are here.
//!
//! Beside `FILE` stands `FILE.fetched`, a record of the byte ranges that are here: a line `START END` for each, appended once
//! its bytes are on the disk. Everything else of the file is a hole. [`super::SourceFile`] asks for what it needs before it
//! reads, so that nobody ever takes a hole for zeros: what is missing is fetched by whoever [serves](serve) the file, or the
//! read fails. The bytes behind a name never change, so neither does a partly fetched file's identity when more of it arrives.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::space::unwritten;
use crate::error::{Error, IoContext, Result};

/// What the record's name adds to the file's.
const RECORD: &str = ".fetched";
/// A record of more lines than shards have tensors is none.
const MAX_RECORD_BYTES: u64 = 256 << 20;

/// Brings bytes of partly fetched files.
pub trait Fetch: Send + Sync {
    /// Writes the bytes of `missing` into `file` and [records](Fetched::record) them, or fails.
    fn fetch(&self, file: &Path, missing: &[Range<u64>]) -> Result<()>;
}

static SERVED: RwLock<BTreeMap<PathBuf, Arc<dyn Fetch>>> = RwLock::new(BTreeMap::new());

/// From now on missing bytes of `file` (links resolved) are brought by `fetch`.
pub fn serve(file: PathBuf, fetch: Arc<dyn Fetch>) {
    SERVED.write().unwrap_or_else(PoisonError::into_inner).insert(file, fetch);
}

/// Which bytes of a file are here.
#[derive(Debug)]
pub struct Fetched {
    file: PathBuf,
    here: RwLock<Ranges>,
}

impl Fetched {
    /// The record of a file; none of a file that is whole.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        let Ok(file) = fs::canonicalize(path) else { return Ok(None) };
        let mut text = Vec::new();
        match File::open(record_of(&file)) {
            Ok(record) => record.take(MAX_RECORD_BYTES).read_to_end(&mut text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        }
        .at("read", record_of(&file))?;
        let here = RwLock::new(Ranges::parse(&String::from_utf8_lossy(&text)));
        Ok(Some(Self { file, here }))
    }

    /// Makes a file of `size` bytes of which none is here, or opens the one that is there.
    pub fn create(file: &Path, size: u64) -> Result<Self> {
        // The record first: a file without one would be taken for whole.
        let record = record_of(file);
        File::options().create(true).append(true).open(&record).at("create", &record)?;
        let data = File::options().create(true).truncate(false).write(true).open(file);
        data.and_then(|data| data.set_len(size))
            .map_err(|error| unwritten(error, "create", file, size))?;
        Self::of(file)?.ok_or_else(|| Error::Io {
            action: "create",
            path: record,
            source: std::io::ErrorKind::NotFound.into(),
        })
    }

    /// The file, links resolved.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What of `range` is not here.
    pub fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        self.here.read().unwrap_or_else(PoisonError::into_inner).missing(range)
    }

    /// How many bytes are here.
    pub fn bytes(&self) -> u64 {
        self.here.read().unwrap_or_else(PoisonError::into_inner).bytes()
    }

    /// How many bytes are here from the start of the file.
    pub fn head(&self) -> u64 {
        self.here.read().unwrap_or_else(PoisonError::into_inner).head()
    }

    /// Records that the bytes of `range` are here: they have been written, and now they are flushed.
    pub fn record(&self, data: &File, range: Range<u64>) -> Result<()> {
        data.sync_data().at("flush", &self.file)?;
        let record = record_of(&self.file);
        // One write of one line: what is torn by a crash has no end of line, and is not counted.
        let line = format!("{} {}\n", range.start, range.end);
        let appended = File::options().append(true).open(&record);
        let written = appended.and_then(|mut file| file.write_all(line.as_bytes()));
        written.map_err(|error| unwritten(error, "write", &record, line.len() as u64))?;
        self.here.write().unwrap_or_else(PoisonError::into_inner).insert(range);
        Ok(())
    }

    /// Makes sure that the bytes of `range` are here.
    pub(super) fn require(&self, range: &Range<u64>) -> Result<()> {
        if self.missing(range).is_empty() {
            return Ok(());
        }
        // Somebody else may have brought them since the record was read.
        self.reload()?;
        let missing = self.missing(range);
        if missing.is_empty() {
            return Ok(());
        }
        let served = SERVED.read().unwrap_or_else(PoisonError::into_inner).get(&self.file).cloned();
        if let Some(fetch) = served {
            fetch.fetch(&self.file, &missing)?;
            self.reload()?;
        }
        match self.missing(range).first() {
            None => Ok(()),
            Some(hole) => Err(Error::NotFetched { path: self.file.clone(), hole: hole.clone() }),
        }
    }

    fn reload(&self) -> Result<()> {
        if let Some(now) = Self::of(&self.file)? {
            let now = now.here.into_inner().unwrap_or_else(PoisonError::into_inner);
            *self.here.write().unwrap_or_else(PoisonError::into_inner) = now;
        } else {
            // The record goes once the file is whole.
            self.here.write().unwrap_or_else(PoisonError::into_inner).insert(0..u64::MAX);
        }
        Ok(())
    }
}

/// Where the record of a file stands.
pub fn record_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(RECORD);
    name.into()
}

/// Disjoint ranges in ascending order, none touching the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range<u64>>);

impl Ranges {
    fn parse(text: &str) -> Self {
        let mut ranges = Self::default();
        let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        for line in lines {
            let ends = line.split_once(' ').map(|(a, b)| (a.parse(), b.parse()));
            if let Some((Ok(start), Ok(end))) = ends {
                ranges.insert(start..end);
            }
        }
        ranges
    }

    /// One range.
    pub fn of(range: Range<u64>) -> Self {
        std::iter::once(range).collect()
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|r| r.end < range.start);
        let last = self.0.partition_point(|r| r.start <= range.end);
        let start = self.0.get(first).map_or(range.start, |r| r.start.min(range.start));
        let end = match last.checked_sub(1).and_then(|at| self.0.get(at)) {
            Some(r) if last > first => r.end.max(range.end),
            _ => range.end,
        };
        let start = if last > first { start } else { range.start };
        self.0.splice(first..last.max(first), std::iter::once(start..end));
    }

    /// What of `range` is not in here.
    pub fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        let mut at = range.start;
        let first = self.0.partition_point(|r| r.end <= range.start);
        for r in self.0.iter().skip(first).take_while(|r| r.start < range.end) {
            if r.start > at {
                found.push(at..r.start);
            }
            at = r.end;
        }
        if at < range.end {
            found.push(at..range.end);
        }
        found
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|r| r.end - r.start).sum()
    }

    fn head(&self) -> u64 {
        self.0.first().filter(|r| r.start == 0).map_or(0, |r| r.end)
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut all = Self::default();
        ranges.into_iter().for_each(|range| all.insert(range));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_sets_of_bytes(given in prop::collection::vec((0_u64..60, 0_u64..20), 0..12), ask in (0_u64..60, 0_u64..30)) {
            let given: Vec<_> = given.into_iter().map(|(a, n)| a..a + n).collect();
            let ranges: Ranges = given.iter().cloned().collect();
            let has = |byte: u64| given.iter().any(|r| r.contains(&byte));
            let listed: Vec<u64> = ranges.iter().cloned().flatten().collect();
            prop_assert_eq!(listed, (0..100).filter(|b| has(*b)).collect::<Vec<_>>());
            prop_assert!(ranges.0.windows(2).all(|w| w[0].end < w[1].start));
            let ask = ask.0..ask.0 + ask.1;
            let missing: Vec<u64> = ranges.missing(&ask).into_iter().flatten().collect();
            prop_assert_eq!(missing, ask.filter(|b| !has(*b)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn torn_lines_do_not_count() {
        let parsed =
            |text| Ranges::parse(text).iter().map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(parsed("0 8\n8 16\n100 200"), [(0, 16)]);
        assert_eq!(parsed("x\n5 1\n3 4\n"), [(3, 4)]);
    }

    #[test]
    fn holes_are_fetched_or_refused() {
        struct Ones;
        impl Fetch for Ones {
            fn fetch(&self, file: &Path, missing: &[Range<u64>]) -> Result<()> {
                use std::os::unix::fs::FileExt;
                let fetched = Fetched::of(file)?.unwrap();
                let data = File::options().write(true).open(file).unwrap();
                for range in missing {
                    data.write_all_at(
                        &[1].repeat(usize::try_from(range.end - range.start).unwrap()),
                        range.start,
                    )
                    .unwrap();
                    fetched.record(&data, range.clone())?;
                }
                Ok(())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let file = fs::canonicalize(dir.path()).unwrap().join("x");
        Fetched::create(&file, 100).unwrap();
        let source = super::super::SourceFile::open(&file).unwrap();
        let mut bytes = [0; 10];
        let refused = source.read_exact_at(&mut bytes, 20).unwrap_err();
        assert!(
            matches!(&refused, Error::NotFetched { hole, .. } if *hole == (20..30)),
            "{refused}"
        );
        serve(file.clone(), Arc::new(Ones));
        source.read_exact_at(&mut bytes, 20).unwrap();
        assert_eq!(bytes, [1; 10]);
        source.check_unchanged(None).unwrap();
        assert_eq!(Fetched::of(&file).unwrap().unwrap().bytes(), 10);
    }
}
