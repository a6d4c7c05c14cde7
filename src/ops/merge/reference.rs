//! How a configuration names a model: `PATH`, `PATH+ADAPTER`, or `{model: {path: PATH}, lora: {path: ADAPTER}}`.
//!
//! A path may be a model's name on the Hub, `org/name` or `org/name@revision`; `{path: org/name, revision: ..}` is the same.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::read::{Problems, below, given};

/// A model, perhaps with a LoRA adapter applied. The paths are relative to the working directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// The model's directory.
    pub path: PathBuf,
    /// The adapter's directory.
    pub lora: Option<PathBuf>,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match &self.lora {
            Some(lora) => write!(f, "+{}", lora.display()),
            None => Ok(()),
        }
    }
}

/// Reads a reference; `at` is its place in the document. Only the mapping form takes paths with `@` and `+`.
pub(super) fn model(problems: &mut Problems, at: &str, value: &Value) -> Option<Reference> {
    if let Value::String(text) = value {
        return plain(problems, at, text);
    }
    let map = problems.map(at, value, &["model", "lora", "override_architecture"])?;
    if given(map, "override_architecture").is_some() {
        problems.unsupported(&below(at, "override_architecture"), "it is");
    }
    let lora = match given(map, "lora") {
        Some(value) => Some(place(problems, &below(at, "lora"), value)?),
        None => None,
    };
    let Some(inner) = given(map, "model") else {
        problems.add(at, "has no `model`");
        return None;
    };
    Some(Reference { path: place(problems, &below(at, "model"), inner)?, lora })
}

/// `PATH` or `{path: PATH}`.
fn place(problems: &mut Problems, at: &str, value: &Value) -> Option<PathBuf> {
    if let Value::String(path) = value {
        return path_of(problems, at, path);
    }
    let inner = problems.map(at, value, &["path", "revision"])?;
    let revision = match given(inner, "revision") {
        Some(revision) => {
            let at = below(at, "revision");
            Some(problems.text(&at, revision)?.to_owned()).filter(|text| !text.is_empty())
        }
        None => None,
    };
    match given(inner, "path") {
        Some(path) => {
            let at = below(at, "path");
            let path = problems.text(&at, path)?;
            match revision {
                Some(_) if !is_name(path) => {
                    problems.add(
                        &at,
                        format!("`{path}` is no name on the Hub, which alone has revisions"),
                    );
                    None
                }
                Some(revision) => path_of(problems, &at, &format!("{path}@{revision}")),
                None => path_of(problems, &at, path),
            }
        }
        None => {
            problems.add(at, "has no `path`");
            None
        }
    }
}

fn plain(problems: &mut Problems, at: &str, text: &str) -> Option<Reference> {
    let mapping = "for a path with such a character, write `{model: {path: ...}}`";
    let unnamed = |part: &&str| part.split_once('@').is_some_and(|(name, _)| !is_name(name));
    if let Some(part) = text.split('+').find(unnamed) {
        problems.add(
            at,
            format!(
                "`{part}` names a revision behind `@` of what is no name on the Hub ({mapping})"
            ),
        );
        return None;
    }
    let (path, lora) = match text.split_once('+') {
        Some((_, lora)) if lora.contains('+') => {
            problems.add(at, format!("`{text}` names several adapters behind `+` ({mapping})"));
            return None;
        }
        Some((path, lora)) => (path, Some(path_of(problems, at, lora)?)),
        None => (text, None),
    };
    Some(Reference { path: path_of(problems, at, path)?, lora })
}

/// Whether a text has the form of a model's name on the Hub.
fn is_name(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.starts_with('.');
    text.split_once('/').is_some_and(|(org, name)| part(org) && part(name) && !name.contains('/'))
}

/// One spelling of a path: `./a/` is `a`, `~` the home directory.
fn path_of(problems: &mut Problems, at: &str, text: &str) -> Option<PathBuf> {
    let path: PathBuf =
        Path::new(text).components().filter(|part| *part != Component::CurDir).collect();
    if text.is_empty() {
        problems.add(at, "is empty");
        return None;
    }
    let path = match path.strip_prefix("~") {
        Err(_) => path,
        Ok(rest) => match std::env::home_dir().filter(|home| !home.as_os_str().is_empty()) {
            Some(home) => home.join(rest),
            None => {
                problems.add(at, "begins with `~`, and there is no home directory (`HOME`)");
                return None;
            }
        },
    };
    Some(if path.as_os_str().is_empty() { PathBuf::from(".") } else { path })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<String, String> {
        let mut problems = Problems::default();
        let found = model(&mut problems, "base_model", value);
        found.map(|found| found.to_string()).ok_or_else(|| problems.0.join("; "))
    }

    #[test]
    fn models_and_adapters() {
        assert_eq!(read(&json!("./a/b/")), Ok("a/b".into()));
        assert_eq!(read(&json!("a+./b")), Ok("a+b".into()));
        assert_eq!(read(&json!({"model": "a+b"})), Ok("a+b".into()));
        let both = json!({"model": {"path": "a"}, "lora": {"path": "b/c"}});
        assert_eq!(read(&both), Ok("a+b/c".into()));
        assert_eq!(read(&json!({"model": "a", "lora": "b"})), read(&json!("a+b")));
        assert_eq!(read(&json!("o/a@main+o/b@v1")), Ok("o/a@main+o/b@v1".into()));
        let revision = json!({"model": {"path": "o/a", "revision": "refs/pr/1"}});
        assert_eq!(read(&revision), Ok("o/a@refs/pr/1".into()));
        let home = std::env::home_dir().unwrap();
        assert_eq!(read(&json!("~/a/b")), Ok(home.join("a/b").display().to_string()));
        assert_eq!(read(&json!("a~/b")), Ok("a~/b".into()));
    }

    #[test]
    fn what_cannot_be_named() {
        for (value, words) in [
            (json!("a@main"), "revision behind `@`"),
            (json!("a+b+c"), "several adapters"),
            (json!("a+"), "is empty"),
            (json!({"lora": "b"}), "has no `model`"),
            (json!({"model": "a", "lora": {"revision": "x", "path": "b"}}), "no name on the Hub"),
            (json!({"model": "a", "lora": {}}), "has no `path`"),
            (json!({"model": "a", "lorra": "b"}), ""),
        ] {
            let mut problems = Problems::default();
            let _read = model(&mut problems, "base_model", &value);
            let told = problems.0.join("; ");
            assert!(!told.is_empty() && told.contains(words), "{value}: {told}");
        }
    }
}
