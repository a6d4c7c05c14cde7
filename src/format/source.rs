//! Source files: opened read-only, identified, read tile by tile through guarded mappings.

#![expect(unsafe_code, reason = "memory mapping; see the SAFETY comments")]

use std::fs::File;
use std::ops::{Deref, Range};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};
use serde::{Deserialize, Serialize};

use super::fetched::Fetched;
use super::guard::Guard;
use super::{Header, HeaderProblem, UnknownDtypes};
use crate::error::{Error, IoContext, Result};

/// How source bytes are brought in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// Through guarded mappings; falls back to [`Reading::Calls`] where mapping fails.
    Mapped,
    /// By positioned reads: threads that map and unmap wait for each other, those that read do not.
    #[default]
    Calls,
}

/// What makes a file the same file: a change in any field means other bytes may be behind the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Modification time, nanoseconds since 1970; [`Identity::FETCHED`] of a partly fetched file, whose bytes never change.
    pub mtime_ns: i64,
}

impl Identity {
    /// Stands for the modification time of a partly fetched file: it is written to, but never changed.
    pub const FETCHED: i64 = i64::MIN;

    fn of(file: &File, path: &Path, partly_fetched: bool) -> Result<Self> {
        let meta = file.metadata().at("examine", path)?;
        let written = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
        // What arrives later does not change what the file is.
        let mtime_ns = if partly_fetched { Self::FETCHED } else { written };
        Ok(Self { dev: meta.dev(), ino: meta.ino(), size: meta.size(), mtime_ns })
    }

    /// What differs from `now`, in words; `None` if nothing does.
    pub fn difference(&self, now: &Self) -> Option<String> {
        if self.size != now.size {
            Some(format!("its size went from {} to {} bytes", self.size, now.size))
        } else if (self.dev, self.ino) != (now.dev, now.ino) {
            Some("another file stands under its name".to_owned())
        } else {
            // A file that was partly fetched and is whole now is what it was.
            let known = self.mtime_ns != Self::FETCHED && now.mtime_ns != Self::FETCHED;
            (known && self.mtime_ns != now.mtime_ns).then(|| "it was written to".to_owned())
        }
    }
}

/// One open, read-only source file.
#[derive(Debug)]
pub struct SourceFile {
    path: PathBuf,
    file: File,
    identity: Identity,
    // Dropped in this order: the guard must be gone before the mapping.
    guard: Option<Guard>,
    map: Option<MmapRaw>,
    /// Which bytes are here, unless all are.
    fetched: Option<Fetched>,
}

impl SourceFile {
    /// Opens a regular file. FIFOs, devices and directories are refused without blocking.
    pub fn open(path: &Path) -> Result<Self> {
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file =
            File::options().read(true).custom_flags(nonblocking).open(path).at("open", path)?;
        let kind = file.metadata().at("examine", path)?.file_type();
        if !kind.is_file() {
            let kind = if kind.is_dir() { "a directory" } else { "a FIFO, socket or device" };
            return Err(Error::NotRegular { path: path.to_owned(), kind: kind.to_owned() });
        }
        let fetched = Fetched::of(path)?;
        let identity = Identity::of(&file, path, fetched.is_some())?;
        Ok(Self { path: path.to_owned(), file, identity, guard: None, map: None, fetched })
    }

    /// Whether every byte of it is here.
    pub fn is_whole(&self) -> bool {
        self.fetched.as_ref().is_none_or(|f| f.missing(&(0..self.identity.size)).is_empty())
    }

    /// Makes sure that the bytes of `range` are here, before they are read by other means than this type's.
    pub fn require(&self, range: &Range<u64>) -> Result<()> {
        self.fetched.as_ref().map_or(Ok(()), |fetched| fetched.require(range))
    }

    /// Prepares tile reading. Mapping is an optimisation: where it fails, tiles are read by calls.
    #[must_use]
    pub fn reading(mut self, how: Reading) -> Self {
        if how == Reading::Mapped && self.map.is_none() && self.identity.size > 0 {
            self.map = MmapOptions::new().map_raw_read_only(&self.file).ok();
            self.guard = self.map.as_ref().and_then(|map| Guard::register(map.as_ptr(), map.len()));
            if self.guard.is_none() {
                self.map = None;
            }
        }
        self
    }

    /// Whether tiles are mapped.
    pub fn is_mapped(&self) -> bool {
        self.map.is_some()
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it was when it was opened.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The open file, for kernel-side copies.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The bytes of a range, mapped or read into `scratch`.
    ///
    /// The caller must call [`SourceFile::check_unchanged`] after use and before trusting the bytes.
    pub fn tile<'a>(&'a self, range: Range<u64>, scratch: &'a mut Vec<u8>) -> Result<Tile<'a>> {
        let (start, len) = self.within(&range)?;
        if let Some(map) = self.map.as_ref().filter(|_| len > 0) {
            self.require(&range)?;
            return self.mapped(map, start, len);
        }
        self.tile_in(range, |len| {
            scratch.resize(len, 0);
            Ok(scratch)
        })
    }

    /// [`SourceFile::tile`] read into the caller's memory, mapped or not; it is asked for as many bytes as the range has.
    pub fn tile_in<'a>(
        &'a self,
        range: Range<u64>,
        memory: impl FnOnce(usize) -> Result<&'a mut [u8]>,
    ) -> Result<Tile<'a>> {
        let (start, len) = self.within(&range)?;
        let bytes = memory(len)?;
        self.read_exact_at(bytes, start as u64)?;
        Ok(Tile { bytes, mapping: None })
    }

    /// Start and length of a range of the file as it was opened.
    fn within(&self, range: &Range<u64>) -> Result<(usize, usize)> {
        if range.end > self.identity.size || range.start > range.end {
            return Err(self.changed(None, format!("bytes {range:?} are beyond its end")));
        }
        Ok((to_usize(range.start), to_usize(range.end - range.start)))
    }

    fn mapped<'a>(&'a self, map: &'a MmapRaw, start: usize, len: usize) -> Result<Tile<'a>> {
        if let Err(e) = map.advise_range(Advice::PopulateRead, start, len) {
            match rustix::io::Errno::from_io_error(&e) {
                // Before Linux 5.14 there is no populating: the guard alone protects the access.
                Some(rustix::io::Errno::INVAL) => {}
                Some(rustix::io::Errno::FAULT) => {
                    return Err(self.changed(None, "it was truncated".to_owned()));
                }
                _ => return Err(e).at("read", &self.path),
            }
        }
        // SAFETY: start + len <= identity.size == map.len(), and the mapping lives as long as self. Others may
        // write to the file; the bytes are plain u8, and a reader discards the tile if the file has changed.
        let bytes = unsafe { std::slice::from_raw_parts(map.as_ptr().add(start), len) };
        Ok(Tile { bytes, mapping: Some((map, start)) })
    }

    /// The whole content of a file that fits into memory.
    pub fn read_whole(path: &Path) -> Result<Vec<u8>> {
        let source = Self::open(path)?;
        let mut bytes = vec![0; to_usize(source.identity.size)];
        source.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Reads exactly `buffer` at `offset`. A file that ends early has been truncated: an error.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.require(&(offset..offset.saturating_add(buffer.len() as u64)))?;
        self.file.read_exact_at(buffer, offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.changed(None, "it was truncated".to_owned()),
            _ => Error::Io { action: "read", path: self.path.clone(), source: e },
        })
    }

    /// Fails if the file changed since it was opened, or if a mapped page of it went missing.
    pub fn check_unchanged(&self, tensor: Option<&str>) -> Result<()> {
        let now = Identity::of(&self.file, &self.path, self.fetched.is_some())?;
        if let Some(what) = self.identity.difference(&now) {
            return Err(self.changed(tensor, what));
        }
        if self.guard.as_ref().is_some_and(Guard::was_hit) {
            return Err(self.changed(tensor, "it was truncated".to_owned()));
        }
        Ok(())
    }

    /// Fails if the file is not the one that `expected` describes.
    pub fn check_identity(&self, expected: &Identity) -> Result<()> {
        match expected.difference(&self.identity) {
            Some(what) => Err(self.changed(None, format!("{what} since the plan was made"))),
            None => Ok(()),
        }
    }

    /// Reads and parses the header. Returns it with its raw bytes, length field included.
    pub fn header(&self, unknown: UnknownDtypes) -> Result<(Header, Vec<u8>)> {
        const PROBE: u64 = 64 << 10;
        let refuse = |problem: HeaderProblem| Error::Header { path: self.path.clone(), problem };
        let size = self.identity.size;
        // Of a partly fetched file no more than is here, which is the header if its length is.
        let here = self.fetched.as_ref().map_or(size, Fetched::head);
        let mut raw = vec![0; to_usize(size.min(PROBE).min(here.max(8)))];
        self.read_exact_at(&mut raw, 0)?;
        let json_len = Header::length(&raw, size).map_err(refuse)?;
        let header_len = 8 + json_len;
        let have = raw.len();
        raw.resize(to_usize(header_len), 0);
        if let Some(rest) = raw.get_mut(have..).filter(|rest| !rest.is_empty()) {
            self.read_exact_at(rest, have as u64)?;
        }
        let header = Header::parse(&raw[8..], size - header_len, unknown).map_err(refuse)?;
        Ok((header, raw))
    }

    fn changed(&self, tensor: Option<&str>, what: String) -> Error {
        let tensor = tensor.map(str::to_owned);
        Error::SourceChanged { path: self.path.clone(), tensor, what }
    }
}

/// Bytes of a source. Mapped pages are given back on drop, so that resident memory stays small.
#[derive(Debug)]
pub struct Tile<'a> {
    bytes: &'a [u8],
    mapping: Option<(&'a MmapRaw, usize)>,
}

impl<'a> Tile<'a> {
    /// Bytes that were made elsewhere.
    pub fn made(bytes: &'a [u8]) -> Self {
        Self { bytes, mapping: None }
    }
}

impl Deref for Tile<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl Drop for Tile<'_> {
    fn drop(&mut self) {
        if let Some((map, start)) = self.mapping {
            // SAFETY: a shared read-only file mapping: pages come back from the page cache when touched again.
            let _released = unsafe {
                map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, self.bytes.len())
            };
        }
    }
}

/// File offsets index memory only on 64-bit systems, which is all this crate supports.
fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
