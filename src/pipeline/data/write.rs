//! The second reading: chosen records, put in order.
//!
//! A large file is first thrown into pieces by position, each small enough to be sorted in memory.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use super::Watch;
use super::choose::{Chosen, big_endian, usize_of};
use super::inputs::Family;
use super::read::records;
use crate::error::{Error, IoContext as _, Result};

/// Bytes of text in a piece.
const PIECE: u64 = if cfg!(test) { 1 << 16 } else { 32 << 20 };
/// Most pieces of a file, as each is open for writing.
const PIECES: u64 = 200;

/// A file that was made.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) path: PathBuf,
    /// blake3 in hex.
    pub(super) digest: String,
    /// Bytes of the file.
    pub(super) size: u64,
}

/// Makes the files of a family in a directory; `names` has the file name of each destination that has records.
pub(super) fn write(
    family: &Family,
    chosen: &Chosen,
    names: &[Option<String>],
    scratch: &Path,
    watch: &dyn Watch,
) -> Result<Vec<Option<Written>>> {
    let mut files = Vec::new();
    for (name, destination) in names.iter().zip(&chosen.destinations) {
        files.push(match name {
            Some(name) => Some(Pieces::new(scratch.join(name), destination.bytes)?),
            None => None,
        });
    }
    let total: u64 = chosen.destinations.iter().map(|d| d.bytes).sum();
    let mut decisions = chosen.decisions.scan()?;
    let mut waiting = decisions.next()?;
    for (number, input) in family.inputs.iter().enumerate() {
        let is_here = |d: &[u8; 22]| usize_of(big_endian::<4>(&d[..4])) == number;
        if !waiting.as_ref().is_some_and(is_here) {
            continue;
        }
        let mut ordinal = 0;
        records(input, None, watch, &mut |_, record| {
            ordinal += 1;
            let Some(decision) = waiting.filter(is_here) else {
                return Ok(false);
            };
            if big_endian::<8>(&decision[4..12]) != ordinal {
                return Ok(true);
            }
            let destination = usize_of(big_endian::<2>(&decision[12..14]));
            if let (Ok(record), Some(Some(file))) = (record, files.get_mut(destination)) {
                file.push(big_endian::<8>(&decision[14..]), &record.line())?;
            }
            waiting = decisions.next()?;
            Ok(true)
        })?;
        input.check_unchanged()?;
    }
    let mut done = 0;
    let mut written = Vec::new();
    for file in files {
        written.push(match file {
            Some(file) => Some(file.finish(watch, &mut done, total)?),
            None => None,
        });
    }
    Ok(written)
}

/// A file whose lines come in any order.
struct Pieces {
    path: PathBuf,
    /// Lines with their positions, where there is one piece.
    memory: Vec<(u64, Vec<u8>)>,
    files: Vec<(PathBuf, BufWriter<File>)>,
}

impl Pieces {
    fn new(path: PathBuf, bytes: u64) -> Result<Self> {
        let count = bytes.div_ceil(PIECE).min(PIECES);
        let mut files = Vec::new();
        for i in 0..if count > 1 { count } else { 0 } {
            let mut piece = path.clone().into_os_string();
            piece.push(format!(".{i}"));
            let piece = PathBuf::from(piece);
            let file = File::create(&piece).at("create", &piece)?;
            files.push((piece, BufWriter::with_capacity(1 << 16, file)));
        }
        Ok(Self { path, memory: Vec::new(), files })
    }

    fn push(&mut self, position: u64, line: &[u8]) -> Result<()> {
        if self.files.is_empty() {
            self.memory.push((position, line.to_owned()));
            return Ok(());
        }
        // Positions go from 0 to 2^63.
        let piece = (u128::from(position) * self.files.len() as u128) >> 63;
        let piece = usize::try_from(piece).unwrap_or(usize::MAX).min(self.files.len() - 1);
        let (path, file) = &mut self.files[piece];
        let length = (line.len() as u64).to_be_bytes();
        let mut put = |bytes: &[u8]| file.write_all(bytes);
        put(&position.to_be_bytes()).at("write", &*path)?;
        put(&length).at("write", &*path)?;
        put(line).at("write", &*path)
    }

    fn finish(self, watch: &dyn Watch, done: &mut u64, total: u64) -> Result<Written> {
        let path = self.path;
        let mut output = Output {
            file: BufWriter::with_capacity(1 << 20, File::create(&path).at("create", &path)?),
            hasher: blake3::Hasher::new(),
            size: 0,
        };
        let mut memory = self.memory;
        memory.sort_by_key(|(position, _)| *position);
        for (_, line) in &memory {
            output.put(line, &path)?;
        }
        *done += output.size;
        watch.writing(&path, (*done).min(total), total);
        drop(memory);
        for (piece, mut file) in self.files {
            file.flush().at("write", &piece)?;
            drop(file);
            if watch.stop() {
                return Err(Error::Interrupted { resumable: true });
            }
            let bytes = fs::read(&piece).at("read", &piece)?;
            let mut lines = Vec::new();
            let mut rest = bytes.as_slice();
            while let Some((head, tail)) = rest.split_at_checked(16) {
                let length = usize_of(big_endian::<8>(&head[8..]));
                let Some((line, tail)) = tail.split_at_checked(length) else { break };
                lines.push((big_endian::<8>(&head[..8]), line));
                rest = tail;
            }
            lines.sort_by_key(|(position, _)| *position);
            for (_, line) in lines {
                *done += line.len() as u64;
                output.put(line, &path)?;
            }
            watch.writing(&path, (*done).min(total), total);
            fs::remove_file(&piece).at("remove", &piece)?;
        }
        output.file.flush().at("write", &path)?;
        output.file.get_ref().sync_all().at("flush", &path)?;
        let digest = output.hasher.finalize().to_hex().to_string();
        Ok(Written { path, digest, size: output.size })
    }
}

struct Output {
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    size: u64,
}

impl Output {
    fn put(&mut self, line: &[u8], path: &Path) -> Result<()> {
        self.hasher.update(line);
        self.size += line.len() as u64;
        self.file.write_all(line).at("write", path)
    }
}
