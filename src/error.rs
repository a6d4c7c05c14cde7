//! What can go wrong, where, and what to do about it.
//!
//! Every variant names what was expected and found and where; [`Error::hint`] is the fix and
//! [`Error::exit_code`] the process exit status. The library never speaks of command-line flags
//! except inside hints. Operating-system errors enter only through [`IoContext`], which takes the path.

#[cfg(any(feature = "merge", feature = "pipeline"))]
mod near;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::checkpoint::{ConfigProblem, SelectorProblem};
use crate::format::{HeaderProblem, IndexProblem};

#[cfg(any(feature = "merge", feature = "pipeline"))]
pub(crate) use near::nearest;

/// Result of a library call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything the library refuses or fails at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a call on a path.
    #[error("could not {action} `{}`: {source}", Shown(path))]
    Io {
        /// What was tried, as a verb: `read`, `create`, `rename`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Not enough room for the output.
    #[error("not enough space for `{}`: {needed} bytes needed, {free} bytes free", Shown(path))]
    NoSpace {
        /// The file or directory being written.
        path: PathBuf,
        /// Bytes the output needs.
        needed: u64,
        /// Bytes the filesystem (or the file size limit) still allows.
        free: u64,
    },
    /// A file is not valid safetensors.
    #[error("`{}`: {problem}", Shown(path))]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: HeaderProblem,
    },
    /// A `*.safetensors.index.json` is not usable.
    #[error("`{}`: {problem}", Shown(path))]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        problem: IndexProblem,
    },
    /// A JSON file of a checkpoint does not parse.
    #[error("`{}` is not valid JSON: {message}", Shown(path))]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// A path that should be a checkpoint is not one.
    #[error("`{}` is not a checkpoint: {reason}", Shown(path))]
    NotACheckpoint {
        /// What was given.
        path: PathBuf,
        /// Why it cannot be one.
        reason: String,
    },
    /// Only pickle weights were found.
    #[error(
        "`{}` holds no safetensors, only the pickle file `{file}`, which is never read: unpickling can run code",
        Shown(path)
    )]
    PickleOnly {
        /// The directory.
        path: PathBuf,
        /// One of its pickle files.
        file: String,
    },
    /// A shard, index or config is a FIFO, device, directory or forbidden link.
    #[error("`{}` is {kind}, not a regular file inside the checkpoint", Shown(path))]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// `a FIFO`, `a directory`, `a link that leaves the checkpoint`.
        kind: String,
    },
    /// `config.json` cannot be used or cannot express the result.
    #[error("`{}`: {problem}", Shown(path))]
    Config {
        /// The config file.
        path: PathBuf,
        /// What is wrong.
        problem: ConfigProblem,
    },
    /// A layer or tensor selector is malformed or selects nothing.
    #[error("{problem}")]
    Selector {
        /// What is wrong.
        problem: SelectorProblem,
    },
    /// Models do not fit together. All problems at once.
    #[error("{}", Lines { head: what, items: problems })]
    Mismatch {
        /// What was attempted, in words.
        what: String,
        /// One line a tensor or config key.
        problems: Vec<String>,
        /// The way out.
        hint: String,
    },
    /// Vocabulary sizes differ and no policy was chosen.
    #[error("{}", Lines { head: "the models' vocabularies differ", items: problems })]
    Vocabulary {
        /// One line a tensor: name and rows in each model.
        problems: Vec<String>,
    },
    /// A method cannot serve these tensors (dtype, quantisation).
    #[error("{what}: {reason}")]
    Unsupported {
        /// The tensor or feature.
        what: String,
        /// Why not.
        reason: String,
        /// The way out.
        hint: String,
    },
    /// The output exists.
    #[error("`{}` already exists", Shown(path))]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The output is, holds, or lies inside an input.
    #[error("the output `{}` {relation} the input `{}`", Shown(output), Shown(input))]
    OutputIsInput {
        /// The output.
        output: PathBuf,
        /// The input it collides with.
        input: PathBuf,
        /// `is`, `lies inside`, `contains`.
        relation: &'static str,
    },
    /// Another run holds the output.
    #[error("`{}` is being written by {holder}", Shown(path))]
    Locked {
        /// The output.
        path: PathBuf,
        /// `process 123 on host h since ...`.
        holder: String,
    },
    /// A staging directory of another plan is in the way.
    #[error("`{}` holds an unfinished run that cannot be resumed: {difference}", Shown(path))]
    CannotResume {
        /// The staging directory.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// A source changed while it was read.
    #[error("`{}` changed while it was being read{}: {what}", Shown(path), ForTensor(tensor))]
    SourceChanged {
        /// The file.
        path: PathBuf,
        /// The tensor at work, where known.
        tensor: Option<String>,
        /// What changed.
        what: String,
    },
    /// Bytes of a partly fetched file are needed and nobody can bring them.
    #[error("bytes {} to {} of `{}` have not been fetched", hole.start, hole.end, Shown(path))]
    NotFetched {
        /// The file.
        path: PathBuf,
        /// The first bytes that are missing.
        hole: Range<u64>,
    },
    /// The Hub refused, could not be reached, or sent what it should not have.
    #[error("{what}: {problem}")]
    Hub {
        /// What was asked for: a model, a file of it, a repository.
        what: String,
        /// Which kind of failure.
        kind: HubFailure,
        /// What happened.
        problem: String,
        /// The way out.
        hint: String,
    },
    /// Values became NaN or infinite that were finite in every input.
    #[error(
        "{count} value(s) of `{tensor}` became NaN or infinite in {dtype} although every input was finite"
    )]
    NonFinite {
        /// The output tensor.
        tensor: String,
        /// How many elements of the tile in which it was seen.
        count: u64,
        /// The output dtype.
        dtype: String,
    },
    /// An importance that nothing can be weighed by.
    #[error("importance {value} of element {element} of `{tensor}` in `{}`", Shown(file))]
    Importance {
        /// The output tensor.
        tensor: String,
        /// Where the importances lie.
        file: PathBuf,
        /// Its number in row-major order, from 0, in the part of the tensor that is computed as one.
        element: u64,
        /// The number that it is.
        value: f64,
    },
    /// `verify` found damage.
    #[error("{}", Lines { head: &format!("`{}` failed verification", Shown(path)), items: problems })]
    Verification {
        /// The checkpoint.
        path: PathBuf,
        /// One line a finding.
        problems: Vec<String>,
    },
    /// A plan file does not describe a valid plan.
    #[error("not a valid plan: {problem}")]
    Plan {
        /// What is wrong, with tensor names.
        problem: String,
    },
    /// A model directory holds an unfinished in-place change.
    #[error("`{}` holds an interrupted in-place change", Shown(path))]
    UnfinishedInPlace {
        /// The model directory.
        path: PathBuf,
    },
    /// The run was told to stop.
    #[error("interrupted")]
    Interrupted {
        /// Whether running the same command again continues the work.
        resumable: bool,
    },
    /// The compute device cannot be used.
    #[error("device `{device}` is not available: {reason}")]
    Device {
        /// As asked for.
        device: String,
        /// Why not.
        reason: String,
        /// The way out.
        hint: String,
    },
    /// A project file (`elo.yaml`) is missing or wrong.
    #[error("`{}`: {problem}", Shown(path))]
    Project {
        /// The project file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// The way out.
        hint: String,
    },
    /// A training backend failed.
    #[error("the backend failed in `{stage}`: {problem}{}", LogTail { log, tail })]
    Backend {
        /// The stage.
        stage: &'static str,
        /// What happened.
        problem: String,
        /// Its whole log.
        log: PathBuf,
        /// The last lines of the log.
        tail: Vec<String>,
        /// The way out.
        hint: String,
    },
    /// Training data is missing, malformed or unusable.
    #[error("`{}`{}: {problem}", Shown(path), AtLine(*line))]
    Data {
        /// The file, directory or pattern.
        path: PathBuf,
        /// Line or row, from 1, where known.
        line: Option<u64>,
        /// What is wrong.
        problem: String,
        /// The way out.
        hint: String,
    },
    /// A request is incomplete or contradictory.
    #[error("{problem}")]
    Usage {
        /// What is missing.
        problem: String,
        /// The full form.
        hint: String,
    },
}

/// Which kind of failure the Hub had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubFailure {
    /// It was needed although the run is offline.
    Offline,
    /// It could not be reached, or broke off, or answered with an error of its own.
    Network,
    /// It knows no such model, revision or file, or does not show it to this user.
    Missing,
    /// It does not allow what was asked.
    Refused,
    /// What it sent is not what it promised.
    Corrupt,
    /// The repository changed meanwhile.
    Moved,
}

impl Error {
    /// The process exit status: 1 failure, 2 usage, 3 bad input, 4 no space, 5 locked,
    /// 6 the Hub, 7 verification failed, 8 source changed, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => 3,
            Self::Io { source, .. } if is_full(source) => 4,
            Self::Io { .. } | Self::NonFinite { .. } | Self::Device { .. } => 1,
            Self::Backend { .. } => 1,
            Self::CannotResume { .. } | Self::UnfinishedInPlace { .. } => 1,
            Self::Usage { .. } | Self::Selector { .. } => 2,
            Self::OutputExists { .. } | Self::OutputIsInput { .. } => 2,
            Self::NoSpace { .. } => 4,
            Self::Locked { .. } => 5,
            Self::Verification { .. } => 7,
            Self::SourceChanged { .. } => 8,
            Self::Interrupted { .. } => 130,
            Self::Hub { kind: HubFailure::Corrupt, .. } => 7,
            Self::Hub { kind: HubFailure::Missing, .. } => 3,
            Self::Hub { .. } | Self::NotFetched { .. } => 6,
            _ => 3,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let text: String = match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "check the permissions of the path".into()
            }
            Self::Io { source, .. } if is_full(source) => {
                "free some space, or raise the limit, then run the same command again".into()
            }
            Self::NoSpace { .. } => {
                "free some space, then run the same command again: finished shards are kept".into()
            }
            Self::Header { problem, .. } => problem.hint(),
            Self::Index { problem, .. } => problem.hint(),
            Self::Config { problem, .. } => return problem.hint(),
            Self::Selector { problem } => problem.hint(),
            Self::NotACheckpoint { .. } => {
                "give a directory with `model.safetensors` or `model.safetensors.index.json`, or one `.safetensors` file".into()
            }
            Self::PickleOnly { .. } => {
                "convert it where you trust the file, for example: python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('IN').save_pretrained('OUT')\"".into()
            }
            Self::NotRegular { kind, .. } if kind.contains("link") => {
                "pass `--follow-symlinks` if you trust where the link leads".into()
            }
            Self::Mismatch { hint, .. }
            | Self::Unsupported { hint, .. }
            | Self::Project { hint, .. }
            | Self::Backend { hint, .. }
            | Self::Data { hint, .. }
            | Self::Device { hint, .. }
            | Self::Hub { hint, .. }
            | Self::Usage { hint, .. } => hint.clone(),
            Self::Vocabulary { .. } => {
                "choose with `--vocab`: `overlap` (add the rows all models share), `extend` (also take the instruct model's extra rows), `skip` (leave these tensors as they are), `error` (refuse)".into()
            }
            Self::OutputExists { .. } => {
                "choose another `--out`, or pass `--overwrite` to replace it in one step".into()
            }
            Self::OutputIsInput { .. } => {
                "inputs are never written; choose an `--out` elsewhere".into()
            }
            Self::Locked { .. } => "wait for it to finish, or stop it".into(),
            Self::CannotResume { .. } => {
                "pass `--restart` to discard the unfinished work, or repeat the earlier command".into()
            }
            Self::SourceChanged { .. } => {
                "make sure that nothing writes to the source, then run again".into()
            }
            Self::NotFetched { .. } => {
                "name the model by its id on the Hub, and not by the place of its files in the cache".into()
            }
            Self::NonFinite { .. } => {
                "choose a wider dtype (`--dtype`, where the command has it), or pass `--allow-nonfinite` to keep them".into()
            }
            Self::Importance { .. } => {
                "importances are numbers from 0, such as squared gradients; make the file anew".into()
            }
            Self::UnfinishedInPlace { path } => format!(
                "`elo-surgery inject --undo {}` restores the model, or repeat the `inject --in-place` to finish it",
                path.display()
            ),
            Self::Interrupted { resumable: true } => {
                "run the same command again to continue where it stopped".into()
            }
            _ => return None,
        };
        (!text.is_empty()).then_some(text)
    }

    /// The same error, where it was not known whose elements were read.
    pub(crate) fn of_tensor(self, name: &str) -> Self {
        match self {
            Self::Importance { tensor, file, element, value } if tensor.is_empty() => {
                Self::Importance { tensor: name.to_owned(), file, element, value }
            }
            other => other,
        }
    }

    /// Whether a staging directory is worth keeping: the same command can continue after the cause is gone.
    pub fn is_resumable(&self) -> bool {
        matches!(
            self,
            Self::Io { .. }
                | Self::NoSpace { .. }
                | Self::Interrupted { .. }
                | Self::Device { .. }
                | Self::Hub { .. }
        )
    }
}

/// Whether a disk, a quota or a limit on files is full.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};

    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Attaches the action and the path to an [`io::Error`]. The only way in for such errors.
pub trait IoContext<T> {
    /// Names what was tried on which path.
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io { action, path: path.as_ref().to_owned(), source })
    }
}

impl<T> IoContext<T> for std::result::Result<T, rustix::io::Errno> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(io::Error::from).at(action, path)
    }
}

/// A path or name for people: control characters escaped, long ones cut in the middle.
pub(crate) struct Shown<'a, T: ?Sized>(pub(crate) &'a T);

impl fmt::Display for Shown<'_, PathBuf> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0.to_string_lossy()))
    }
}

/// Escapes control characters and cuts text over 300 characters, so that hostile names cannot
/// drive a terminal or flood a log.
pub fn printable(text: &str) -> String {
    const KEEP: usize = 300;
    let escape = |c: char| {
        if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    let count = text.chars().count();
    if count <= KEEP {
        return text.chars().map(escape).collect();
    }
    let head: String = text.chars().take(KEEP / 2).map(escape).collect();
    let tail: String = text.chars().skip(count - KEEP / 2).map(escape).collect();
    format!("{head}...({} characters)...{tail}", count - KEEP)
}

struct ForTensor<'a>(&'a Option<String>);

impl fmt::Display for ForTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, " (tensor `{}`)", printable(name)),
            None => Ok(()),
        }
    }
}

struct AtLine(Option<u64>);

impl fmt::Display for AtLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, ", line {line}"))
    }
}

struct Lines<'a> {
    head: &'a str,
    items: &'a [String],
}

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        f.write_str(self.head)?;
        for item in self.items.iter().take(SHOWN) {
            write!(f, "\n  {}", printable(item))?;
        }
        if self.items.len() > SHOWN {
            write!(f, "\n  ... and {} more", self.items.len() - SHOWN)?;
        }
        Ok(())
    }
}

struct LogTail<'a> {
    log: &'a Path,
    tail: &'a [String],
}

impl fmt::Display for LogTail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = printable(&self.log.to_string_lossy());
        if self.tail.is_empty() {
            return write!(f, "\n  its log `{log}` is empty");
        }
        write!(f, "\n  the end of its log `{log}`:")?;
        for line in self.tail {
            write!(f, "\n  | {}", printable(line))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
