//! What an examination found: states of files, values that are not finite, and the report for people.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use super::table::{Align, Table};
use super::units::{Bytes, counted};
use crate::error::{Error, Result, printable};
use crate::format::Digest;

/// What was looked at and found.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// How the user named the checkpoint.
    pub name: String,
    /// The checkpoint's directory.
    #[serde(skip)]
    pub root: PathBuf,
    /// Damage: what the record of `elo-surgery.json` does not allow.
    pub problems: Vec<String>,
    /// Doubts: structure that does not agree, values that are not finite.
    pub warnings: Vec<String>,
    /// Tensors with NaN or infinite values. Empty also when no data was read.
    pub non_finite: Vec<NonFiniteTensor>,
    /// Every shard and every recorded file.
    pub files: Vec<FileCheck>,
    /// Whether every value was looked at.
    pub data_was_read: bool,
}

/// A tensor with NaN or infinite values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NonFiniteTensor {
    /// Its name.
    pub tensor: String,
    /// The file that holds it.
    pub shard: String,
    /// How many values are NaN.
    pub nan: u64,
    /// How many are infinite.
    pub infinite: u64,
}

/// One file against its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileCheck {
    /// Path inside the checkpoint.
    pub file: String,
    /// Its size in bytes, 0 when it is missing.
    pub size: u64,
    /// The outcome.
    #[serde(flatten)]
    pub state: FileState,
}

/// How a file agrees with its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum FileState {
    /// Size and digest are as recorded.
    Verified {
        /// The digest.
        digest: Digest,
    },
    /// There is no digest to compare with, or none was asked for; a recorded size agrees.
    NotHashed,
    /// The bytes are not those recorded.
    Changed {
        /// The recorded digest.
        recorded: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// The size is not the one recorded.
    Resized {
        /// The recorded size in bytes.
        recorded: u64,
    },
    /// Recorded, but not there.
    Missing,
    /// A shard that is not recorded.
    Extra,
    /// The recorded path leads out of the checkpoint: not read.
    Outside,
}

impl FileState {
    /// The problem in words; `None` for a sound file.
    pub(super) fn problem(&self, file: &str, size: u64) -> Option<String> {
        let file = printable(file);
        Some(match self {
            Self::Verified { .. } | Self::NotHashed => return None,
            Self::Changed { recorded, found } => {
                format!("`{file}` has changed: its digest is {found}, recorded was {recorded}")
            }
            Self::Resized { recorded } => {
                format!("`{file}` has {size} bytes, recorded were {recorded}")
            }
            Self::Missing => format!("`{file}` is missing"),
            Self::Extra => format!("`{file}` is an extra shard that was not recorded"),
            Self::Outside => format!("`{file}` is recorded but leads out of the checkpoint"),
        })
    }
}

impl Verification {
    /// The report if there is no damage, otherwise [`Error::Verification`] with every problem.
    pub fn into_result(self) -> Result<Self> {
        if self.problems.is_empty() {
            return Ok(self);
        }
        Err(Error::Verification { path: self.root, problems: self.problems })
    }

    /// The report for people.
    pub fn render(&self) -> String {
        let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]);
        for check in &self.files {
            let state = match &check.state {
                FileState::Verified { digest } => {
                    format!("{} agrees", digest.algorithm.as_str())
                }
                FileState::NotHashed => "not hashed".to_owned(),
                FileState::Changed { .. } => "CHANGED".to_owned(),
                FileState::Resized { .. } => "WRONG SIZE".to_owned(),
                FileState::Missing => "MISSING".to_owned(),
                FileState::Extra => "EXTRA".to_owned(),
                FileState::Outside => "OUTSIDE".to_owned(),
            };
            let size = Bytes(check.size).to_string();
            table.row([printable(&check.file), size, state]);
        }
        let mut text = format!("{}\n\n{}\n", printable(&self.name), table.render());
        for warning in &self.warnings {
            let _ = writeln!(text, "warning: {}", printable(warning));
        }
        for problem in &self.problems {
            let _ = writeln!(text, "problem: {}", printable(problem));
        }
        let _ = writeln!(text, "{}", self.verdict());
        text
    }

    fn verdict(&self) -> String {
        let hashed = |check: &&FileCheck| matches!(check.state, FileState::Verified { .. });
        let verified = self.files.iter().filter(hashed).count() as u64;
        let values = match (self.data_was_read, self.non_finite.len() as u64) {
            (false, _) => "values not read".to_owned(),
            (true, 0) => "every value finite".to_owned(),
            (true, n) => format!("{} with NaN or infinite values", counted(n, "tensor")),
        };
        let sound = match self.problems.len() as u64 {
            0 => "no damage found".to_owned(),
            n => counted(n, "problem"),
        };
        let all = counted(self.files.len() as u64, "file");
        let files = match verified {
            0 => format!("{all}, none verified by digest"),
            n => format!("{n} of {all} verified by digest"),
        };
        format!("{sound} · {files} · {values}")
    }
}
