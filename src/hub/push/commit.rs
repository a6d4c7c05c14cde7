//! One commit that cannot happen twice.
//!
//! The commit names its parent, and the Hub takes it only if the branch is still there. So when nobody knows what became of a
//! request (an error of the server, a connection that broke), it is safe to look where the branch is now: at the parent,
//! nothing happened and the request can be sent again; elsewhere, and every file is as the request wanted it, it was carried
//! out; elsewhere with other files, somebody else was faster. The Hub limits commits: a wait that it asks for is waited, or
//! told if it is long.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::http::{Call, Http, Later, Payload, corrupt};
use super::super::id::{ModelId, is_commit};
use super::super::listing::{Hash, Listing, api, commit_of, list};
use super::hash::{Hashes, base64};
use super::plan::named;
use super::weights::Weights;
use super::{Published, Target, Words};
use crate::error::{Error, HubFailure, Result, printable};

/// How often a plan moves on to a new head that has nothing to do with it.
const MOST_MOVES: u32 = 5;

/// A change to one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// An object of the storage.
    Large {
        path: String,
        sha256: String,
        size: u64,
    },
    /// Bytes.
    Inline {
        path: String,
        bytes: Vec<u8>,
        hashes: Hashes,
    },
    Delete {
        path: String,
    },
}

impl Operation {
    pub(super) fn path(&self) -> &str {
        match self {
            Self::Large { path, .. } | Self::Inline { path, .. } | Self::Delete { path } => path,
        }
    }

    /// Whether a commit has the file as this change wants it.
    pub(super) fn is_done(&self, listing: &Listing) -> bool {
        match (self, listing.file(self.path())) {
            (Self::Delete { .. }, found) => found.is_none(),
            (Self::Large { sha256, size, .. }, Some(found)) => {
                found.size == *size && found.hash == Hash::Sha256(sha256.clone())
            }
            (Self::Inline { hashes, .. }, Some(found)) => is_same(hashes, found.size, &found.hash),
            (_, None) => false,
        }
    }

    fn line(&self) -> Value {
        match self {
            Self::Large { path, sha256, size } => {
                json!({ "key": "lfsFile", "value": { "path": path, "algo": "sha256", "oid": sha256, "size": size } })
            }
            Self::Inline { path, bytes, .. } => {
                json!({ "key": "file", "value": { "content": base64(bytes), "path": path, "encoding": "base64" } })
            }
            Self::Delete { path } => json!({ "key": "deletedFile", "value": { "path": path } }),
        }
    }
}

/// Whether the Hub's file has these bytes.
pub(super) fn is_same(hashes: &Hashes, size: u64, hash: &Hash) -> bool {
    let same = match hash {
        Hash::Sha256(hex) => *hex == hashes.sha256,
        Hash::Git(hex) => *hex == hashes.git,
    };
    same && size == hashes.size
}

/// A commit to be made.
pub(super) struct Commit<'a> {
    pub(super) http: &'a Http,
    pub(super) target: &'a Target,
    pub(super) words: &'a Words,
    pub(super) operations: &'a [Operation],
    /// All files of what is published, those that are not changed among them.
    pub(super) kept: &'a BTreeSet<String>,
    /// What the branch was when the changes were made up; none of a repository without a commit.
    pub(super) parent: Option<&'a Listing>,
}

/// Where the branch is after a request of which nobody knows what became of it.
enum Found {
    /// Every file is as wanted.
    Done { commit: String, pull_request: Option<String> },
    /// Where it was.
    Unmoved,
    /// Somebody else's.
    Moved(Box<Listing>),
}

/// A commit and the address of its pull request.
type Made = (String, Option<String>);

/// A request that made no commit, as far as it says.
struct Failed {
    error: Box<Error>,
    /// The wait that the Hub asks for before the next one.
    wait: Option<Duration>,
    /// Whether another request would do no good now.
    is_final: bool,
}

impl Failed {
    fn later(later: &Later, what: &str) -> Self {
        let error = Box::new(later.told(what));
        Self { error, wait: later.wait, is_final: later.is_too_long() }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let unknown = matches!(
            error,
            Error::Hub { kind: HubFailure::Network | HubFailure::Corrupt | HubFailure::Moved, .. }
        );
        Self { error: Box::new(error), wait: None, is_final: !unknown }
    }
}

fn is_moved(error: &Error) -> bool {
    matches!(error, Error::Hub { kind: HubFailure::Moved, .. })
}

impl Commit<'_> {
    /// Makes it, once, or says why it cannot be made.
    pub(super) fn make(&self) -> Result<Published> {
        let what = self.target.to_string();
        let proposals = if self.target.pull_request {
            Some(proposals(self.http, &self.target.id)?)
        } else {
            None
        };
        let mut moved: Option<Listing> = None;
        let (mut failures, mut moves) = (0, 0);
        loop {
            self.http.check_cancelled()?;
            let parent = moved.as_ref().or(self.parent);
            let posted = self.post(parent.map(|listing| listing.commit.as_str()), &what);
            let Failed { error, wait, is_final } = match posted {
                Ok((commit, pull_request)) => {
                    let shown = self.check(&commit, parent)?;
                    return Ok(Published { shown, ..self.published(commit, parent, pull_request) });
                }
                Err(failed) => failed,
            };
            if is_final {
                return Err(*error);
            }
            match self.look(parent, proposals.as_ref())? {
                Found::Done { commit, pull_request } => {
                    return Ok(self.published(commit, parent, pull_request));
                }
                Found::Moved(now) if moves < MOST_MOVES && self.is_disjoint(parent, &now) => {
                    moves += 1;
                    moved = Some(*now);
                    self.http.wait(wait.unwrap_or_default())?;
                }
                Found::Moved(now) => return Err(self.overtaken(parent, &now)),
                Found::Unmoved if failures >= self.http.settings().retries || is_moved(&error) => {
                    return Err(*error);
                }
                Found::Unmoved => {
                    self.http.wait(wait.unwrap_or_else(|| self.http.pause(failures)))?;
                    failures += 1;
                    // What was under way may have arrived while we waited.
                    if let Found::Done { commit, pull_request } =
                        self.look(parent, proposals.as_ref())?
                    {
                        return Ok(self.published(commit, parent, pull_request));
                    }
                }
            }
        }
    }

    /// Sends the request once: the commit it made, and its pull request.
    fn post(&self, parent: Option<&str>, what: &str) -> Result<Made, Failed> {
        let mut url = self.http.url(api(&self.target.id).chain(["commit", self.target.branch()]));
        if self.target.pull_request {
            url.query_pairs_mut().append_pair("create_pr", "1");
        }
        let mut header =
            json!({ "summary": self.words.message, "description": self.words.description });
        if let Some(parent) = parent {
            header["parentCommit"] = json!(parent);
        }
        let mut body = json!({ "key": "header", "value": header }).to_string();
        body.push('\n');
        for operation in self.operations {
            body.push_str(&operation.line().to_string());
            body.push('\n');
        }
        let mut call =
            Call::post(url, what, Payload::Bytes(body.as_bytes(), "application/x-ndjson"));
        call.patience = Some(self.http.settings().silence.saturating_mul(4));
        let answer = match self.http.send_once(&call)? {
            Ok(answer) => answer.json(what)?,
            Err(later) => return Err(Failed::later(&later, what)),
        };
        let commit =
            answer.get("commitOid").and_then(Value::as_str).filter(|commit| is_commit(commit));
        let commit = commit
            .ok_or_else(|| corrupt(what, "the Hub does not say which commit it made".into()))?;
        let pull_request = answer.get("pullRequestUrl").and_then(Value::as_str).map(printable);
        Ok((commit.to_owned(), pull_request))
    }

    /// Where the branch is now.
    fn look(
        &self,
        parent: Option<&Listing>,
        proposals_before: Option<&BTreeSet<(String, String)>>,
    ) -> Result<Found> {
        if let Some(before) = proposals_before {
            return self.look_for_proposal(before);
        }
        let head = match commit_of(self.http, &self.target.at_branch()) {
            Ok(head) => head,
            Err(Error::Hub { kind: HubFailure::Missing, .. }) if parent.is_none() => {
                return Ok(Found::Unmoved);
            }
            Err(error) => return Err(error),
        };
        if parent.is_some_and(|parent| parent.commit == head) {
            return Ok(Found::Unmoved);
        }
        let listing = list(self.http, &self.target.id, &head)?;
        if self.operations.iter().all(|operation| operation.is_done(&listing)) {
            return Ok(Found::Done { commit: head, pull_request: None });
        }
        Ok(Found::Moved(Box::new(listing)))
    }

    /// A pull request is a branch of its own: whether there is a new one with our files.
    fn look_for_proposal(&self, before: &BTreeSet<(String, String)>) -> Result<Found> {
        for (reference, commit) in proposals(self.http, &self.target.id)?.difference(before) {
            let listing = list(self.http, &self.target.id, commit)?;
            if self.operations.iter().all(|operation| operation.is_done(&listing)) {
                let number = reference.rsplit('/').next().unwrap_or_default();
                let address = ["discussions", number];
                let address = self.http.url(self.target.id.repo().split('/').chain(address));
                return Ok(Found::Done {
                    commit: commit.clone(),
                    pull_request: Some(address.to_string()),
                });
            }
        }
        Ok(Found::Unmoved)
    }

    /// Whether what happened meanwhile has nothing to do with what is published.
    fn is_disjoint(&self, parent: Option<&Listing>, now: &Listing) -> bool {
        let deletes =
            self.operations.iter().any(|operation| matches!(operation, Operation::Delete { .. }));
        // Weights in another layout are the same checkpoint's.
        let weights = Weights::among(self.kept.iter().map(String::as_str));
        let ours = |path: &String| {
            self.kept.contains(path)
                || weights.include(path)
                || self.operations.iter().any(|operation| operation.path() == path)
        };
        // Who deletes what is not here must have seen all that is there.
        !deletes && !differences(parent, now).iter().any(ours)
    }

    fn overtaken(&self, parent: Option<&Listing>, now: &Listing) -> Error {
        let changed = differences(parent, now);
        let names =
            if changed.is_empty() { String::new() } else { format!(": {}", named(&changed)) };
        Error::Hub {
            what: self.target.to_string(),
            kind: HubFailure::Moved,
            problem: format!(
                "somebody else committed meanwhile ({}){names}; nothing of this was committed",
                short(&now.commit)
            ),
            hint:
                "look at what they changed; then run the same command again to publish on top of it"
                    .into(),
        }
    }

    /// Fails if the commit that the Hub says it made has other files than it should. Says whether the Hub shows them at all:
    /// one that is slow to, or still shows what was there before, undoes nothing.
    fn check(&self, commit: &str, parent: Option<&Listing>) -> Result<bool> {
        let listing = match list(self.http, &self.target.id, commit) {
            Ok(listing) => listing,
            Err(Error::Hub { kind: HubFailure::Network | HubFailure::Missing, .. }) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        match self.operations.iter().find(|operation| !operation.is_done(&listing)) {
            None => Ok(true),
            Some(_) if differences(parent, &listing).is_empty() => Ok(false),
            Some(operation) => Err(Error::Hub {
                what: self.target.to_string(),
                kind: HubFailure::Corrupt,
                problem: format!(
                    "the commit {} was made, but its `{}` is not what was sent",
                    short(commit),
                    operation.path()
                ),
                hint: "look at the commit on the Hub; the same command again sends what differs"
                    .into(),
            }),
        }
    }

    fn published(
        &self,
        commit: String,
        parent: Option<&Listing>,
        pull_request: Option<String>,
    ) -> Published {
        let repo = self.target.id.repo().split('/');
        let url = self.http.url(repo.chain(["commit", &commit])).to_string();
        let parent = parent.map(|listing| listing.commit.clone());
        Published { commit, parent, changed: true, url, pull_request, shown: true }
    }
}

/// Files that two commits do not have in common.
fn differences(before: Option<&Listing>, now: &Listing) -> Vec<String> {
    let mut paths: BTreeSet<&str> = now.files.iter().map(|file| file.path.as_str()).collect();
    paths.extend(before.iter().flat_map(|before| &before.files).map(|file| file.path.as_str()));
    let differs = |path: &&str| before.and_then(|before| before.file(path)) != now.file(path);
    paths.into_iter().filter(differs).map(str::to_owned).collect()
}

/// The pull requests of a repository: reference and commit.
fn proposals(http: &Http, id: &ModelId) -> Result<BTreeSet<(String, String)>> {
    let what = id.repo();
    let mut url = http.url(api(id).chain(["refs"]));
    url.query_pairs_mut().append_pair("include_prs", "1");
    let answer = http.send(&Call::get(url, what))?.json(what)?;
    let listed = answer.get("pullRequests").and_then(Value::as_array);
    let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    let read = |entry: &Value| {
        let commit = text(entry, "targetCommit").filter(|commit| is_commit(commit))?;
        Some((text(entry, "ref")?, commit))
    };
    Ok(listed.into_iter().flatten().filter_map(read).collect())
}

/// The start of a commit's name, as people write it.
pub(super) fn short(commit: &str) -> &str {
    commit.get(..8).unwrap_or(commit)
}
