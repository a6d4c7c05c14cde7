//! Models, an output, what it was and what it must become.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::checkpoint::Model;
use crate::support::process::{Elo, elo};
use crate::support::tree::{Tree, assert_same, differences, tree};

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verb {
    Extract,
    Inject,
    ChatVector,
    Reshard,
}

impl Verb {
    pub(super) const ALL: [Self; 4] =
        [Self::Extract, Self::Inject, Self::ChatVector, Self::Reshard];
}

/// What stands at the output's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Absent,
    Old,
    New,
}

/// Says which of the three states an output is in; anything else is the failure this harness looks for.
pub(super) fn judge(out: &Path, old: Option<&Tree>, new: &Tree) -> Result<State, String> {
    if fs::symlink_metadata(out).is_err() {
        return Ok(State::Absent);
    }
    let now = tree(out);
    if now == *new {
        return Ok(State::New);
    }
    if old.is_some_and(|old| now == *old) {
        return Ok(State::Old);
    }
    let against = |name: &str, other: &Tree| {
        format!("against the {name} one:\n  {}", differences(&now, other).join("\n  "))
    };
    let mut says = vec![against("new", new)];
    says.extend(old.map(|old| against("old", old)));
    Err(format!("`{}` is neither old nor new\n{}", out.display(), says.join("\n")))
}

/// Shards in a staging directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Journal {
    pub(super) finished: u64,
    pub(super) started: u64,
}

pub(super) fn journal(staging: &Path) -> Journal {
    let text = fs::read_to_string(staging.join("journal.jsonl")).unwrap_or_default();
    // A torn last line is no entry.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let finished = whole.lines().filter(|l| l.starts_with("{\"shard\"")).count() as u64;
    let files = tree(&staging.join("tree"));
    let started =
        files.keys().filter(|f| f.extension().is_some_and(|e| e == "safetensors")).count();
    Journal { finished, started: started as u64 }
}

/// Sources, and for each verb what an undisturbed run makes of them.
pub(super) struct Scene {
    temp: TempDir,
    sources: Tree,
    results: BTreeMap<Verb, (PathBuf, PathBuf, Duration)>,
    /// All layers but the first.
    layers: String,
}

impl Scene {
    /// Two families of the same structure and other weights: the old outputs are of the first, the new of the second. Their
    /// plans look alike, which is the harder case.
    pub(super) fn new(model: &Model) -> Self {
        let temp = TempDir::new().unwrap();
        let mut results = BTreeMap::new();
        let layers = format!("2-{}", model.layers);
        for (family, seed) in [("old", 100), ("new", 200)] {
            for (i, role) in ["inst", "base", "into"].into_iter().enumerate() {
                let seed = seed + model.seed + i as u64;
                Model { seed, ..*model }
                    .write(&temp.path().join("sources").join(family).join(role));
            }
            let part = temp.path().join("sources").join(family).join("part");
            let donor = temp.path().join("sources").join(family).join("inst");
            elo("extract --no-sync").with("--layers", &layers).arg(donor).with("--out", part).ok();
        }
        for verb in Verb::ALL {
            let old = temp.path().join(format!("{verb:?}-old"));
            let new = temp.path().join(format!("{verb:?}-new"));
            command(temp.path(), "old", verb, &layers).with("--out", &old).ok();
            let started = Instant::now();
            command(temp.path(), "new", verb, &layers).with("--out", &new).ok();
            results.insert(verb, (old, new, started.elapsed()));
        }
        let sources = tree(&temp.path().join("sources"));
        Self { temp, sources, results, layers }
    }

    /// A fresh place for an output of this verb, with an old output in it or without.
    pub(super) fn place(&self, verb: Verb, overwrite: bool) -> Place<'_> {
        let home = self.temp.path().join("place");
        let _gone = fs::remove_dir_all(&home);
        fs::create_dir(&home).unwrap();
        let place = Place { scene: self, verb, overwrite, out: home.join("out") };
        if overwrite {
            super::copy_tree(&self.results[&verb].0, &place.out);
        }
        place
    }

    pub(super) fn assert_sources_unchanged(&self, what: &str) {
        assert_same(&tree(&self.temp.path().join("sources")), &self.sources, what);
    }
}

fn command(root: &Path, family: &str, verb: Verb, layers: &str) -> Elo {
    let source = |role: &str| root.join("sources").join(family).join(role);
    let run = match verb {
        Verb::Extract => elo("extract").with("--layers", layers).arg(source("into")),
        Verb::Inject => elo("inject --all").arg(source("part")).with("--into", source("into")),
        Verb::ChatVector => elo("chat-vector")
            .with("--inst", source("inst"))
            .with("--base", source("base"))
            .with("--into", source("into")),
        Verb::Reshard => elo("reshard --shard-size 3MB").arg(source("into")),
    };
    run.args(["--link", "never", "--no-sync"])
}

/// Where one output is made again and again.
pub(super) struct Place<'a> {
    scene: &'a Scene,
    verb: Verb,
    overwrite: bool,
    out: PathBuf,
}

impl Place<'_> {
    pub(super) fn command(&self) -> Elo {
        command(self.scene.temp.path(), "new", self.verb, &self.scene.layers)
            .with("--out", &self.out)
            .args(self.overwrite.then_some("--overwrite"))
    }

    pub(super) fn out(&self) -> &Path {
        &self.out
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.out.with_file_name(".out.elo-staging")
    }

    /// How long an undisturbed run takes.
    pub(super) fn duration(&self) -> Duration {
        self.scene.results[&self.verb].2
    }

    pub(super) fn journal(&self) -> Journal {
        journal(&self.staging())
    }

    pub(super) fn state(&self) -> Result<State, String> {
        let (old, new, _) = &self.scene.results[&self.verb];
        let old = self.overwrite.then(|| tree(old));
        judge(&self.out, old.as_ref(), &tree(new))
    }

    /// Nothing but the output is left.
    pub(super) fn assert_alone(&self, what: &str) {
        let home = self.out.parent().unwrap();
        let left: Vec<_> = fs::read_dir(home).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["out"], "{what}");
    }
}
