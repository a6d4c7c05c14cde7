//! What `extract`, `inject` and `chat-vector` take from a project, and which file of it said so.

use std::path::PathBuf;

use super::failure::{Failure, Origins};
use super::hub::Access;
use crate::error::Result;
use crate::pipeline::project::{self as pipeline, Loaded, PROJECT_FILE};

/// A project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Project {
    /// The file, as reached from the working directory.
    pub(super) file: PathBuf,
    /// The base model.
    pub(super) model: Option<PathBuf>,
    /// The instruction-tuned relative of the base model.
    pub(super) instruct: Option<PathBuf>,
    /// The layers that are extracted and trained.
    pub(super) layers: Option<String>,
    /// Where stages put their results.
    pub(super) out: PathBuf,
}

/// A stage of the project with a directory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Extract,
    Pretrain,
    Inject,
    Align,
    ChatVector,
}

impl Stage {
    const ALL: [Self; 5] =
        [Self::Extract, Self::Pretrain, Self::Inject, Self::Align, Self::ChatVector];

    /// Its model inside the project's output directory.
    fn model(self) -> &'static str {
        match self {
            Self::Extract => "01-extract/model",
            Self::Pretrain => "02-pretrain/model",
            Self::Inject => "03-inject/model",
            Self::Align => "04-align/model",
            Self::ChatVector => "05-chat-vector/model",
        }
    }

    /// The output of a verb: by flag, else by project.
    pub(super) fn output(
        self,
        flag: Option<&PathBuf>,
        project: Option<&Project>,
        origins: &mut Origins,
    ) -> Option<PathBuf> {
        if let Some(out) = flag {
            origins.flag("--out", out);
            return Some(out.clone());
        }
        let project = project?;
        let out = project.stage(self);
        origins.project(&project.file, "out", &out);
        Some(out)
    }
}

/// A model given on the command line, else the project's.
pub(super) fn model_or(
    given: Option<&PathBuf>,
    project: Option<&Project>,
    origins: &mut Origins,
    full_form: &str,
) -> Result<PathBuf, Failure> {
    if let Some(model) = given {
        return Ok(model.clone());
    }
    match project.and_then(|p| Some((p, p.model.as_ref()?))) {
        Some((project, model)) => {
            origins.project(&project.file, "model", model);
            Ok(model.clone())
        }
        None => Err(missing("model", "MODEL", project, full_form)),
    }
}

/// Something that neither the command line nor a project says.
pub(super) fn missing(
    key: &str,
    argument: &str,
    project: Option<&Project>,
    full_form: &str,
) -> Failure {
    match project {
        Some(project) => Failure::usage(
            format!("no `{argument}` is given, and `{}` has no `{key}`", project.file.display()),
            format!("add `{key}: ...` to it, or use the full form: `{full_form}`"),
        ),
        None => Failure::usage(
            format!("no `{argument}` is given, and no `{PROJECT_FILE}` is found here or above"),
            format!("the full form: `{full_form}`; `elo-surgery init` makes a project"),
        ),
    }
}

impl From<Loaded> for Project {
    fn from(loaded: Loaded) -> Self {
        let path = |path: &Option<PathBuf>| {
            let path = path.as_ref()?;
            let on_hub = Access::id_in(&loaded, path).is_some();
            Some(if on_hub { path.clone() } else { loaded.path(path) })
        };
        let project = &loaded.project;
        // What the file does not say, a verb asks for.
        let layers = loaded.line_of("layers").map(|_| project.layers.to_string());
        Self {
            model: path(&project.model),
            instruct: path(&project.instruct),
            layers,
            out: loaded.out(),
            file: loaded.file,
        }
    }
}

impl Project {
    /// The project of the working directory.
    pub(super) fn find() -> Result<Option<Self>> {
        Ok(pipeline::Project::find()?.map(Self::from))
    }

    /// Where a stage's model is, or will be.
    pub(super) fn stage(&self, stage: Stage) -> PathBuf {
        self.out.join(stage.model())
    }

    /// The directories of the stages that have written something.
    pub(super) fn stage_directories(&self) -> impl Iterator<Item = PathBuf> {
        let directory = |stage| Some(self.stage(stage).parent()?.to_owned());
        let stages = Stage::ALL.into_iter().filter_map(directory);
        stages.filter(|directory| directory.is_dir())
    }

    /// A stage's model, if it is there.
    pub(super) fn result(&self, stage: Stage) -> Option<PathBuf> {
        Some(self.stage(stage)).filter(|model| model.exists())
    }

    /// The project's layers, noted as such.
    pub(super) fn layers(&self, origins: &mut Origins) -> Option<String> {
        let layers = self.layers.clone()?;
        origins.project(&self.file, &format!("layers: {layers}"), &layers);
        Some(layers)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn paths_are_relative_to_the_file() {
        let parse = |text| -> Project {
            pipeline::Project::parse(text, Path::new("p/elo.yaml")).unwrap().into()
        };
        let project = parse("model: ../m\ninstruct: /abs/i\nlayers: 1,32\n");
        assert_eq!(project.model, Some("p/../m".into()));
        assert_eq!(project.instruct, Some("/abs/i".into()));
        assert_eq!(project.layers.as_deref(), Some("1,32"));
        assert_eq!(project.stage(Stage::Inject), Path::new("p/work/03-inject/model"));
        assert_eq!(parse("model: m\n").layers, None);
    }
}
