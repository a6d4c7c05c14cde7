//! Writing: an output file of known size, written at known places, and the ways of getting bytes there.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::error::{Error, IoContext, Result};
use crate::format::unwritten;

/// A file being written. Its blocks are allocated first, so that a full disk shows before any work is done.
#[derive(Debug)]
pub(super) struct OutputFile {
    file: File,
    path: PathBuf,
    size: u64,
}

impl OutputFile {
    /// Creates the file anew with `size` bytes allocated.
    pub(super) fn create(path: PathBuf, size: u64) -> Result<Self> {
        remove_if_there(&path)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .at("create", &path)?;
        let output = Self { file, path, size };
        match rustix::fs::fallocate(&output.file, FallocateFlags::empty(), 0, size) {
            Ok(()) => {}
            Err(_) if size == 0 => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                output.file.set_len(size).map_err(|e| output.failed("allocate", e))?;
            }
            Err(e) => return Err(output.failed("allocate", e.into())),
        }
        Ok(output)
    }

    /// Creates the file as a clone that shares `source`'s blocks. `None` where the filesystem cannot.
    pub(super) fn reflink(path: PathBuf, source: &File, size: u64) -> Result<Option<Self>> {
        remove_if_there(&path)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .at("create", &path)?;
        match rustix::fs::ioctl_ficlone(&file, source) {
            Ok(()) => Ok(Some(Self { file, path, size })),
            // Full disks and quotas are errors of the run, everything else is a filesystem without clones.
            Err(e @ (Errno::NOSPC | Errno::DQUOT)) => {
                Err(Self { file, path, size }.failed("clone to", e.into()))
            }
            Err(_) => {
                fs::remove_file(&path).at("remove", &path)?;
                Ok(None)
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes bytes at their place, in pieces as `cp` does. For one large write the page cache wants one large folio, and
    /// finding room for it in fragmented memory costs more than the calls saved (`docs/performance.md`).
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        const PIECE: usize = 128 << 10;
        for (piece, at) in bytes.chunks(PIECE).zip((offset..).step_by(PIECE)) {
            self.file.write_all_at(piece, at).map_err(|e| self.failed("write", e))?;
        }
        Ok(())
    }

    /// Copies `len` bytes inside the kernel. `false` if it cannot between these files; nothing is lost then.
    pub(super) fn copy_from(
        &self,
        source: &File,
        from: u64,
        offset: u64,
        len: u64,
    ) -> Result<bool> {
        let (mut from, mut to) = (from, offset);
        let end = offset + len;
        while to < end {
            let step = usize::try_from(end - to).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(
                source,
                Some(&mut from),
                &self.file,
                Some(&mut to),
                step,
            ) {
                Ok(0) => return Ok(false),
                Ok(_) | Err(Errno::INTR) => {}
                Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                    return Err(self.failed("write", e.into()));
                }
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Flushes the file to the device.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| self.failed("flush", e))
    }

    fn failed(&self, action: &'static str, error: io::Error) -> Error {
        unwritten(error, action, &self.path, self.size)
    }
}

/// Flushes a directory: its entries survive a power cut.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).at("flush", path)
}

/// Removes a file; one that is not there is fine.
pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", path),
        _ => Ok(()),
    }
}
