//! `chat-vector`: add what instruction tuning changed.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::arguments::{Filter, Opening, ShardSize, parse_dtype, parse_factor};
use super::failure::{Failure, Origins};
use super::project::{Project, Stage, missing};
use super::session::Session;
use super::surgery::{How, Surgical};
use crate::format::Dtype;
use crate::ops::{self, LayerScale, VocabularyPolicy};
use crate::plan::Plan;

/// Add the difference of an instruction-tuned model and its base to another model
///
/// The result is `C + scale * (A - B)`, computed in f32 and rounded once. Without `--out` it is written beside C, to a
/// name that is printed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery chat-vector --inst llama-8b-instruct --base llama-8b --into llama-8b-ko
  elo-surgery chat-vector --inst A --base B --into C --scale 0.7 --skip-embeddings --out D
  elo-surgery chat-vector --inst A --base B --into C --layer-scale 1-8=0.5 --layer-scale 9-16=0.8
  elo-surgery chat-vector --inst A --base B --into C --vocab overlap
  elo-surgery chat-vector --inst A --base B --save-vector V   # once, then for any C:
  elo-surgery chat-vector --vector V --into C")]
pub(super) struct ChatVector {
    /// The instruction-tuned model [default: the project's]
    #[arg(long, value_name = "A")]
    inst: Option<PathBuf>,
    /// The model it was tuned from [default: the project's model]
    #[arg(long, value_name = "B")]
    base: Option<PathBuf>,
    /// The model that gets the vector [default: the project's aligned, else injected model]
    #[arg(long, value_name = "C")]
    into: Option<PathBuf>,
    /// Add a vector saved earlier
    #[arg(long, value_name = "V", conflicts_with_all = ["inst", "base"])]
    vector: Option<PathBuf>,
    /// Save the vector itself, in f32, instead of adding it
    #[arg(long, value_name = "V", conflicts_with_all = [
        "into", "vector", "out", "scale", "layer_scale", "skip_embeddings", "vocab", "untie", "dtype",
    ])]
    save_vector: Option<PathBuf>,
    /// Factor of the vector
    #[arg(long, value_name = "X", default_value = "1.0", value_parser = parse_factor, allow_negative_numbers = true)]
    scale: f64,
    /// A further factor for some layers, such as `1-8=0.5` (repeatable)
    #[arg(long, value_name = "LAYERS=X", value_parser = parse_layer_scale, allow_hyphen_values = true)]
    layer_scale: Vec<(String, f64)>,
    #[command(flatten)]
    filter: Filter,
    /// Leave embedding and head as they are in C
    #[arg(long)]
    skip_embeddings: bool,
    /// What to do when vocabularies differ in size
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    vocab: VocabChoice,
    /// Give C a head of its own where it ties the head to the embedding and the vector does not
    #[arg(long)]
    untie: bool,
    /// Float dtype of the result [default: C's]
    #[arg(long, value_name = "DTYPE", value_parser = parse_dtype)]
    dtype: Option<Dtype>,
    #[command(flatten)]
    shard_size: ShardSize,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    how: How,
}

/// What to do when vocabularies differ.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum VocabChoice {
    /// Refuse, and show the sizes
    #[default]
    Error,
    /// Add the rows that all three models have
    Overlap,
    /// Also take the instruct model's further rows
    Extend,
    /// Leave those tensors as they are in C
    Skip,
}

impl From<VocabChoice> for VocabularyPolicy {
    fn from(choice: VocabChoice) -> Self {
        match choice {
            VocabChoice::Error => Self::Error,
            VocabChoice::Overlap => Self::Overlap,
            VocabChoice::Extend => Self::Extend,
            VocabChoice::Skip => Self::Skip,
        }
    }
}

fn parse_layer_scale(text: &str) -> Result<(String, f64), String> {
    let (layers, factor) =
        text.rsplit_once('=').ok_or("it looks like `1-8=0.5`: layers, `=`, a factor")?;
    Ok((layers.to_owned(), parse_factor(factor)?))
}

impl Surgical for ChatVector {
    const FULL_FORM: &'static str = "elo-surgery chat-vector --inst A --base B --into C --out DIR";

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
        if let Some(out) = &self.save_vector {
            return self.saved(out, project, session, origins);
        }
        let models = Models::find(self, project, origins)?;
        let named = Stage::ChatVector.output(self.how.out.as_ref(), project, origins);
        let out = match named.or_else(|| self.how.pushed_name()) {
            Some(out) => out,
            None if session.hub.is_remote(&models.into) => {
                return Err(Failure::usage(
                    format!(
                        "`{}` is a model of the Hub: there is no place beside it",
                        models.into.display()
                    ),
                    "say where to write with `--out DIR`",
                ));
            }
            None => beside(&models.into)?,
        };
        let request = self.request(origins)?;
        let open = |path: &Path| session.open(path, &self.opening);
        let into = open(&models.into)?;
        let plan = match &models.vector {
            Vector::Saved(vector) => ops::add_vector(&open(vector)?, &into, &request)?,
            Vector::Pair(inst, base) => {
                ops::chat_vector(&open(inst)?, &open(base)?, &into, &request)?
            }
        };
        Ok((plan, Some(out)))
    }
}

impl ChatVector {
    fn saved(
        &self,
        out: &Path,
        project: Option<&Project>,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure> {
        origins.flag("--save-vector", out);
        let (inst, base) = pair(self, project, origins)?;
        let filter = self.filter.compile(origins)?;
        let inst = session.open(&inst, &self.opening)?;
        let base = session.open(&base, &self.opening)?;
        let plan = ops::save_vector(&inst, &base, &filter, self.shard_size.shard_size)?;
        Ok((plan, Some(out.to_owned())))
    }

    fn request(&self, origins: &mut Origins) -> Result<ops::ChatVector, Failure> {
        let mut layer_scales = Vec::new();
        for (layers, factor) in &self.layer_scale {
            origins.flag("--layer-scale", format!("{layers}={factor}"));
            layer_scales.push(LayerScale { layers: layers.parse()?, factor: *factor });
        }
        Ok(ops::ChatVector {
            scale: self.scale,
            layer_scales,
            filter: self.filter.compile(origins)?,
            skip_embeddings: self.skip_embeddings,
            vocabulary: self.vocab.into(),
            untie: self.untie,
            dtype: self.dtype.clone(),
            shard_size: self.shard_size.shard_size,
        })
    }
}

enum Vector {
    Saved(PathBuf),
    Pair(PathBuf, PathBuf),
}

/// The models of a run, by flag or by project.
struct Models {
    vector: Vector,
    into: PathBuf,
}

impl Models {
    fn find(
        verb: &ChatVector,
        project: Option<&Project>,
        origins: &mut Origins,
    ) -> Result<Self, Failure> {
        let vector = if let Some(vector) = &verb.vector {
            origins.flag("--vector", vector);
            Vector::Saved(vector.clone())
        } else {
            let (inst, base) = pair(verb, project, origins)?;
            Vector::Pair(inst, base)
        };
        if let Some(into) = &verb.into {
            origins.flag("--into", into);
            let into = into.clone();
            return Ok(Self { vector, into });
        }
        let Some(project) = project else {
            return Err(missing("model", "--into C", None, ChatVector::FULL_FORM));
        };
        let stages = [Stage::Align, Stage::Inject];
        let into = stages.into_iter().find_map(|stage| project.result(stage));
        match into {
            Some(into) => Ok(Self { vector, into }),
            None => Err(Failure::usage(
                format!(
                    "there is no injected model at `{}` yet",
                    project.stage(Stage::Inject).display()
                ),
                "make it with `elo-surgery inject`, or name the model with `--into C`",
            )),
        }
    }
}

fn pair(
    verb: &ChatVector,
    project: Option<&Project>,
    origins: &mut Origins,
) -> Result<(PathBuf, PathBuf), Failure> {
    let mut find = |flag: &str, given: &Option<PathBuf>, key: &str, own: Option<&PathBuf>| {
        if let Some(path) = given {
            origins.flag(flag, path);
            return Ok(path.clone());
        }
        let (Some(project), Some(path)) = (project, own) else {
            return Err(missing(key, flag, project, ChatVector::FULL_FORM));
        };
        origins.project(&project.file, key, path);
        Ok(path.clone())
    };
    let instruct = project.and_then(|p| p.instruct.as_ref());
    let model = project.and_then(|p| p.model.as_ref());
    Ok((
        find("--inst", &verb.inst, "instruct", instruct)?,
        find("--base", &verb.base, "model", model)?,
    ))
}

/// `C-chat-vector`, beside C.
fn beside(into: &Path) -> Result<PathBuf, Failure> {
    let say = |problem: String| Failure::usage(problem, "say where to write with `--out DIR`");
    let is_file = into.is_file();
    // `.` and `..` have no name of their own.
    let named = if into.file_name().is_some() && !into.ends_with("..") {
        into.to_owned()
    } else {
        into.canonicalize().unwrap_or_else(|_| into.to_owned())
    };
    let stem = if is_file { named.file_stem() } else { named.file_name() };
    let Some(stem) = stem else {
        return Err(say(format!("there is no place beside `{}`", into.display())));
    };
    if named.parent().is_some_and(|up| up.ends_with("snapshots")) {
        return Err(say(format!("`{}` lies in a download cache", into.display())));
    }
    let mut name = stem.to_owned();
    name.push("-chat-vector");
    Ok(named.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_lies_beside_the_target() {
        assert_eq!(beside(Path::new("m/c")).unwrap(), Path::new("m/c-chat-vector"));
        assert_eq!(beside(Path::new("m/c/")).unwrap(), Path::new("m/c-chat-vector"));
        assert_eq!(beside(Path::new("m/c-1.5")).unwrap(), Path::new("m/c-1.5-chat-vector"));
        assert!(beside(Path::new("models--a--b/snapshots/0123")).is_err());
        assert!(beside(Path::new("/")).is_err());
        assert!(beside(Path::new(".")).unwrap().is_absolute());
    }

    #[test]
    fn layer_scales() {
        assert_eq!(parse_layer_scale("1-8=0.5"), Ok(("1-8".to_owned(), 0.5)));
        assert_eq!(parse_layer_scale("-1=-2"), Ok(("-1".to_owned(), -2.0)));
        assert!(parse_layer_scale("1-8").is_err());
        assert!(parse_layer_scale("1=inf").is_err());
    }
}
