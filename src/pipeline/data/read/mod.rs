//! Reading a file of records, one after the other, in constant memory.

mod json;
mod lines;
mod parquet;
mod text;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::Watch;
use super::inputs::{Format, Input};
use super::record::Record;
use crate::error::{Error, IoContext as _, Result};

/// Longest record that is read, in bytes.
pub(super) const LONGEST: usize = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Counting from 1.
    Line(u64),
    /// Of an array or a table, counting from 1.
    Row(u64),
}

/// Takes records, or what is wrong with them. Says whether to go on.
pub(super) type Take<'a> = dyn FnMut(Place, Result<Record<'_>, String>) -> Result<bool> + 'a;

/// Reads every record of a file. With a hasher, the file's bytes go into it as well.
pub(super) fn records(
    input: &Input,
    hasher: Option<&mut blake3::Hasher>,
    watch: &dyn Watch,
    take: &mut Take<'_>,
) -> Result<()> {
    let path = &input.path;
    if input.format == Format::Parquet {
        if let Some(hasher) = hasher {
            let mut tap = Tap::open(input, Some(hasher), watch)?;
            io::copy(&mut tap, &mut io::sink()).at("read", path).map_err(stopped)?;
        }
        return parquet::read(input, watch, take);
    }
    let mut reader = BufReader::with_capacity(1 << 18, Tap::open(input, hasher, watch)?);
    let read = match input.format {
        Format::Text => text::read(input, &mut reader, take),
        Format::Json => json::read(input, &mut reader, take),
        Format::Parquet => Ok(()),
    };
    read.map_err(stopped)
}

/// A file whose bytes are watched, and hashed where wanted.
struct Tap<'a> {
    file: File,
    path: &'a Path,
    hasher: Option<&'a mut blake3::Hasher>,
    watch: &'a dyn Watch,
    done: u64,
    total: u64,
}

impl<'a> Tap<'a> {
    fn open(
        input: &'a Input,
        hasher: Option<&'a mut blake3::Hasher>,
        watch: &'a dyn Watch,
    ) -> Result<Self> {
        let path = &input.path;
        let file = File::open(path).at("open", path)?;
        Ok(Self { file, path, hasher, watch, done: 0, total: input.size })
    }
}

impl Read for Tap<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.watch.stop() {
            return Err(io::Error::other(Stopped));
        }
        let read = self.file.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        self.done += read as u64;
        self.watch.reading(self.path, self.done, self.total);
        Ok(read)
    }
}

/// The reader was told to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Stopped;

fn is_stop(source: &io::Error) -> bool {
    match source.get_ref() {
        Some(inner) => inner.is::<Stopped>(),
        None => false,
    }
}

fn stopped(error: Error) -> Error {
    match error {
        Error::Io { source, .. } if is_stop(&source) => Error::Interrupted { resumable: true },
        other => other,
    }
}

/// Bytes of text in a Parquet file, by its footer.
pub(super) fn parquet_bytes(input: &Input) -> Option<u64> {
    parquet::text_bytes(input)
}
