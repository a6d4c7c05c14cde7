//! `init`: start a project.

use std::fs::{OpenOptions, create_dir_all};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::failure::{Failure, Origins};
use super::questions;
use super::session::Session;
use crate::checkpoint::{Checkpoint, LayerSelector};
use crate::error::{Error, IoContext as _};
use crate::pipeline::project::{PROJECT_FILE, Template, TemplateSource, schema};

/// Start a project: write a commented `elo.yaml`
///
/// Asks for what no flag says, on a terminal; the rest stands in the file as comments, with its defaults. Inside a
/// project `extract`, `inject` and `chat-vector` know the model, the layers and where results go.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery init --model llama-8b --inst llama-8b-instruct --layers 1,32
  elo-surgery init korean --model /models/llama-8b --target-language ko --pretrain en=wiki/en ko=wiki/ko
  elo-surgery init --schema > elo.schema.json")]
pub(super) struct Init {
    /// Directory of the project
    #[arg(default_value = ".")]
    pub(super) dir: PathBuf,
    /// The base model
    #[arg(long, value_name = "MODEL")]
    pub(super) model: Option<PathBuf>,
    /// Its instruction-tuned relative, for the chat vector
    #[arg(long, value_name = "MODEL")]
    pub(super) inst: Option<PathBuf>,
    /// The layers to train, counting from 1 [default: first,last]
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true)]
    pub(super) layers: Option<String>,
    /// The language to learn: `ko`
    #[arg(long, value_name = "LANG", help_heading = "Data options")]
    pub(super) target_language: Option<String>,
    /// The language to keep [default: en]
    #[arg(long, value_name = "LANG", help_heading = "Data options")]
    pub(super) source_language: Option<String>,
    /// Text to pretrain on; the language by `ko=PATH`, by name (`ko.jsonl`), else the target language
    #[arg(long, value_name = "PATH", num_args = 1.., help_heading = "Data options")]
    pub(super) pretrain: Vec<PathBuf>,
    /// Chats for fine-tuning, their language in the same way
    #[arg(long, value_name = "PATH", num_args = 1.., help_heading = "Data options")]
    pub(super) chats: Vec<PathBuf>,
    /// What trains: builtin, axolotl, llama-factory, trl, the NAME of an elo-backend-NAME
    #[arg(long, value_name = "NAME", help_heading = "Training options")]
    pub(super) backend: Option<String>,
    /// GPUs of a node
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Training options")]
    pub(super) gpus: Option<u32>,
    /// Ask nothing
    #[arg(short, long)]
    yes: bool,
    /// Print the JSON Schema of `elo.yaml`, for editors, and do nothing else
    #[arg(long)]
    schema: bool,
}

/// Writes the file; an existing one is kept.
pub(super) fn run(arguments: &Init, session: &Session) -> Result<(), Failure> {
    if arguments.schema {
        let schema = serde_json::to_string_pretty(&schema())
            .map_err(|e| Error::Json { path: "stdout".into(), message: e.to_string() })?;
        return session.print(&format!("{schema}\n"));
    }
    let path = match arguments.dir.as_path() {
        dir if dir == Path::new(".") => PathBuf::from(PROJECT_FILE),
        dir => dir.join(PROJECT_FILE),
    };
    if path.symlink_metadata().is_ok() {
        return Err(exists(&path));
    }
    let mut arguments = arguments.clone();
    let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal();
    if can_ask && !arguments.yes && !session.json && !session.quiet {
        questions::ask(&mut arguments)?;
    }
    let arguments = &arguments;
    let mut origins = Origins::default();
    if let Some(layers) = &arguments.layers {
        origins.flag("--layers", layers);
    }
    check_layers(arguments, session).map_err(|error| origins.explain(error.into()))?;
    let text = template(arguments)?.text();
    // What would be refused later is refused now.
    let loaded = crate::pipeline::project::Project::parse(&text, &path)?;
    create_dir_all(&arguments.dir).at("create", &arguments.dir)?;
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(exists(&path)),
        opened => opened.at("create", &path)?.write_all(text.as_bytes()).at("write", &path)?,
    }
    if session.json {
        return session.print_json(&json!({ "command": "init", "file": path.to_string_lossy() }));
    }
    session.say(&format!("wrote `{}`", path.display()));
    for warning in &loaded.warnings {
        session.warn(warning);
    }
    if arguments.model.is_none() {
        session.note("it names no model yet: set `model`");
    }
    Ok(())
}

fn exists(path: &Path) -> Failure {
    let problem = format!("`{}` already exists", path.display());
    Failure::usage(problem, "edit it, or start the project in another directory")
}

/// Catches a slip in the layers while it is cheap. A model that is not there yet is no reason to wait.
fn check_layers(arguments: &Init, session: &Session) -> Result<(), Error> {
    let layers: LayerSelector = arguments.layers.as_deref().unwrap_or("first,last").parse()?;
    let Some(path) = &arguments.model else {
        return Ok(());
    };
    match Checkpoint::open(path) {
        Ok(model) => layers.resolve(model.layers(), model.name()).map(drop),
        Err(error) => {
            session.warn(&format!("the model cannot be read yet: {error}"));
            Ok(())
        }
    }
}

fn template(arguments: &Init) -> Result<Template, Failure> {
    let said = |path: &PathBuf| text(&from_project(path, &arguments.dir));
    Ok(Template {
        model: arguments.model.as_ref().map(said).transpose()?,
        instruct: arguments.inst.as_ref().map(said).transpose()?,
        layers: arguments.layers.clone(),
        // The paper: English to target 1:9 for text, 1:1 for chats.
        pretrain: sources(arguments, &arguments.pretrain, 1.0, 9.0)?,
        chats: sources(arguments, &arguments.chats, 1.0, 1.0)?,
        backend: arguments.backend.clone(),
        gpus: arguments.gpus,
    })
}

/// Paths with their languages; the weight of a language is divided among its paths.
fn sources(
    arguments: &Init,
    paths: &[PathBuf],
    source_weight: f64,
    target_weight: f64,
) -> Result<Vec<TemplateSource>, Failure> {
    let source = arguments.source_language.as_deref().unwrap_or("en");
    let target = arguments.target_language.as_deref();
    let mut found = Vec::new();
    for path in paths {
        let said = text(path)?;
        let is_language = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let (language, path) = match said.split_once('=') {
            Some((language, path)) if !language.is_empty() && language.chars().all(is_language) => {
                (language.to_owned(), path.to_owned())
            }
            _ => {
                let mut words = said.split(|c: char| !c.is_ascii_alphanumeric()).rev();
                let named = words.find(|word| *word == source || Some(*word) == target);
                let language = named.or(target).ok_or_else(|| {
                    Failure::usage(
                        format!("the language of `{said}` is not known"),
                        format!("write `LANG={said}`, or pass `--target-language LANG`"),
                    )
                })?;
                (language.to_owned(), said)
            }
        };
        found.push((language, text(&from_project(Path::new(&path), &arguments.dir))?));
    }
    let sources = found.iter().map(|(language, path)| {
        let alike = found.iter().filter(|(other, _)| other == language).count();
        let weight = if language == source { source_weight } else { target_weight };
        let weight = weight / f64::from(u32::try_from(alike).unwrap_or(u32::MAX));
        TemplateSource { path: path.clone(), language: language.clone(), weight }
    });
    Ok(sources.collect())
}

/// A path given from the working directory, as the project file has to say it.
fn from_project(path: &Path, dir: &Path) -> PathBuf {
    if path.is_absolute() || dir == Path::new(".") {
        return path.to_owned();
    }
    match (std::path::absolute(path), dir.is_absolute()) {
        // Inside the project the short form says the same.
        _ if path.starts_with(dir) => path.strip_prefix(dir).unwrap_or(path).to_owned(),
        (Ok(absolute), _) => absolute,
        (Err(_), _) => path.to_owned(),
    }
}

fn text(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().ok_or_else(|| Error::Project {
        path: path.to_owned(),
        problem: "the path is not UTF-8, which a project file must be".into(),
        hint: "link to it under another name".into(),
    })?;
    Ok(text.to_owned())
}
