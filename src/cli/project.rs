//! The project file `elo.yaml`: which model, which layers, and where results go.
//!
//! It is found in the working directory or the nearest parent that has one; its paths are relative to it. Keys are
//! strict: a misspelt one is an error with a suggestion, never ignored.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use serde_saphyr::{Spanned, UserMessageFormatter};

use super::failure::{Failure, Origins};
use crate::error::{Error, IoContext as _, Result, printable};

/// Name of the project file.
pub(super) const PROJECT_FILE: &str = "elo.yaml";
const KEYS: [&str; 4] = ["model", "instruct", "layers", "out"];
/// Where results go unless `out` says otherwise.
const OUT: &str = "work";
const MAX_BYTES: u64 = 1 << 20;

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

impl Project {
    /// The project of the working directory.
    pub(super) fn find() -> Result<Option<Self>> {
        let here = std::env::current_dir().at("find", ".")?;
        let mut root = PathBuf::new();
        for _ in here.ancestors() {
            let file = root.join(PROJECT_FILE);
            if fs::symlink_metadata(&file).is_ok() {
                return Self::load(&file).map(Some);
            }
            root.push("..");
        }
        Ok(None)
    }

    /// Reads a project file.
    pub(super) fn load(file: &Path) -> Result<Self> {
        let meta = fs::metadata(file).at("read", file)?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            return Err(wrong(file, "it is not a small regular file", ""));
        }
        let mut bytes = Vec::new();
        let opened = fs::File::open(file).at("read", file)?;
        opened.take(MAX_BYTES).read_to_end(&mut bytes).at("read", file)?;
        let text = String::from_utf8(bytes).map_err(|_| wrong(file, "it is not UTF-8 text", ""))?;
        Self::parse(&text, file)
    }

    fn parse(text: &str, file: &Path) -> Result<Self> {
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_aliases: 0, max_anchors: 0 },
        };
        let keys: Option<BTreeMap<String, Spanned<Value>>> =
            serde_saphyr::from_str_with_options(text, options).map_err(|e| {
                wrong(
                    file,
                    &printable(&e.without_snippet().render_with_formatter(&UserMessageFormatter)),
                    "",
                )
            })?;
        let keys = keys.unwrap_or_default();
        if let Some((key, value)) = keys.iter().find(|(key, _)| !KEYS.contains(&key.as_str())) {
            return Err(unknown_key(file, key, value.referenced.line()));
        }
        let root = file.parent().unwrap_or(Path::new(""));
        let path = |key: &str| -> Result<Option<PathBuf>> {
            match keys.get(key).map(|spanned| (&spanned.value, spanned)) {
                None | Some((Value::Null, _)) => Ok(None),
                Some((Value::String(text), _)) if !text.is_empty() => Ok(Some(root.join(text))),
                Some((_, spanned)) => Err(wrong(
                    file,
                    &format!("line {}: `{key}` is not a path", spanned.referenced.line()),
                    &format!("write `{key}: path/to/it`"),
                )),
            }
        };
        let given = keys.get("layers").filter(|spanned| !spanned.value.is_null());
        let layers = given.map(|spanned| {
            layers(&spanned.value).ok_or_else(|| {
                wrong(
                    file,
                    &format!(
                        "line {}: `layers` is not a list of layers",
                        spanned.referenced.line()
                    ),
                    "write `layers: 1,32`, or `layers: [1, 32]`",
                )
            })
        });
        Ok(Self {
            model: path("model")?,
            instruct: path("instruct")?,
            out: path("out")?.unwrap_or_else(|| root.join(OUT)),
            layers: layers.transpose()?,
            file: file.to_owned(),
        })
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

/// `1,32`, `[1, 32]`, `[first, last]` or `1`.
fn layers(value: &Value) -> Option<String> {
    let item = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() => Some(number.to_string()),
        _ => None,
    };
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(item).collect::<Option<_>>()?;
            Some(items.join(","))
        }
        one => item(one),
    }
}

fn wrong(file: &Path, problem: &str, hint: &str) -> Error {
    Error::Project { path: file.to_owned(), problem: problem.to_owned(), hint: hint.to_owned() }
}

fn unknown_key(file: &Path, key: &str, line: u64) -> Error {
    let near = KEYS.iter().map(|known| (distance(key, known), known)).min();
    let hint = match near {
        Some((steps, known)) if steps <= 2.max(known.len() / 3) => {
            format!("did you mean `{known}`?")
        }
        _ => format!("the keys are {}", KEYS.map(|k| format!("`{k}`")).join(", ")),
    };
    let key = printable(key);
    wrong(file, &format!("line {line}: there is no key `{key}`"), &hint)
}

/// Edit distance: insertions, deletions and replacements.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().take(100).enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Project> {
        Project::parse(text, Path::new("p/elo.yaml"))
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let project = parse("model: ../m\ninstruct: /abs/i\nlayers: 1,32\n").unwrap();
        assert_eq!(project.model, Some("p/../m".into()));
        assert_eq!(project.instruct, Some("/abs/i".into()));
        assert_eq!(project.layers.as_deref(), Some("1,32"));
        assert_eq!(project.stage(Stage::Inject), Path::new("p/work/03-inject/model"));
    }

    #[test]
    fn layers_have_several_spellings() {
        for (text, expected) in [
            ("layers: 1,32", "1,32"),
            ("layers: \"1,32\"", "1,32"),
            ("layers: [1, 32]", "1,32"),
            ("layers: [first, last]", "first,last"),
            ("layers: 7", "7"),
            ("layers: -1", "-1"),
            ("layers: 1-4", "1-4"),
        ] {
            assert_eq!(parse(text).unwrap().layers.as_deref(), Some(expected), "{text}");
        }
        assert!(parse("layers: {a: 1}").is_err());
        assert!(parse("layers: 1.5").is_err());
    }

    #[test]
    fn misspelt_keys_are_errors_with_a_suggestion() {
        let error = parse("model: m\nlayer: 1,2\n").unwrap_err();
        assert_eq!(error.to_string(), "`p/elo.yaml`: line 2: there is no key `layer`");
        assert_eq!(error.hint().unwrap(), "did you mean `layers`?");
        let hint = |text| parse(text).unwrap_err().hint().unwrap();
        assert_eq!(hint("modle: m"), "did you mean `model`?");
        assert_eq!(hint("instrcut: m"), "did you mean `instruct`?");
        assert!(hint("zzzzzzzz: 1").starts_with("the keys are `model`"));
    }

    #[test]
    fn nothing_and_nonsense() {
        assert_eq!(parse("").unwrap().out, Path::new("p/work"));
        assert_eq!(parse("# only a comment\n").unwrap().model, None);
        for text in
            ["[", "- a", "model: [x]", "model: m\nmodel: n", "model: &a m\nout: *a", "\u{1}"]
        {
            let error = parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 3, "{text}");
            assert!(error.to_string().len() < 1000, "{error}");
        }
    }
}
