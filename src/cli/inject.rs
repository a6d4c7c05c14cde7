//! `inject`: put trained layers back.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::arguments::{Opening, ShardSize};
use super::failure::{Failure, Origins};
use super::progress::Watcher;
use super::project::{Project, Stage, missing};
use super::session::Session;
use super::surgery::{How, Planned, Surgical, watch};
use super::{process, summary};
use crate::checkpoint::{Checkpoint, LayerSelector};
use crate::engine;
use crate::ops;
use crate::plan::Plan;

/// Put trained layers back into the model they were extracted from
///
/// The result is the model with those layers replaced, in its own names, dtypes, shards and config. Where an extract
/// records its layers (`elo-surgery.json`), `--layers` can be left out.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery inject trained --into llama-8b --layers 1,32 --out llama-8b-injected
  elo-surgery inject trained --into llama-8b --all --out llama-8b-injected
  elo-surgery inject trained --into llama-8b --in-place   # rewrites only the layers' bytes
  elo-surgery inject --undo llama-8b                      # takes an interrupted change back
  elo-surgery inject                                      # in a project: all as elo.yaml says")]
pub(super) struct Inject {
    /// The trained part: an extract, or a whole model [default: the project's pretrained part]
    part: Option<PathBuf>,
    /// The model that gets the layers [default: the project's model]
    #[arg(long, value_name = "MODEL")]
    into: Option<PathBuf>,
    /// Layers of the model to replace, counting from 1 [default: those the part records]
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true)]
    layers: Option<String>,
    /// Also replace embedding, final norm and head
    #[arg(long)]
    all: bool,
    /// Rewrite the layers inside MODEL, under an undo record, instead of writing a new model
    #[arg(long, requires = "into", conflicts_with_all = ["out", "overwrite", "shard_size", "link"])]
    in_place: bool,
    /// Restore a model whose in-place change was interrupted
    #[arg(long, value_name = "MODEL", conflicts_with_all = [
        "part", "into", "layers", "all", "in_place", "out", "overwrite", "dry_run", "shard_size",
    ])]
    undo: Option<PathBuf>,
    #[command(flatten)]
    shard_size: ShardSize,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

/// Runs one of the three forms: a new model, a change in place, or its undoing.
pub(super) fn run(verb: &Inject, session: &Session) -> Result<(), Failure> {
    match (&verb.undo, &verb.into) {
        (Some(root), _) => undo(root, session),
        (None, Some(root)) if verb.in_place => in_place(verb, root, session),
        _ => verb.run(session),
    }
}

fn undo(root: &Path, session: &Session) -> Result<(), Failure> {
    let mut origins = Origins::default();
    origins.flag("--undo", root);
    let watcher = Watcher::new(session, process::cancellation());
    let undone = engine::undo(root, &watcher);
    watcher.finish();
    let undone = undone.map_err(|error| origins.explain(error.into()))?;
    if session.json {
        let out = root.to_string_lossy();
        return session.print_json(&json!({ "command": "undo", "out": out, "undone": undone }));
    }
    session.say(&if undone {
        format!("undo: `{}` is as it was before", root.display())
    } else {
        format!("undo: `{}` holds no interrupted change", root.display())
    });
    Ok(())
}

fn in_place(verb: &Inject, root: &Path, session: &Session) -> Result<(), Failure> {
    verb.how.device.check(verb.how.device_memory)?;
    if session.hub.is_remote(root) {
        return Err(Failure::usage(
            format!("`{}` is a model of the Hub, which cannot be changed in place", root.display()),
            "give `--out DIR` instead of `--in-place`",
        ));
    }
    let Planned { plan, origins, .. } = verb.planned(session)?;
    let budget = verb.how.budget(&plan)?;
    if verb.how.dry_run {
        return summary::dry_run_in_place(&plan, root, budget, session);
    }
    let execution = verb.how.execution(root.to_owned(), budget);
    let chosen = verb.how.device.open(&plan, verb.how.device_memory, 1)?;
    watch(&plan, &origins, session, &chosen, |watcher| {
        engine::inject_in_place(chosen.device.as_ref(), &plan, root, &execution, watcher)
    })
}

impl Surgical for Inject {
    const FULL_FORM: &'static str = "elo-surgery inject PART --into MODEL --layers 1,32 --out DIR";

    fn how(&self) -> &How {
        &self.how
    }

    fn draft(
        &self,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        let project = session.project()?;
        let project = project.as_ref();
        let part = self.part(project)?;
        let into = self.into(project, origins)?;
        let out = Stage::Inject.output(self.how.out.as_ref(), project, origins);
        let part = session.open(&part, &self.opening)?;
        let into =
            session.open_with(self.opening.options().allow_unfinished(self.in_place), &into)?;
        let request = ops::Inject {
            layers: self.layers(&part, project, session, origins)?,
            all: self.all,
            shard_size: self.shard_size.shard_size,
        };
        Ok((ops::inject(&part, &into, &request)?, out))
    }
}

impl Inject {
    fn part(&self, project: Option<&Project>) -> Result<PathBuf, Failure> {
        if let Some(part) = &self.part {
            return Ok(part.clone());
        }
        let Some(project) = project else {
            return Err(missing("model", "PART", None, Self::FULL_FORM));
        };
        project.result(Stage::Pretrain).ok_or_else(|| {
            let expected = project.stage(Stage::Pretrain);
            let extract = project.stage(Stage::Extract);
            let hint = if extract.exists() {
                format!(
                    "train `{}` and save the result there, or name it: `elo-surgery inject PART`",
                    extract.display()
                )
            } else {
                "start with `elo-surgery extract`, train the result and save it there, or name a \
                 trained part: `elo-surgery inject PART`"
                    .to_owned()
            };
            Failure::usage(format!("there is no trained part at `{}`", expected.display()), hint)
        })
    }

    fn into(&self, project: Option<&Project>, origins: &mut Origins) -> Result<PathBuf, Failure> {
        if let Some(into) = &self.into {
            origins.flag("--into", into);
            return Ok(into.clone());
        }
        match project.and_then(|p| Some((p, p.model.clone()?))) {
            Some((project, model)) => {
                origins.project(&project.file, "model", &model);
                Ok(model)
            }
            None => Err(missing("model", "--into MODEL", project, Self::FULL_FORM)),
        }
    }

    /// Which layers: as told, else as the part records, else as the project's extract records, else as the project says.
    ///
    /// Training programs do not carry our record along, so the part that comes back from training seldom has one.
    fn layers(
        &self,
        part: &Checkpoint,
        project: Option<&Project>,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<Option<LayerSelector>, Failure> {
        if let Some(layers) = &self.layers {
            origins.flag("--layers", layers);
            return Ok(Some(layers.parse()?));
        }
        // What the project says of its model means nothing for another one.
        let ours = |project: &&Project| match (&self.into, &project.model) {
            (Some(into), Some(model)) => same_place(into, model),
            (into, _) => into.is_none(),
        };
        let (None, Some(project)) = (recorded(part), project.filter(ours)) else {
            return Ok(None);
        };
        let extract = project.result(Stage::Extract);
        let extract = extract.and_then(|path| Checkpoint::open(path).ok());
        let fits = |layers: &&[u64]| layers.len() as u64 == part.layers();
        if let Some(layers) = extract.as_ref().and_then(recorded).filter(fits) {
            let layers = LayerSelector::of_layers(layers);
            session.detail(&format!("layers {layers}: as the project's extract records"));
            return Ok(Some(layers));
        }
        Ok(project.layers(origins).map(|layers| layers.parse()).transpose()?)
    }
}

fn same_place(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn recorded(part: &Checkpoint) -> Option<&[u64]> {
    let map = part.provenance()?.layer_map.as_ref()?;
    (map.layers.len() as u64 == part.layers()).then_some(&map.layers)
}
