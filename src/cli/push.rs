//! `push`: a directory to a repository of the Hub.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use clap::Args;
use serde_json::{Value, json};

use super::card_facts;
use super::failure::Failure;
use super::process;
use super::progress::Watcher;
use super::session::Session;
use super::units::{counted, size};
use crate::audit::ReadObserver;
use crate::checkpoint::CARD_FILE;
use crate::engine::Observer as _;
use crate::error::{Error, Result};
use crate::hub::push::{
    CardWish, Change, Folder, FolderOptions, Hashes, How, LocalFile, Origin, Plan, Publication,
    Published, Readme, Stored, Survey, Target, Visibility, Watch, Words, card, find_licenses,
    origins, plan, readme, refuse_offline, survey,
};
use crate::hub::{Http, Listing, ModelId};

/// Large files on their way at once.
const AT_ONCE: usize = 4;

/// Publish a directory on the Hugging Face Hub, in one commit
///
/// The directory is verified first; only what the Hub lacks is sent, and what was sent is what was verified. One commit names
/// everything, made on the commit that was looked at: the branch never shows half a model, and running the command again after
/// any failure sends what is missing and commits once. The token is that of `hf auth login`, or `HF_TOKEN`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery push merged org/merged --private
  elo-surgery push merged org/merged --dry-run     # what would be sent, and the model card
  elo-surgery push work/align/model org/elo --branch align --message \"after aligning\"
  elo-surgery push merged org/merged --pr")]
pub(super) struct Push {
    /// Directory of a model or an adapter
    pub(super) dir: PathBuf,
    /// Repository: `org/name`; it is made unless it is there
    #[arg(value_name = "ORG/NAME")]
    pub(super) repo: String,
    /// Only members may see the repository
    #[arg(long)]
    pub(super) private: bool,
    /// Branch to commit to; it is made unless it is there, from `main` [default: main]
    #[arg(long, value_name = "NAME")]
    pub(super) branch: Option<String>,
    /// Open a pull request instead
    #[arg(long, conflicts_with = "branch")]
    pub(super) pr: bool,
    /// First line of the commit's message
    #[arg(long, short, value_name = "TEXT")]
    pub(super) message: Option<String>,
    /// More about the commit
    #[arg(long, value_name = "TEXT")]
    pub(super) description: Option<String>,
    /// Leave out files whose path matches; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(super) exclude: Vec<String>,
    /// Delete files of the repository that the directory lacks; old weights of another layout go without it
    #[arg(long)]
    pub(super) delete: bool,
    /// The model card's base model, where the record names directories; may be repeated
    #[arg(long, value_name = "ORG/NAME")]
    pub(super) base_model: Vec<String>,
    /// Write the model card anew, whatever README.md is there
    #[arg(long, conflicts_with = "no_model_card")]
    pub(super) card: bool,
    /// Make no model card
    #[arg(long)]
    pub(super) no_model_card: bool,
    /// Publish although files are not what `elo-surgery.json` records
    #[arg(long)]
    pub(super) allow_changed: bool,
    /// Follow links that leave the directory
    #[arg(long)]
    pub(super) follow_symlinks: bool,
    /// Show what would be published and change nothing
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
}

/// Publishes, or shows what would be.
pub(super) fn run(arguments: &Push, session: &Session) -> Result<(), Failure> {
    let target = arguments.target()?;
    let cancelled = process::cancellation();
    let http = session.hub.hub()?.http();
    // Before anything is read: it would be refused in the end.
    refuse_offline(http, &target)?;
    let folder = arguments.read(session, &cancelled)?;
    for warning in &folder.warnings {
        session.warn(warning);
    }
    for (name, why) in &folder.left_out {
        session.detail(&format!("left out: {name} ({why})"));
    }
    if arguments.dry_run {
        let found = survey(http, &target)?;
        let target = target.renamed(&found);
        let head = found.head.as_ref();
        let draft = arguments.draft(http, &target, &folder, head)?;
        return show(&Shown { arguments, target: &target, found: &found, draft: &draft }, session);
    }
    let publication = Publication::begin(http, target)?;
    let pushed = arguments.publish(http, &publication, &folder, session, &cancelled)?;
    if session.json { session.print_json(&pushed.json()) } else { pushed.tell(session) }
}

/// What is published, and how it is called.
struct Draft {
    plan: Plan,
    /// Whose README.md the repository gets.
    readme: Readme,
    /// The card that is made.
    card: Option<String>,
    words: Words,
}

impl Draft {
    /// Files of the directory that are sent.
    fn files<'f>(&self, folder: &'f Folder) -> Vec<&'f LocalFile> {
        let sent: BTreeSet<&str> = self.plan.items.iter().map(|item| item.path.as_str()).collect();
        let made = |name: &str| name == CARD_FILE && self.card.is_some();
        folder
            .files
            .iter()
            .filter(|file| sent.contains(file.name.as_str()) && !made(&file.name))
            .collect()
    }
}

impl Push {
    /// Sends what the Hub lacks of a folder, and commits it with everything that was given to the publication before.
    pub(super) fn publish(
        &self,
        http: &Http,
        publication: &Publication<'_>,
        folder: &Folder,
        session: &Session,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Pushed, Failure> {
        let target = publication.target();
        let mut draft = self.draft(http, target, folder, publication.head())?;
        let asked = draft.files(folder);
        publication.ask(&asked)?;
        let ignored = asked.iter().filter(|file| publication.is_ignored(&file.name));
        let ignored = ignored
            .map(|file| format!("`{}` is left out by the repository's `.gitignore`", file.name));
        let ignored: Vec<String> = ignored.collect();
        draft.plan.leave_out(&|path| publication.is_ignored(path));
        let notes = [ignored, self.notes(target, &draft.plan)].concat();
        for note in &notes {
            session.note(note);
        }
        send(publication, &draft.files(folder), session, cancelled)?;
        if let Some(text) = &draft.card {
            publication.put(CARD_FILE, text.clone().into_bytes())?;
        }
        folder.check_unchanged()?;
        let deleted = draft.plan.deleted();
        let published = publication.commit(&draft.words, &deleted)?;
        let (target, user) = (target.clone(), publication.user().to_owned());
        Ok(Pushed { target, user, files: publication.given(), deleted, notes, published })
    }

    /// Decisions about the repository.
    fn notes(&self, target: &Target, plan: &Plan) -> Vec<String> {
        let asked = self.repo.split('@').next().unwrap_or_default();
        let name = target.id.repo();
        let renamed = (asked != name).then(|| format!("`{asked}` is called `{name}` now"));
        renamed.into_iter().chain(plan.notes()).collect()
    }

    pub(super) fn target(&self) -> Result<Target, Failure> {
        let full = "the full form: `elo-surgery push DIR org/name`";
        for id in &self.base_model {
            if ModelId::parse(id).is_none() {
                return Err(Failure::usage(
                    format!("`--base-model {id}` is no model of the Hub"),
                    "name it as `org/name`",
                ));
            }
        }
        let id = ModelId::parse(&self.repo).ok_or_else(|| {
            Failure::usage(format!("`{}` is no name of a repository", self.repo), full)
        })?;
        let id = match (&self.branch, id.revision()) {
            (Some(_), Some(_)) => {
                return Err(Failure::usage(
                    "the branch is given twice",
                    "leave out `--branch`, or the part after `@`",
                ));
            }
            (Some(branch), None) => {
                ModelId::parse(&format!("{}@{branch}", id.repo())).ok_or_else(|| {
                    Failure::usage(
                        format!("`--branch {branch}` is no name of a branch"),
                        "letters, digits, `-`, `_`, `.` and `/`",
                    )
                })?
            }
            (None, _) => id,
        };
        Ok(Target::new(id, self.private, self.pr)?)
    }

    /// Reads the directory, watched.
    pub(super) fn read(
        &self,
        session: &Session,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Folder, Failure> {
        let options = FolderOptions {
            exclude: self.exclude.clone(),
            allow_changed: self.allow_changed,
            follow_symlinks: self.follow_symlinks,
            elsewhere: BTreeSet::new(),
        };
        let watcher = Watcher::new(session, Arc::clone(cancelled));
        let read = Folder::read(&self.dir, &options, &Watched(&watcher), &|| stop(cancelled));
        watcher.finish();
        Ok(read?)
    }

    fn draft(
        &self,
        http: &Http,
        target: &Target,
        folder: &Folder,
        head: Option<&Listing>,
    ) -> Result<Draft, Failure> {
        let wish = match (self.card, self.no_model_card) {
            (true, _) => CardWish::Always,
            (_, true) => CardWish::Never,
            _ => CardWish::Missing,
        };
        let choice = readme(http, target, folder, head, wish)?;
        let card = match choice {
            Readme::Made => {
                let facts = card_facts::of(folder.root())?;
                let mut models = origins(folder.provenance.as_ref(), &facts);
                self.name_models(&mut models);
                find_licenses(http, &mut models);
                let title = target.id.repo().split_once('/').map_or("", |(_, name)| name);
                Some(card(folder, title, &models, &facts))
            }
            _ => None,
        };
        let mut keep = BTreeSet::new();
        if matches!(choice, Readme::Theirs | Readme::Nobodys) {
            keep.insert(CARD_FILE.to_owned());
        }
        let hashes = card.as_ref().map(|text| Hashes::of(text.as_bytes()));
        let made: Vec<(&str, &Hashes)> = hashes.iter().map(|hashes| (CARD_FILE, hashes)).collect();
        let plan = plan(folder, head, &keep, &made, self.delete);
        Ok(Draft { plan, readme: choice, card, words: self.words(folder)? })
    }

    /// Puts the names that were given onto the models of the record, if they are as many; else in their place.
    fn name_models(&self, models: &mut Vec<Origin>) {
        let named = &self.base_model;
        if !named.is_empty() && models.len() != named.len() {
            let role = "base model".to_owned();
            let model = || Origin { role, name: String::new(), id: None, license: None };
            *models = vec![model(); named.len()];
        }
        for (model, id) in models.iter_mut().zip(named) {
            (model.id, model.name) = (Some(id.clone()), id.clone());
        }
    }

    fn words(&self, folder: &Folder) -> Result<Words, Failure> {
        let provenance = folder.provenance.as_ref();
        let message = match (&self.message, card_facts::of(folder.root())?.stage, provenance) {
            (Some(message), ..) => message.clone(),
            (None, Some(stage), _) => format!("Add {stage} of an ELO run"),
            (None, None, Some(provenance)) => {
                format!("Add {} by elo-surgery {}", provenance.operation.verb, provenance.version)
            }
            (None, None, None) => "Add model".to_owned(),
        };
        let plan = || provenance.map(|provenance| format!("Plan: {}", provenance.plan));
        let description = self.description.clone().or_else(plan).unwrap_or_default();
        Ok(Words { message, description })
    }
}

/// Sends everything; a file that fails ends the rest.
fn send(
    publication: &Publication<'_>,
    files: &[&LocalFile],
    session: &Session,
    cancelled: &Arc<AtomicBool>,
) -> Result<(), Failure> {
    let watcher = Watcher::new(session, Arc::clone(cancelled));
    let watch = Watched(&watcher);
    watch.begin(files.iter().map(|file| file.hashes.size).sum());
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None::<Error>));
    let work = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = publication.upload_read(file, &watch) {
                next.store(files.len(), Ordering::Relaxed);
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..AT_ONCE.min(files.len()) {
            scope.spawn(work);
        }
        work();
    });
    watcher.finish();
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Fails if the run is to end.
pub(super) fn stop(cancelled: &AtomicBool) -> Result<()> {
    let stopped = process::is_cancelled(cancelled);
    if stopped { Err(Error::Interrupted { resumable: true }) } else { Ok(()) }
}

/// The watcher of the terminal, as publications know it.
struct Watched<'a>(&'a Watcher<'a>);

impl Watch for Watched<'_> {
    fn begin(&self, bytes: u64) {
        self.0.begin(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }

    fn note(&self, text: &str) {
        self.0.note(text);
    }
}

/// What a dry run shows.
struct Shown<'a> {
    arguments: &'a Push,
    target: &'a Target,
    found: &'a Survey,
    draft: &'a Draft,
}

fn show(shown: &Shown<'_>, session: &Session) -> Result<(), Failure> {
    let Shown { arguments, target, found, draft } = *shown;
    let parent = found.head.as_ref().map(|head| head.commit.clone());
    let Words { message, description } = &draft.words;
    let notes = arguments.notes(target, &draft.plan);
    let readme = match draft.readme {
        Readme::Local => "the directory's",
        Readme::Made => "made from elo-surgery.json",
        Readme::Theirs => "the repository's, which a person wrote; `--card` replaces it",
        Readme::Nobodys => "none",
    };
    if session.json {
        return session.print_json(&json!({
            "command": "push",
            "dry_run": true,
            "directory": arguments.dir,
            "repository": target.id.repo(),
            "exists": found.repository.is_some(),
            "private": target.private || found.repository == Some(Visibility::Private),
            "branch": target.branch(),
            "branch_exists": found.branch,
            "pull_request": target.pull_request,
            "parent": parent,
            "message": message,
            "description": description,
            "files": draft.plan.items,
            "bytes": draft.plan.bytes(),
            "notes": notes,
            "readme": readme,
            "card": draft.card,
        }));
    }
    let mut text = String::new();
    let state = match (found.repository, target.private) {
        (None, true) => "would be made, private",
        (None, false) => "would be made, public",
        (Some(Visibility::Private), _) => "there, private",
        (Some(Visibility::Public), _) => "there, public",
    };
    let _ = writeln!(text, "repository  {}  ({state})", target.id.repo());
    let branch = match (target.pull_request, found.branch, found.repository.is_some()) {
        (true, ..) => "a pull request against main".to_owned(),
        (_, false, true) if target.branch() != "main" => {
            format!("{}  (would be made)", target.branch())
        }
        _ => target.branch().to_owned(),
    };
    let _ = writeln!(text, "branch      {branch}");
    let _ = writeln!(text, "parent      {}", parent.as_deref().unwrap_or("none: the first commit"));
    let _ = writeln!(text, "message     {message}");
    for line in description.lines() {
        let _ = writeln!(text, "            {line}");
    }
    let _ = writeln!(text, "README.md   {readme}");
    text.push('\n');
    text.push_str(&table(&draft.plan));
    if let Some(card) = &draft.card {
        let _ = write!(text, "\n--- {CARD_FILE} ---\n{card}");
    }
    session.print(&text)?;
    for note in &notes {
        session.note(note);
    }
    Ok(())
}

/// Files with what happens to them.
fn table(plan: &Plan) -> String {
    let width = plan.items.iter().map(|item| item.path.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for item in &plan.items {
        let what = match item.change {
            Change::New => "new",
            Change::Changed => "changed",
            Change::Unchanged => "there already",
            Change::Deleted => "would be deleted",
        };
        let more = match (item.change, item.large) {
            (Change::New | Change::Changed, true) => "  large file",
            (Change::New | Change::Changed, false) => "  in the commit",
            _ => item.reason.unwrap_or_default(),
        };
        let line =
            format!("  {:width$}  {:>10}  {what}  {}", item.path, size(item.size), more.trim());
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let sent = plan
        .items
        .iter()
        .filter(|item| matches!(item.change, Change::New | Change::Changed))
        .count() as u64;
    if plan.is_empty() {
        text.push_str("nothing to do: the branch has everything\n");
    } else {
        let deleted = plan.deleted().len() as u64;
        let deleted = if deleted == 0 {
            String::new()
        } else {
            format!(", {} to delete", counted(deleted, "file"))
        };
        let _ = writeln!(
            text,
            "{} with {} to send{deleted}",
            counted(sent, "file"),
            size(plan.bytes())
        );
    }
    text
}

/// What was published.
pub(super) struct Pushed {
    target: Target,
    user: String,
    /// Every file of it, and how it got to the Hub.
    files: Vec<(String, Stored)>,
    deleted: Vec<String>,
    notes: Vec<String>,
    published: Published,
}

impl Pushed {
    /// For programs.
    pub(super) fn json(&self) -> Value {
        let Self { target, published, .. } = self;
        let files = self.files.iter();
        let files = files.map(|(path, file)| json!({ "path": path, "size": file.size, "sha256": file.sha256, "how": file.how }));
        json!({
            "command": "push",
            "repository": target.id.repo(),
            "branch": target.branch(),
            "user": self.user,
            "commit": published.commit,
            "parent": published.parent,
            "changed": published.changed,
            "url": published.url,
            "pull_request": published.pull_request,
            "shown": published.shown,
            "files": files.collect::<Vec<_>>(),
            "sent_bytes": self.sent_bytes(),
            "deleted": self.deleted,
            "notes": self.notes,
        })
    }

    /// For people.
    pub(super) fn tell(&self, session: &Session) -> Result<(), Failure> {
        let Self { target, published, .. } = self;
        if published.changed {
            let there = self.files.iter().filter(|(_, file)| !is_sent(file.how)).count() as u64;
            let there = match there {
                0 => String::new(),
                there => format!(", {} there already", counted(there, "file")),
            };
            session.say(&format!("{} sent{there}", size(self.sent_bytes())));
        } else {
            session.say(&format!("nothing to do: {target} has everything"));
        }
        if !published.shown {
            session
                .note("the Hub took the commit but does not show its files yet: look again later");
        }
        let url = published.pull_request.as_ref().unwrap_or(&published.url);
        session.print(&format!("{url}\n"))
    }

    fn sent_bytes(&self) -> u64 {
        let sent = self.files.iter().filter(|(_, file)| is_sent(file.how));
        sent.map(|(_, file)| file.size).sum()
    }
}

/// Whether bytes went to the Hub.
fn is_sent(how: How) -> bool {
    matches!(how, How::Basic | How::Multipart | How::Xet | How::Inline)
}
