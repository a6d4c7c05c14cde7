//! Sorting more fixed-size records than memory holds: sorted runs on disk, merged while they are read.
//!
//! Records compare as bytes, so their fields are written big-endian, the most significant first. The result does not
//! depend on the order in which records came.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{IoContext as _, Result};

/// Bytes of records that are kept in memory.
const MEMORY: usize = if cfg!(test) { 1 << 14 } else { 64 << 20 };

/// Takes records in any order.
pub(super) struct Sorter<const N: usize> {
    dir: PathBuf,
    name: &'static str,
    buffer: Vec<[u8; N]>,
    runs: Vec<PathBuf>,
}

/// Gives them in order, as often as wanted.
pub(super) struct Sorted<const N: usize> {
    buffer: Vec<[u8; N]>,
    runs: Vec<PathBuf>,
}

impl<const N: usize> Sorter<N> {
    /// Spills into a directory under this name.
    pub(super) fn new(dir: &Path, name: &'static str) -> Self {
        Self { dir: dir.to_owned(), name, buffer: Vec::new(), runs: Vec::new() }
    }

    pub(super) fn push(&mut self, record: [u8; N]) -> Result<()> {
        self.buffer.push(record);
        if self.buffer.len() * N >= MEMORY { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<()> {
        self.buffer.sort_unstable();
        let path = self.dir.join(format!("{}-{}", self.name, self.runs.len()));
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&path).at("create", &path)?);
        for record in &self.buffer {
            file.write_all(record).at("write", &path)?;
        }
        file.flush().at("write", &path)?;
        self.runs.push(path);
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Sorted<N>> {
        if self.runs.is_empty() {
            self.buffer.sort_unstable();
        } else if !self.buffer.is_empty() {
            self.spill()?;
            self.buffer = Vec::new();
        }
        Ok(Sorted { buffer: self.buffer, runs: self.runs })
    }
}

impl<const N: usize> Sorted<N> {
    /// All records, in order.
    pub(super) fn scan(&self) -> Result<Scan<'_, N>> {
        let mut runs = Vec::new();
        let mut heads = BinaryHeap::new();
        for path in &self.runs {
            let mut run = Run {
                path,
                file: BufReader::with_capacity(1 << 16, File::open(path).at("open", path)?),
            };
            if let Some(record) = run.next()? {
                heads.push(Reverse((record, runs.len())));
            }
            runs.push(run);
        }
        Ok(Scan { memory: self.buffer.iter(), runs, heads })
    }
}

struct Run<'a> {
    path: &'a Path,
    file: BufReader<File>,
}

impl Run<'_> {
    fn next<const N: usize>(&mut self) -> Result<Option<[u8; N]>> {
        let mut record = [0; N];
        match self.file.read_exact(&mut record) {
            Ok(()) => Ok(Some(record)),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(e).at("read", self.path),
        }
    }
}

/// Records in order.
pub(super) struct Scan<'a, const N: usize> {
    memory: std::slice::Iter<'a, [u8; N]>,
    runs: Vec<Run<'a>>,
    heads: BinaryHeap<Reverse<([u8; N], usize)>>,
}

impl<const N: usize> Scan<'_, N> {
    /// The next record.
    pub(super) fn next(&mut self) -> Result<Option<[u8; N]>> {
        if let Some(record) = self.memory.next() {
            return Ok(Some(*record));
        }
        let Some(Reverse((record, run))) = self.heads.pop() else {
            return Ok(None);
        };
        if let Some(next) = self.runs[run].next()? {
            self.heads.push(Reverse((next, run)));
        }
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_in_order_from_memory_and_disk() {
        let dir = tempfile::tempdir().unwrap();
        for count in [0_u64, 1, 1000, 20_000] {
            let mut sorter = Sorter::<8>::new(dir.path(), "r");
            for i in 0..count {
                sorter.push((i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes()).unwrap();
            }
            let sorted = sorter.finish().unwrap();
            for _ in 0..2 {
                let mut scan = sorted.scan().unwrap();
                let (mut seen, mut last) = (0, [0; 8]);
                while let Some(record) = scan.next().unwrap() {
                    assert!(record >= last);
                    last = record;
                    seen += 1;
                }
                assert_eq!(seen, count);
            }
        }
    }
}
