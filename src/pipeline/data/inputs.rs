//! Which files the sources of a project mean.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

use crate::backend::Size;
use crate::error::{Error, IoContext as _, Result};
use crate::pipeline::project::{Documents, Loaded, Mix, Source};

/// Deepest directory below a source that is looked into.
const DEEPEST: usize = 16;
/// The paper aligns on 1 GB.
const ALIGN_BYTES: u64 = 1_000_000_000;
const READ: &str = "files that are read: .txt .md .jsonl .json .parquet";

/// What records are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Chat,
}

/// How a file holds its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
    Parquet,
}

/// A file, read in one way.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub(super) path: PathBuf,
    /// Relative to the project, for the manifest.
    pub(super) label: String,
    pub(super) kind: Kind,
    pub(super) format: Format,
    pub(super) field: Option<String>,
    pub(super) documents: Documents,
    /// Bytes.
    pub(super) size: u64,
    /// Nanoseconds since the epoch.
    pub(super) modified: i128,
    /// By stage of the family: the first source that it belongs to.
    pub(super) sources: [Option<u16>; 2],
}

/// A source of a stage, its files found.
#[derive(Clone, Debug)]
pub(super) struct Share {
    /// The path as the project has it.
    pub(super) label: String,
    pub(super) path: PathBuf,
    /// Index into [`Family::languages`].
    pub(super) language: u16,
    pub(super) weight: f64,
    /// Indices into [`Family::inputs`].
    pub(super) inputs: Vec<usize>,
}

/// What a stage takes.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) shares: Vec<Share>,
    /// Bytes of text in all.
    pub(super) bytes: Option<u64>,
    /// Whether the project says so, and not the paper.
    pub(super) asked: bool,
}

/// Stages between which documents are divided.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub(super) kind: Kind,
    /// One, or `pretrain` and `align`.
    pub(super) stages: Vec<Stage>,
    pub(super) inputs: Vec<Input>,
    pub(super) languages: Vec<String>,
}

/// The text and the chats of a project, as far as it has them.
pub(super) fn families(loaded: &Loaded) -> Result<Vec<Family>> {
    let data = &loaded.project.data;
    let mut families = Vec::new();
    let mut text = Family::new(Kind::Text);
    if !data.pretrain.sources.is_empty() {
        text.stage(loaded, "pretrain", &data.pretrain, &data.pretrain.sources, None)?;
    }
    let sources = match data.align.sources.as_slice() {
        [] => &data.pretrain.sources,
        own => own,
    };
    if !sources.is_empty() {
        text.stage(loaded, "align", &data.align, sources, Some(ALIGN_BYTES))?;
    }
    if !text.stages.is_empty() {
        families.push(text);
    }
    if !data.sft.sources.is_empty() && loaded.project.sft.enabled != Some(false) {
        let mut chats = Family::new(Kind::Chat);
        chats.stage(loaded, "sft", &data.sft, &data.sft.sources, None)?;
        families.push(chats);
    }
    Ok(families)
}

impl Family {
    fn new(kind: Kind) -> Self {
        Self { kind, stages: Vec::new(), inputs: Vec::new(), languages: Vec::new() }
    }

    fn stage(
        &mut self,
        loaded: &Loaded,
        name: &'static str,
        mix: &Mix,
        sources: &[Source],
        default: Option<u64>,
    ) -> Result<()> {
        let place = self.stages.len();
        let mut shares = Vec::new();
        for source in sources {
            let number = u16::try_from(shares.len()).map_err(|_| too_many(loaded))?;
            let mut inputs = Vec::new();
            for found in expand(loaded, source, self.kind)? {
                let at = self.inputs.iter().position(|input| input.is_same_reading(&found));
                let at = at.unwrap_or_else(|| {
                    self.inputs.push(found);
                    self.inputs.len() - 1
                });
                self.inputs[at].sources[place].get_or_insert(number);
                inputs.push(at);
            }
            let language = self.language(loaded, &source.language)?;
            let label = source.path.to_string_lossy().into_owned();
            let path = loaded.path(&source.path);
            shares.push(Share { label, path, language, weight: source.weight, inputs });
        }
        let asked = mix.bytes.as_ref().and_then(|size: &Size| size.bytes().ok());
        let bytes = asked.or(default);
        self.stages.push(Stage { name, shares, bytes, asked: asked.is_some() });
        Ok(())
    }

    fn language(&mut self, loaded: &Loaded, language: &str) -> Result<u16> {
        let known = self.languages.iter().position(|known| known == language);
        let at = known.unwrap_or_else(|| {
            self.languages.push(language.to_owned());
            self.languages.len() - 1
        });
        u16::try_from(at).map_err(|_| too_many(loaded))
    }
}

fn too_many(loaded: &Loaded) -> Error {
    data(&loaded.file, "it has too many sources", "name a directory or a pattern")
}

impl Input {
    fn is_same_reading(&self, other: &Self) -> bool {
        (&self.path, &self.field, self.documents) == (&other.path, &other.field, other.documents)
    }

    /// Whether the file is what it was when it was found.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let meta = fs::metadata(&self.path).at("read", &self.path)?;
        if (meta.len(), modified(&meta)) == (self.size, self.modified) {
            return Ok(());
        }
        Err(Error::SourceChanged {
            path: self.path.clone(),
            tensor: None,
            what: "its size or modification time is another".into(),
        })
    }
}

/// Nanoseconds since the epoch.
pub(super) fn modified(meta: &Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

/// The files of a source, sorted by path.
fn expand(loaded: &Loaded, source: &Source, kind: Kind) -> Result<Vec<Input>> {
    let path = loaded.path(&source.path);
    let mut files = match fs::metadata(&path) {
        Ok(meta) if meta.is_dir() => directory(&path)?,
        Ok(_) => vec![path.clone()],
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => pattern(&path)?,
        Err(e) => return Err(e).at("read", &path),
    };
    files.sort();
    files.dedup();
    files.iter().map(|file| input(loaded, source, kind, file)).collect()
}

fn input(loaded: &Loaded, source: &Source, kind: Kind, file: &Path) -> Result<Input> {
    let meta = fs::metadata(file).at("read", file)?;
    if !meta.is_file() {
        return Err(data(file, "it is not a regular file", ""));
    }
    let format = match format(file) {
        Known::Read(format) => format,
        Known::Packed(unpack) => {
            let hint = format!("unpack it: {unpack}");
            return Err(data(file, "compressed files are not read", &hint));
        }
        Known::Not => return Err(data(file, "it is of no format that is read", READ)),
    };
    if (kind, format) == (Kind::Chat, Format::Text) {
        let hint = "chats come as .jsonl, .json or .parquet with `messages` or `conversations`";
        return Err(data(file, "plain text holds no chats", hint));
    }
    let label = file.strip_prefix(&loaded.root).unwrap_or(file);
    Ok(Input {
        path: file.to_owned(),
        label: label.to_string_lossy().into_owned(),
        kind,
        format,
        field: source.field.clone(),
        documents: source.documents,
        size: meta.len(),
        modified: modified(&meta),
        sources: [None, None],
    })
}

enum Known {
    Read(Format),
    Packed(&'static str),
    Not,
}

fn format(file: &Path) -> Known {
    let extension = file.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some("txt" | "md") => Known::Read(Format::Text),
        Some("jsonl" | "json" | "ndjson") => Known::Read(Format::Json),
        Some("parquet") => Known::Read(Format::Parquet),
        Some("gz") => Known::Packed("gunzip -k FILE"),
        Some("zst") => Known::Packed("zstd -d FILE"),
        Some("xz") => Known::Packed("xz -dk FILE"),
        Some("bz2") => Known::Packed("bunzip2 -k FILE"),
        Some("zip") => Known::Packed("unzip FILE"),
        _ => Known::Not,
    }
}

/// Every file of a known format in a directory and those below.
fn directory(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    walk(path, DEEPEST, &mut files)?;
    let is_packed = |file: &PathBuf| matches!(format(file), Known::Packed(_));
    let packed = files.iter().any(is_packed);
    files.retain(|file| matches!(format(file), Known::Read(_)));
    if files.is_empty() {
        return Err(if packed {
            let hint = format!("unpack them; {READ}");
            data(path, "it holds compressed files only, which are not read", &hint)
        } else {
            data(path, "the directory holds no file that is read", READ)
        });
    }
    Ok(files)
}

fn walk(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(path).at("read", path)? {
        let entry = entry.at("read", path)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let child = entry.path();
        match fs::metadata(&child) {
            Ok(meta) if meta.is_dir() && depth > 0 => walk(&child, depth - 1, files)?,
            Ok(meta) if meta.is_file() => files.push(child),
            _ => {}
        }
    }
    Ok(())
}

/// The files that a pattern matches.
fn pattern(path: &Path) -> Result<Vec<PathBuf>> {
    let is_pattern =
        |part: &Component<'_>| part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']);
    let fixed: PathBuf = path.components().take_while(|part| !is_pattern(part)).collect();
    if fixed.components().count() == path.components().count() {
        return Err(data(path, "there is no such file or directory", ""));
    }
    let matcher: GlobMatcher = GlobBuilder::new(&path.to_string_lossy())
        .literal_separator(true)
        .build()
        .map_err(|e| data(path, &format!("it is not a pattern: {}", e.kind()), ""))?
        .compile_matcher();
    let base = if fixed.as_os_str().is_empty() { Path::new(".") } else { &fixed };
    let mut files = Vec::new();
    if base.is_dir() {
        walk(base, DEEPEST, &mut files)?;
    }
    if fixed.as_os_str().is_empty() {
        files = files.iter().map(|f| f.strip_prefix(".").unwrap_or(f).to_owned()).collect();
    }
    files.retain(|file| matcher.is_match(file));
    if files.is_empty() {
        return Err(data(path, "no file matches", "`*` stays in a directory, `**` goes below"));
    }
    Ok(files)
}

/// An error about data.
pub(super) fn data(path: &Path, problem: &str, hint: &str) -> Error {
    Error::Data {
        path: path.to_owned(),
        line: None,
        problem: problem.to_owned(),
        hint: hint.to_owned(),
    }
}
