//! Which tensors an operation touches: globs over whole names.

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::checkpoint::{Checkpoint, SelectorProblem};
use crate::error::{Error, Result};

/// Include and exclude patterns. `*` matches any characters, dots included; without includes everything is in.
#[derive(Clone, Debug, Default)]
pub struct TensorFilter {
    include: Vec<(String, GlobSet)>,
    exclude: Vec<(String, GlobSet)>,
}

impl TensorFilter {
    /// Compiles the patterns.
    pub fn new<S: AsRef<str>>(include: &[S], exclude: &[S]) -> Result<Self> {
        let compile =
            |globs: &[S]| globs.iter().map(|g| compile(g.as_ref())).collect::<Result<_>>();
        Ok(Self { include: compile(include)?, exclude: compile(exclude)? })
    }

    /// Whether a tensor is selected.
    pub fn selects(&self, name: &str) -> bool {
        let any = |sets: &[(String, GlobSet)]| sets.iter().any(|(_, set)| set.is_match(name));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    /// Fails on a pattern that selects nothing in any of the models: most likely a typo.
    pub fn check(&self, models: &[&Checkpoint]) -> Result<()> {
        for (glob, set) in self.include.iter().chain(&self.exclude) {
            let mut names = models.iter().flat_map(|model| model.tensors());
            if !names.any(|(name, _)| set.is_match(name)) {
                let model = models.first().map(|m| m.name().to_owned()).unwrap_or_default();
                let problem = SelectorProblem::MatchesNothing { glob: glob.clone(), model };
                return Err(Error::Selector { problem });
            }
        }
        Ok(())
    }

    /// The patterns as JSON, for provenance.
    pub(super) fn describe(&self) -> serde_json::Value {
        let names = |sets: &[(String, GlobSet)]| -> Vec<String> {
            sets.iter().map(|(glob, _)| glob.clone()).collect()
        };
        serde_json::json!({ "include": names(&self.include), "exclude": names(&self.exclude) })
    }
}

fn compile(glob: &str) -> Result<(String, GlobSet)> {
    let parsed = Glob::new(glob).and_then(|g| GlobSetBuilder::new().add(g).build());
    match parsed {
        Ok(set) => Ok((glob.to_owned(), set)),
        Err(e) => {
            let (glob, message) = (glob.to_owned(), e.kind().to_string());
            Err(Error::Selector { problem: SelectorProblem::Glob { glob, message } })
        }
    }
}
