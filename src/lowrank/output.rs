//! Matrices on their way into an adapter: one work file a module, then a plan that copies from them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::engine::{LeftOver, left_overs};
use crate::error::{Error, IoContext, Result};
use crate::format::{
    Dtype, Header, Operation, Parent, Shape, SourceFile, TensorEntry, UnknownDtypes,
};
use crate::plan::{
    Blend, Numerics, Output, PLAN_VERSION, Part, Plan, Shard, Sidecar, SidecarContent, Slice,
    Source, SourceId, Term,
};

/// What the folders for work in progress end with.
const SUFFIX: &str = ".elo-lora";

/// The plan of an adapter, and the folder that its matrices wait in.
#[derive(Debug)]
pub struct Made {
    /// Copies them to their places.
    pub plan: Plan,
    /// To be removed when the plan was carried out ([`remove_work`]).
    pub work: PathBuf,
    /// Keeps others away from it.
    pub(super) _lock: File,
}

/// A tensor of an adapter in the making.
pub(super) struct Piece {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) identity: crate::format::Identity,
    pub(super) bytes: std::ops::Range<u64>,
    pub(super) dtype: Dtype,
    pub(super) shape: Shape,
}

/// What a work file says, and its matrices.
type Work = (BTreeMap<String, String>, Vec<Piece>);

/// The folder for work in progress beside an output.
pub(super) fn work_folder(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!(".{name}{SUFFIX}"))
}

/// Creates it, and holds it as long as the file is open.
pub(super) fn create_work(work: &Path, out: &Path) -> Result<File> {
    fs::create_dir_all(work).at("create", work)?;
    lock_work(work, out)
}

fn lock_work(work: &Path, out: &Path) -> Result<File> {
    let path = work.join("lock");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.at("create", &path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            let holder = "another `elo-surgery lora`".to_owned();
            Err(Error::Locked { path: out.to_owned(), holder })
        }
        Err(fs::TryLockError::Error(e)) => Err(e).at("lock", &path),
    }
}

/// Lists the folders for work in progress in `dir`.
///
/// # Errors
/// What the file system says.
pub fn works(dir: &Path) -> Result<Vec<LeftOver>> {
    left_overs(dir, SUFFIX, "")
}

/// Removes such a folder, which no running process holds.
///
/// # Errors
/// One that is held; what the file system says.
pub fn remove_left_work(left: &LeftOver) -> Result<()> {
    let _lock = lock_work(&left.path, &left.out)?;
    remove_work(&left.path)
}

/// Removes the folder for work in progress.
///
/// # Errors
/// What the file system says.
pub fn remove_work(work: &Path) -> Result<()> {
    fs::remove_dir_all(work).at("remove", work)
}

/// Writes f32 matrices to a work file, which appears whole.
pub(super) fn write_work(
    path: &Path,
    metadata: BTreeMap<String, String>,
    matrices: &[(&str, [usize; 2], &[f32])],
) -> Result<()> {
    let mut header = Header { metadata, tensors: Vec::new() };
    let mut end = 0;
    for (name, shape, numbers) in matrices {
        let range = end..end + numbers.len() as u64 * 4;
        end = range.end;
        let (name, shape) = ((*name).to_owned(), Shape(shape.map(|n| n as u64).to_vec()));
        header.tensors.push(TensorEntry { name, dtype: Dtype::F32, shape, range });
    }
    let mut bytes = header.to_bytes(64);
    for (_, _, numbers) in matrices {
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    }
    let unfinished = path.with_extension("part");
    fs::write(&unfinished, bytes).at("write", &unfinished)?;
    fs::rename(&unfinished, path).at("rename", path)
}

/// What a work file says and holds; `None` if it is not there yet.
pub(super) fn read_work(path: &Path) -> Result<Option<Work>> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(None);
    }
    let source = SourceFile::open(path)?;
    let (header, raw) = source.header(UnknownDtypes::Refuse)?;
    let start = raw.len() as u64;
    let piece = |entry: &TensorEntry| Piece {
        name: entry.name.clone(),
        path: path.to_owned(),
        identity: source.identity(),
        bytes: start + entry.range.start..start + entry.range.end,
        dtype: entry.dtype.clone(),
        shape: entry.shape.clone(),
    };
    let pieces = header.tensors.iter().map(piece).collect();
    Ok(Some((header.metadata, pieces)))
}

/// The plan of an adapter: its tensors in `dtype`, its settings.
pub(super) fn plan(
    (verb, parameters): (&str, Map<String, Value>),
    pieces: Vec<Piece>,
    dtype: &Dtype,
    settings: &Value,
    parents: Vec<Parent>,
) -> Result<Plan> {
    let mut sources: Vec<Source> = Vec::new();
    let mut tensors = Vec::new();
    for piece in pieces {
        let known = sources.iter().position(|source| source.path == piece.path);
        let id = known.unwrap_or_else(|| {
            let (role, path) = ("factors".to_owned(), piece.path.clone());
            sources.push(Source { role, path, identity: piece.identity });
            sources.len() - 1
        });
        let source = SourceId(u32::try_from(id).unwrap_or(u32::MAX));
        let (from, shape) = (piece.dtype, piece.shape);
        let slice = Slice { source, bytes: piece.bytes, dtype: from.clone(), shape: shape.clone() };
        let part = if from == *dtype {
            Part::Copy(slice)
        } else {
            Part::Blend(Box::new(Blend::sum(None, vec![Term::new(slice, 1.0)], 1.0)))
        };
        tensors.push(Output { name: piece.name, dtype: dtype.clone(), shape, parts: vec![part] });
    }
    let mut text = serde_json::to_string_pretty(settings).unwrap_or_default();
    text.push('\n');
    let shard = Shard {
        file: "adapter_model.safetensors".into(),
        metadata: BTreeMap::from([("format".to_owned(), "pt".to_owned())]),
        tensors: (0..tensors.len()).collect(),
        template: None,
        template_header: None,
    };
    let content = SidecarContent::Text(text);
    let plan = Plan {
        version: PLAN_VERSION,
        operation: Operation { verb: verb.to_owned(), parameters },
        sources,
        tensors,
        shards: vec![shard],
        sidecars: vec![Sidecar { file: "adapter_config.json".into(), content }],
        numerics: Numerics::Precise,
        parents,
        layer_map: None,
        notes: Vec::new(),
    };
    plan.validate()?;
    Ok(plan)
}
