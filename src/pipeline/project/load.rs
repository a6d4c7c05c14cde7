//! Finding and reading a project file.
//!
//! It is found in the working directory or the nearest parent that has one; its paths are relative to it. Keys are
//! strict at every depth: a misspelt one is an error with its line and a suggestion, never ignored.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_json::Value;

use super::shape::{Problem, Walk};
use super::{Project, check, schema, yaml};
use crate::error::{Error, IoContext as _, Result, printable};

/// Name of the project file.
pub const PROJECT_FILE: &str = "elo.yaml";
/// Largest project file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Problems that are listed at once.
const LISTED: usize = 20;

/// A project as its file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// Its keys, checked.
    pub project: Project,
    /// The file, as reached from the working directory.
    pub file: PathBuf,
    /// The directory that its paths are relative to.
    pub root: PathBuf,
    /// What is allowed but doubtful, one sentence each.
    pub warnings: Vec<String>,
    lines: BTreeMap<String, u64>,
}

impl Project {
    /// Reads and checks a project file. Everything that is wrong with it is told at once, with lines.
    pub fn load(file: &Path) -> Result<Loaded> {
        let meta = fs::metadata(file).at("read", file)?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            return Err(wrong(file, "it is not a small regular file", ""));
        }
        let mut bytes = Vec::new();
        let opened = fs::File::open(file).at("read", file)?;
        opened.take(MAX_BYTES).read_to_end(&mut bytes).at("read", file)?;
        let text = String::from_utf8(bytes).map_err(|_| wrong(file, "it is not UTF-8 text", ""))?;
        Self::parse(&text, file)
    }

    /// Checks the text of a project file that stands, or would stand, at `file`.
    pub fn parse(text: &str, file: &Path) -> Result<Loaded> {
        let document = yaml::parse(text).map_err(|told| wrong(file, &printable(&told), ""))?;
        let schema = schema();
        let mut walk = Walk::new(&schema);
        let value = match &document {
            Some(node) if !matches!(node.kind, yaml::Kind::Null) => walk.document(node),
            _ => Value::Object(serde_json::Map::new()),
        };
        let Walk { problems, lines, .. } = walk;
        refuse(file, &problems)?;
        let project = Self::deserialize(value).map_err(|e| wrong(file, &e.to_string(), ""))?;
        let mut loaded = Loaded {
            project,
            file: file.to_owned(),
            root: file.parent().unwrap_or(Path::new("")).to_owned(),
            warnings: Vec::new(),
            lines: lines.into_iter().collect(),
        };
        let (problems, warnings) = check::all(&loaded);
        refuse(file, &problems)?;
        loaded.warnings = warnings;
        Ok(loaded)
    }

    /// The project of the working directory: its own file, or that of the nearest parent that has one.
    pub fn find() -> Result<Option<Loaded>> {
        let here = std::env::current_dir().at("find", ".")?;
        let mut root = PathBuf::new();
        for _ in here.ancestors() {
            let file = root.join(PROJECT_FILE);
            if fs::symlink_metadata(&file).is_ok() {
                return Self::load(&file).map(Some);
            }
            root.push("..");
        }
        Ok(None)
    }
}

impl Loaded {
    /// A path of the file, as reached from the working directory.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// Where results go.
    pub fn out(&self) -> PathBuf {
        self.path(&self.project.out)
    }

    /// The line of a key: `align.learning_rate`, `data.sft.sources[0].path`. None where it is not set.
    pub fn line_of(&self, key: &str) -> Option<u64> {
        self.lines.get(key).copied()
    }
}

fn refuse(file: &Path, problems: &[Problem]) -> Result<()> {
    let place = |problem: &Problem| match problem.line {
        Some(line) => format!("line {line}: {}", problem.what),
        None => problem.what.clone(),
    };
    match problems {
        [] => Ok(()),
        [one] => Err(wrong(file, &place(one), &one.hint)),
        several => {
            let mut text = format!("{} problems", several.len());
            for problem in several.iter().take(LISTED) {
                text.push_str("\n  ");
                text.push_str(&place(problem));
                if !problem.hint.is_empty() {
                    let _ = write!(text, " ({})", problem.hint);
                }
            }
            if several.len() > LISTED {
                let _ = write!(text, "\n  ... and {} more", several.len() - LISTED);
            }
            Err(wrong(file, &text, ""))
        }
    }
}

fn wrong(file: &Path, problem: &str, hint: &str) -> Error {
    Error::Project { path: file.to_owned(), problem: problem.to_owned(), hint: hint.to_owned() }
}
