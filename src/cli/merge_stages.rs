//! Files of several documents: what the earlier ones make lies beside the result until that is there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::failure::{Failure, Origins};
use super::merge::Merge;
use super::progress::Watcher;
use super::session::Session;
use super::surgery::{How, Planned, Surgical, carry_out};
use super::{process, summary};
use crate::engine::execute_on;
use crate::error::{Error, IoContext as _};
use crate::ops::merge::{Config, Intermediate};
use crate::plan::Plan;

/// The models that earlier documents made.
#[derive(Default)]
pub(super) struct Stages {
    places: HashMap<PathBuf, PathBuf>,
    made: Vec<Intermediate>,
}

impl Stages {
    /// Where a model of this name lies.
    pub(super) fn at(&self, name: &Path) -> Option<&Path> {
        self.places.get(name).map(PathBuf::as_path)
    }

    /// What they were made of, in order.
    pub(super) fn made(&self) -> &[Intermediate] {
        &self.made
    }
}

/// Carries out one document after the other. What earlier documents made is kept until the last is done, and used again by the
/// next run if nothing has changed that it was made of.
pub(super) fn run(merge: &Merge, documents: &[Config], session: &Session) -> Result<(), Failure> {
    let how = merge.how();
    let (Some((last, before)), Some(out)) = (documents.split_last(), &how.out) else {
        let full = format!("the full form: `{}`", Merge::FULL_FORM);
        return Err(Failure::usage("no `--out DIR` is given", full));
    };
    if out.exists() && !how.overwrite && !how.dry_run {
        return Err(Error::OutputExists { path: out.clone() }.into());
    }
    // What the last document lacks is better known before the first is done.
    let names: Vec<&Path> =
        before.iter().filter_map(|config| config.name.as_deref().map(Path::new)).collect();
    for named in documents.iter().flat_map(Config::models) {
        if !names.contains(&named.path.as_path()) {
            merge.open(named, session)?;
        }
    }
    let home = home(out);
    let mut stages = Stages::default();
    for config in before {
        let name = config.name.clone().unwrap_or_default();
        if how.dry_run && before.iter().any(|other| config.uses(other)) {
            session.say(&format!("`{name}` is planned when the documents before it are done"));
            continue;
        }
        let (plan, parents) = merge.plan(config, &stages, session)?;
        let stage = home.join(format!("{name}-{}", fingerprint(&plan)));
        if how.dry_run {
            session.say(&format!("`{name}`, an intermediate model:"));
            let device = how.device.foresee(&plan)?;
            summary::dry_run(&plan, &stage, false, how.budget(&plan)?, &device, session)?;
        } else if stage.is_dir() {
            session.say(&format!("`{name}` is there from an earlier run"));
        } else {
            std::fs::create_dir_all(&home).at("make", &home)?;
            make(&plan, &stage, how, session)?;
            session.say(&format!("`{name}` is made"));
        }
        let name = PathBuf::from(name);
        stages.places.insert(name.clone(), stage);
        stages.made.push(Intermediate { name, parents });
    }
    if how.dry_run && before.iter().any(|other| last.uses(other)) {
        session.say("the result is planned when the documents before it are done");
        return Ok(());
    }
    let (plan, _) = merge.plan(last, &stages, session)?;
    let mut origins = Origins::default();
    origins.flag("--out", out);
    let planned = Planned { plan, out: Some(out.clone()), origins };
    carry_out(&planned, how, Merge::FULL_FORM, session)?;
    if home.is_dir() && !how.dry_run {
        std::fs::remove_dir_all(&home).at("remove", &home)?;
    }
    Ok(())
}

/// The directory of intermediate models: beside the result, on its filesystem.
fn home(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!(".{name}.elo-stages"))
}

/// What a stage is made of: its plan, and the files that this reads.
fn fingerprint(plan: &Plan) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(plan.digest().as_bytes());
    for source in &plan.sources {
        let path = source.path.to_string_lossy();
        hasher.update(format!("{path}\0{:?}\0", source.identity).as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

fn make(plan: &Plan, stage: &Path, how: &How, session: &Session) -> Result<(), Failure> {
    let budget = how.budget(plan)?;
    let execution = how.execution(stage.to_owned(), budget);
    let chosen = how.device.open(plan, how.device_memory, budget.threads)?;
    session.hub.fetch_for(plan, session)?;
    let watcher = Watcher::new(session, process::cancellation());
    let report = execute_on(chosen.device.as_ref(), plan, &execution, &watcher);
    watcher.finish();
    report?;
    Ok(())
}
