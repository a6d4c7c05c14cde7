//! Files beside the shards: copied or made by the plan, and the provenance file, which comes last.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::digest::digest_file;
use super::options::Execution;
use crate::error::{Error, IoContext, Result};
use crate::format::{FileRecord, PROVENANCE_FILE, Provenance, SourceFile, unwritten};
use crate::plan::{Plan, Sidecar, SidecarContent};

/// Writes one file beside the shards, and digests it: they are small.
pub(super) fn write_sidecar(
    sidecar: &Sidecar,
    tree: &Path,
    options: &Execution,
) -> Result<FileRecord> {
    let path = tree.join(&sidecar.file);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).at("create", parent)?;
    }
    let size = match &sidecar.content {
        SidecarContent::Text(text) => {
            write_whole(&path, text.as_bytes(), options.sync)?;
            text.len() as u64
        }
        SidecarContent::Copy { path: source, size } => {
            copy(source, &path, options.sync)?;
            let copied = fs::metadata(&path).at("examine", &path)?.len();
            if copied != *size {
                let what = format!("its size went from {size} to {copied} bytes");
                let path = source.clone();
                return Err(Error::SourceChanged { path, tensor: None, what });
            }
            copied
        }
    };
    let digest = options.digest.map(|algorithm| digest_file(&path, algorithm, &mut |_| true));
    Ok(FileRecord { file: sidecar.file.clone(), size, digest: digest.transpose()? })
}

/// Writes `elo-surgery.json`.
pub(super) fn write_provenance(
    plan: &Plan,
    digest: &str,
    files: Vec<FileRecord>,
    tree: &Path,
    sync: bool,
) -> Result<()> {
    let record = provenance(plan, digest, files);
    write_whole(&tree.join(PROVENANCE_FILE), &record.to_bytes(), sync)
}

/// The record of a plan's output.
pub(super) fn provenance(plan: &Plan, digest: &str, files: Vec<FileRecord>) -> Provenance {
    Provenance::of(
        plan.operation.clone(),
        digest,
        plan.parents.clone(),
        plan.layer_map.clone(),
        plan.notes.clone(),
        files,
    )
}

/// Writes a small file, over an unfinished one of an interrupted run.
pub(super) fn write_whole(path: &Path, bytes: &[u8], sync: bool) -> Result<()> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        if sync { file.sync_all() } else { Ok(()) }
    });
    written.map_err(|e| unwritten(e, "write", path, bytes.len() as u64))
}

fn copy(source: &Path, path: &Path, sync: bool) -> Result<()> {
    let from = SourceFile::open(source)?;
    let size = from.identity().size;
    from.require(&(0..size))?;
    let mut from = from.file();
    let copied = File::create(path).and_then(|mut to| {
        io::copy(&mut from, &mut to)?;
        if sync { to.sync_all() } else { Ok(()) }
    });
    copied.map_err(|e| unwritten(e, "write", path, size))
}
