//! Publishing: files to a repository of the Hub, whole or not at all.
//!
//! * What is there already is not sent: files of the branch by their hashes, objects of the storage by theirs.
//! * Large files go to the storage first, in any order and in any number of tries. A branch shows nothing of it.
//! * Then one commit names everything at once. It is made on the very commit that was looked at, so a branch never shows half a
//!   model, and a request that is sent twice commits once (its module `commit`).
//! * What was sent is what was hashed, or nothing is committed.
//!
//! [`Publication`] takes one file after the other, as they are finished; [`Folder`] is a directory that is there; [`plan`](fn@plan) says
//! what of it would be sent.

mod account;
mod card;
mod commit;
mod folder;
mod hash;
mod lfs;
mod modes;
mod plan;
mod publication;
mod readme;
mod storage;
mod survey;
mod weights;
mod xet;

use std::fmt;

use super::id::ModelId;
use crate::error::{Error, Result};

pub use card::{Facts, Origin, card, origins};
pub use folder::{Folder, FolderOptions, LocalFile};
pub use hash::Hashes;
pub use plan::{Change, Item, Plan, plan};
pub use publication::Publication;
pub use readme::{CardWish, Readme, find_licenses, readme};
pub use survey::{Survey, Visibility, refuse_offline, survey};

/// Where something is published.
#[derive(Clone, Debug)]
pub struct Target {
    /// The repository; its revision is the branch, `main` if there is none.
    pub id: ModelId,
    /// Whether only its members may see it.
    pub private: bool,
    /// Whether a pull request is opened instead of changing the branch.
    pub pull_request: bool,
}

impl Target {
    /// A repository's branch.
    ///
    /// # Errors
    /// A branch that is a commit, and pull requests to another branch than `main`: the Hub has none.
    pub fn new(id: ModelId, private: bool, pull_request: bool) -> Result<Self> {
        let target = Self { id, private, pull_request };
        let branch = target.branch();
        let usage = |problem: String, hint: &str| Err(Error::Usage { problem, hint: hint.into() });
        if super::id::is_commit(branch) {
            return usage(
                format!("`{branch}` is a commit, which never changes"),
                "give a branch with `--branch`",
            );
        }
        if pull_request && branch != "main" {
            return usage(
                format!("a pull request cannot be opened against `{branch}`"),
                "leave out `--branch`: the Hub opens pull requests against `main`",
            );
        }
        Ok(target)
    }

    /// The branch.
    pub fn branch(&self) -> &str {
        self.id.revision_or_main()
    }

    /// The same branch, of a repository that the Hub has under another name now.
    #[must_use]
    pub fn renamed(self, found: &Survey) -> Self {
        match &found.renamed {
            Some(name) => Self { id: name.at(self.branch()), ..self },
            None => self,
        }
    }

    /// The repository at its branch.
    fn at_branch(&self) -> ModelId {
        self.id.at(self.branch())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id.repo(), self.branch())
    }
}

/// What a commit is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Its first line.
    pub message: String,
    /// More about it; may be empty.
    pub description: String,
}

/// Watches bytes go out. `()` watches nothing.
pub trait Watch: Sync {
    /// So many bytes will be read or sent, unless they turn out to be there.
    fn begin(&self, _bytes: u64) {}
    /// So many bytes more are done with, by sending or otherwise.
    fn advance(&self, _bytes: u64) {}
    /// A decision worth knowing.
    fn note(&self, _text: &str) {}
}

impl Watch for () {}

/// How a file got to the Hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// The branch has it.
    Unchanged,
    /// The storage had it.
    Known,
    /// It goes inside the commit.
    Inline,
    /// One PUT to the storage.
    Basic,
    /// A PUT for each part.
    Multipart,
    /// Chunks, by hf-xet.
    Xet,
}

/// A file that the Hub has, or that the commit will carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// How it got there.
    pub how: How,
}

/// A commit that was made, or was not needed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Published {
    /// The commit with everything in it.
    pub commit: String,
    /// The commit it was made on.
    pub parent: Option<String>,
    /// Whether it was made now: if not, the branch had everything.
    pub changed: bool,
    /// Its address.
    pub url: String,
    /// The address of the pull request.
    pub pull_request: Option<String>,
    /// Whether the Hub shows the files as they were sent: it may be slow to.
    pub shown: bool,
}
