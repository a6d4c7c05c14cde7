//! How a configuration names a model: `PATH`, `PATH+ADAPTER`, or `{model: {path: PATH}, lora: {path: ADAPTER}}`.

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
    if given(inner, "revision").is_some() {
        problems.unsupported(&below(at, "revision"), "fetching models from the Hub is");
    }
    match given(inner, "path") {
        Some(path) => {
            let at = below(at, "path");
            let path = problems.text(&at, path)?;
            path_of(problems, &at, path)
        }
        None => {
            problems.add(at, "has no `path`");
            None
        }
    }
}

fn plain(problems: &mut Problems, at: &str, text: &str) -> Option<Reference> {
    let mapping = "for a path with such a character, write `{model: {path: ...}}`";
    if text.contains('@') {
        let what = format!("`{text}` names a revision behind `@` ({mapping}), which is");
        problems.unsupported(at, what);
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
            (json!({"model": "a", "lora": {"revision": "x", "path": "b"}}), ""),
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
