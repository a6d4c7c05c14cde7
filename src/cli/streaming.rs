//! `--push`: the result of a surgery is published while it is made.
//!
//! Each shard is uploaded as soon as it is complete, beside the work on the next ones; with `--no-keep` it is removed here once the
//! Hub has it. Nothing is committed before everything is uploaded: the branch never shows half a model.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use serde_json::Value;

use super::device::Chosen;
use super::failure::{Failure, Origins};
use super::process;
use super::push::{Push, Pushed, stop};
use super::session::Session;
use super::summary;
use super::surgery::watched;
use crate::engine::{Execution, Observer, Report, Sink, execute_into};
use crate::error::{Error, HubFailure, Result};
use crate::format::{Digest, DigestAlgorithm, FileRecord};
use crate::hub::Http;
use crate::hub::push::{Folder, FolderOptions, Publication, Watch};
use crate::plan::Plan;

/// Where a result is published.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Publishing options")]
pub(super) struct Streaming {
    /// Publish the result on the Hub: each shard is uploaded while later ones are made, and one commit names all
    #[arg(long, value_name = "ORG/NAME")]
    push: Option<String>,
    /// Remove each shard here once the Hub has it: the disk needs room for a few shards, and no directory appears
    #[arg(long, requires = "push")]
    no_keep: bool,
    /// Only members may see the repository
    #[arg(long, requires = "push")]
    private: bool,
    /// Open a pull request
    #[arg(long, requires = "push")]
    pr: bool,
}

/// What a run that publishes needs besides its plan.
pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    pub(super) out: &'a Path,
    pub(super) origins: &'a Origins,
    pub(super) chosen: &'a Chosen,
    pub(super) execution: Execution,
    pub(super) session: &'a Session,
}

impl Streaming {
    /// The repository, if there is one.
    pub(super) fn repository(&self) -> Option<&str> {
        self.push.as_deref()
    }

    /// Where the work is done if no `--out` says so: a directory that is called like the repository.
    pub(super) fn default_out(&self) -> Option<PathBuf> {
        let name = self.push.as_deref()?.split('@').next()?.rsplit('/').next()?;
        Some(PathBuf::from(name))
    }

    /// What a dry run says of it.
    pub(super) fn foreseen(&self) -> Option<String> {
        let to = self.push.as_deref()?;
        let kept = if self.no_keep { ", no shard is kept here" } else { "" };
        let way = if self.pr { " as a pull request" } else { "" };
        Some(format!("would be published as `{to}`{way}, in one commit{kept}"))
    }

    /// The command that publishes a directory likewise.
    fn as_push(&self, dir: &Path) -> Push {
        Push {
            dir: dir.to_owned(),
            repo: self.push.clone().unwrap_or_default(),
            private: self.private,
            branch: None,
            pr: self.pr,
            message: None,
            description: None,
            exclude: Vec::new(),
            delete: false,
            base_model: Vec::new(),
            card: false,
            no_model_card: false,
            allow_changed: false,
            follow_symlinks: false,
            dry_run: false,
        }
    }

    /// Carries a plan out and publishes what comes of it.
    pub(super) fn carry_out(&self, run: Run<'_>) -> Result<(), Failure> {
        let Run { plan, out, origins, chosen, execution, session } = run;
        let push = self.as_push(out);
        let target = push.target()?;
        let http = session.hub.hub()?.http();
        // Before any work: a repository that cannot be written to is told of at once.
        let publication = Publication::begin(http, target)?;
        let cancelled = process::cancellation();
        let streamed = Streamed {
            http,
            publication: &publication,
            push: &push,
            keeps: !self.no_keep,
            session,
            cancelled: &cancelled,
            published: Mutex::new(None),
        };
        // The Hub's own names of files.
        let execution = Execution { digest: Some(DigestAlgorithm::Sha256), ..execution };
        let made = watched(plan, origins, session, chosen, |watcher| {
            streamed.made(plan, chosen, &execution, watcher)
        });
        let published = streamed.published.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (pushed, (report, time)) = match published {
            // The reason why a commit failed has its own hints.
            Some(Err(failure)) => return Err(failure),
            Some(Ok(pushed)) => (Some(pushed), made?),
            None => (None, made?),
        };
        let object = summary::done(plan, &report, &chosen.reason(), time, session);
        let pushed = match pushed {
            Some(pushed) => Ok(pushed),
            None => push
                .read(session, &cancelled)
                .and_then(|folder| push.publish(http, &publication, &folder, session, &cancelled)),
        };
        tell(object, pushed, session)
    }
}

/// Tells what was published; programs get it inside what they are told of the work, which is done even if this failed.
fn tell(
    object: Option<Value>,
    pushed: Result<Pushed, Failure>,
    session: &Session,
) -> Result<(), Failure> {
    let Some(mut object) = object else { return pushed?.tell(session) };
    if let Ok(pushed) = &pushed {
        object["push"] = pushed.json();
    }
    session.print_json(&object)?;
    pushed.map(drop)
}

/// The way of shards to the Hub.
struct Streamed<'a> {
    http: &'a Http,
    publication: &'a Publication<'a>,
    push: &'a Push,
    keeps: bool,
    session: &'a Session,
    cancelled: &'a Arc<AtomicBool>,
    /// What was published where nothing is kept, or why not, in the words of the command.
    published: Mutex<Option<Result<Pushed, Failure>>>,
}

impl Streamed<'_> {
    fn made(
        &self,
        plan: &Plan,
        chosen: &Chosen,
        execution: &Execution,
        watcher: &dyn Observer,
    ) -> Result<Report> {
        let report = execute_into(chosen.device.as_ref(), plan, execution, watcher, Some(self))?;
        let out = if self.keeps { report.out } else { self.push.repo.clone().into() };
        Ok(Report { out, ..report })
    }
}

impl Sink for Streamed<'_> {
    fn take(&self, shard: &FileRecord, path: &Path) -> Result<FileRecord> {
        let known = shard.digest.as_ref().filter(|d| d.algorithm == DigestAlgorithm::Sha256);
        let known = known.map(|digest| digest.hex.as_str());
        let stored = if self.keeps {
            self.publication.upload(&shard.file, path, known, &Silent)?
        } else {
            self.publication.store(&shard.file, path, known, &Silent)?
        };
        let digest = Digest { algorithm: DigestAlgorithm::Sha256, hex: stored.sha256 };
        Ok(FileRecord { digest: Some(digest), ..shard.clone() })
    }

    fn has(&self, shard: &FileRecord) -> Result<bool> {
        let Some(digest) = &shard.digest else { return Ok(false) };
        match self.publication.adopt(&shard.file, shard.size, &digest.hex) {
            Ok(_) => Ok(true),
            Err(Error::Hub { kind: HubFailure::Missing, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn keeps(&self) -> bool {
        self.keeps
    }

    fn complete(&self, tree: &Path, files: &[FileRecord]) -> Result<()> {
        if self.keeps {
            return Ok(());
        }
        let gone = |file: &&FileRecord| !tree.join(&file.file).exists();
        let elsewhere: BTreeSet<String> =
            files.iter().filter(gone).map(|file| file.file.clone()).collect();
        let options = FolderOptions { elsewhere, ..FolderOptions::default() };
        let folder = Folder::read(tree, &options, &Silent, &|| stop(self.cancelled))?;
        let published =
            self.push.publish(self.http, self.publication, &folder, self.session, self.cancelled);
        let (told, result) = match published {
            Err(Failure::Refused { error, .. }) => return Err(lost(*error, &options.elsewhere)),
            Err(other) => (Err(other), Err(Error::Interrupted { resumable: true })),
            Ok(pushed) => (Ok(pushed), Ok(())),
        };
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        result
    }
}

/// A commit may be refused because the Hub lost what is not here any more either.
fn lost(error: Error, elsewhere: &BTreeSet<String>) -> Error {
    match error {
        Error::Hub { what, kind: HubFailure::Refused, problem, .. } if !elsewhere.is_empty() => {
            let hint = "if it misses files that were sent before, make them again: run the command with `--restart`";
            Error::Hub { what, kind: HubFailure::Refused, problem, hint: hint.into() }
        }
        error => error,
    }
}

/// Uploads beside the work are not shown: the bar is the work's.
struct Silent;

impl Watch for Silent {}
