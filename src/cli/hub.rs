//! Models named by their id on the Hub: seen as directories while plans are made, fetched before they are read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};

use super::failure::Failure;
use super::process::{cancellation, is_cancelled};
use super::progress::Watcher;
use super::session::Session;
use super::units::{counted, size};
use crate::checkpoint::Checkpoint;
use crate::format::{Fetched, Ranges};
use crate::hub::{Hub, ModelId, Settings, View, Watch};
use crate::pipeline::project::Loaded;
use crate::plan::{Plan, SidecarContent};

/// The Hub, for one run: nothing happens before a model of it is named.
pub(super) struct Access {
    offline: bool,
    hub: OnceLock<Hub>,
    views: Mutex<BTreeMap<ModelId, View>>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("offline", &self.offline).finish_non_exhaustive()
    }
}

/// A model argument: where it is, and what it is called if that is something else.
pub(super) struct Placed {
    pub(super) path: PathBuf,
    pub(super) name: Option<String>,
}

/// Ranges of files.
type Wants = Vec<(PathBuf, Ranges)>;

impl Access {
    pub(super) fn new(offline: bool) -> Self {
        Self { offline, hub: OnceLock::new(), views: Mutex::default() }
    }

    /// The Hub as the environment and the flags say.
    pub(super) fn hub(&self) -> Result<&Hub, Failure> {
        if let Some(hub) = self.hub.get() {
            return Ok(hub);
        }
        let mut settings = Settings::from_env()?;
        settings.offline |= self.offline;
        let raised = cancellation();
        let hub = Hub::new(settings, std::sync::Arc::new(move || is_cancelled(&raised)))?;
        Ok(self.hub.get_or_init(|| hub))
    }

    /// The id that a model argument is, if it is none of a path that exists.
    pub(super) fn id_of(path: &Path) -> Option<ModelId> {
        if std::fs::symlink_metadata(path).is_ok() {
            return None;
        }
        let id = ModelId::parse(path.to_str()?)?;
        // `models/typo`, where `models` is here, is rather a path; `models/typo@main` is none.
        let near = path.parent().is_some_and(Path::is_dir);
        (id.revision().is_some() || !near).then_some(id)
    }

    /// Whether a model argument is one of the Hub.
    #[expect(clippy::unused_self, reason = "builds without the Hub know none")]
    pub(super) fn is_remote(&self, path: &Path) -> bool {
        Self::id_of(path).is_some()
    }

    /// Where a model argument leads.
    pub(super) fn place(&self, path: &Path, session: &Session) -> Result<Placed, Failure> {
        let Some(id) = Self::id_of(path) else {
            return Ok(Placed { path: path.to_owned(), name: None });
        };
        let view = self.view(&id, session)?;
        Ok(Placed { path: view.root, name: Some(view.id.to_string()) })
    }

    fn view(&self, id: &ModelId, session: &Session) -> Result<View, Failure> {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = views.get(id) {
            return Ok(view.clone());
        }
        let hub = self.hub()?;
        let view = watched(session, |watch| hub.view(id, watch))?;
        session.detail(&format!("`{id}` is `{}`", view.id));
        views.insert(id.clone(), view.clone());
        Ok(view)
    }

    /// Puts directories into a project for the models that it names by their ids: views, or whole models where they are
    /// trained with and read by other programs.
    pub(super) fn settle(
        &self,
        loaded: &mut Loaded,
        whole: bool,
        session: &Session,
    ) -> Result<(), Failure> {
        let place = |named: &Option<PathBuf>| -> Result<Option<PathBuf>, Failure> {
            let Some(id) = named.as_ref().and_then(|model| Self::id_in(loaded, model)) else {
                return Ok(named.clone());
            };
            if !whole {
                return Ok(Some(self.view(&id, session)?.root));
            }
            let hub = self.hub()?;
            Ok(Some(watched(session, |watch| hub.whole(&id, watch))?.root))
        };
        let (model, instruct) = (place(&loaded.project.model)?, place(&loaded.project.instruct)?);
        (loaded.project.model, loaded.project.instruct) = (model, instruct);
        Ok(())
    }

    /// The id that a project names a model by, if it is none of a path that exists.
    pub(super) fn id_in(loaded: &Loaded, model: &Path) -> Option<ModelId> {
        let path = loaded.path(model);
        let near = path.parent().is_some_and(Path::is_dir);
        let id = ModelId::parse(model.to_str()?)?;
        let gone = std::fs::symlink_metadata(path).is_err();
        (gone && (id.revision().is_some() || !near)).then_some(id)
    }

    /// Fetches what a plan reads, before it is carried out.
    pub(super) fn fetch_for(&self, plan: &Plan, session: &Session) -> Result<(), Failure> {
        self.fetch(wants(plan), session)
    }

    /// Fetches models whose every byte will be read.
    pub(super) fn fetch_all_of(
        &self,
        models: &[&Checkpoint],
        session: &Session,
    ) -> Result<(), Failure> {
        let shards = models.iter().flat_map(|model| model.shards());
        let whole = shards.map(|shard| (shard.path.clone(), Ranges::of(0..shard.identity.size)));
        self.fetch(whole.collect(), session)
    }

    /// Whether a plan reads what is not here yet.
    #[expect(clippy::unused_self, reason = "without the Hub nothing is fetched")]
    pub(super) fn would_fetch(&self, plan: &Plan) -> bool {
        wants(plan).iter().any(|(path, ranges)| match Fetched::of(path) {
            Ok(Some(fetched)) => ranges.iter().any(|range| !fetched.missing(range).is_empty()),
            _ => false,
        })
    }

    fn fetch(&self, wants: Wants, session: &Session) -> Result<(), Failure> {
        let partial = |(path, _): &(PathBuf, Ranges)| matches!(Fetched::of(path), Ok(Some(_)));
        let wants: Wants = wants.into_iter().filter(partial).collect();
        if wants.is_empty() {
            return Ok(());
        }
        let hub = self.hub()?;
        watched(session, |watch| hub.ensure(&wants, watch))
    }

    /// What a plan would fetch, for a dry run; nothing if no model of the Hub is in it.
    pub(super) fn outlook(&self, plan: &Plan) -> Result<Option<Outlook>, Failure> {
        let wants = wants(plan);
        let concerns = self.hub.get().is_some()
            || wants.iter().any(|(path, _)| matches!(Fetched::of(path), Ok(Some(_))));
        if !concerns {
            return Ok(None);
        }
        let need = self.hub()?.need(&wants)?;
        let known = need.missing + need.here > 0;
        Ok(known.then_some(Outlook { to_fetch: need.missing, here: need.here }))
    }

    /// What went over the network, if anything did.
    pub(super) fn traffic(&self) -> Option<Traffic> {
        let traffic = self.hub.get()?.traffic();
        (traffic.requests > 0)
            .then_some(Traffic { bytes: traffic.bytes, requests: traffic.requests })
    }
}

/// Bytes that a plan needs of the Hub.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    to_fetch: u64,
    here: u64,
}

impl Outlook {
    pub(super) fn line(self) -> String {
        format!("fetches  {} from the Hub, {} are here", size(self.to_fetch), size(self.here))
    }

    pub(super) fn json(self) -> Value {
        json!({ "to_fetch": self.to_fetch, "here": self.here })
    }
}

/// What went over the network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    bytes: u64,
    requests: u64,
}

impl Traffic {
    pub(super) fn line(self) -> String {
        format!("from the Hub: {} in {}", size(self.bytes), counted(self.requests, "request"))
    }

    pub(super) fn json(self) -> Value {
        json!({ "fetched": self.bytes, "requests": self.requests })
    }
}

/// Lets a fetch be watched.
pub(super) fn watched<T>(
    session: &Session,
    work: impl FnOnce(&dyn Watch) -> Result<T, crate::error::Error>,
) -> Result<T, Failure> {
    let watcher = Watcher::new(session, cancellation());
    let outcome = work(&watcher);
    watcher.finish();
    Ok(outcome?)
}

impl Watch for Watcher<'_> {
    fn progress(&self, done: u64, total: u64) {
        self.fetching(done, total);
    }

    fn note(&self, text: &str) {
        crate::engine::Observer::note(self, text);
    }
}

/// The bytes that a plan reads, by file.
fn wants(plan: &Plan) -> Wants {
    let mut ranges = vec![Vec::new(); plan.sources.len()];
    for part in plan.tensors.iter().flat_map(|tensor| &tensor.parts) {
        for slice in part.slices() {
            if let Some(of) = usize::try_from(slice.source.0).ok().and_then(|id| ranges.get_mut(id))
            {
                of.push(slice.bytes.clone());
            }
        }
    }
    let sources = plan.sources.iter().zip(ranges);
    let mut wants: Wants = sources
        .map(|(source, mut ranges)| {
            ranges.sort_by_key(|range| range.start);
            (source.path.clone(), ranges.into_iter().collect())
        })
        .collect();
    for sidecar in &plan.sidecars {
        if let SidecarContent::Copy { path, size } = &sidecar.content {
            wants.push((path.clone(), Ranges::of(0..*size)));
        }
    }
    wants
}
