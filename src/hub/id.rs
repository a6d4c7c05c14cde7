//! Names of models on the Hub: `org/name` or `org/name@revision`.

use std::fmt;

/// A model on the Hub, as people name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId {
    /// `org/name`.
    repo: String,
    /// A branch, tag, commit or `refs/pr/N`.
    revision: Option<String>,
}

impl ModelId {
    /// Reads a name. `None` if the Hub could not have it: two parts of letters, digits, `-`, `_` and `.`, as the Hub allows.
    pub fn parse(text: &str) -> Option<Self> {
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        let (org, name) = repo.split_once('/')?;
        let fits = is_part(org) && is_part(name) && repo.len() <= 96;
        let known = revision.is_none_or(is_revision);
        (fits && known)
            .then(|| Self { repo: repo.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// `org/name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The branch, tag, commit or `refs/pr/N` that was named.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The revision, which is `main` unless another was named.
    pub fn revision_or_main(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The same model at another revision.
    #[must_use]
    pub fn at(&self, revision: &str) -> Self {
        Self { repo: self.repo.clone(), revision: Some(revision.to_owned()) }
    }

    /// Its folder in huggingface_hub's cache.
    pub(super) fn folder(&self) -> String {
        format!("models--{}", self.repo.replace('/', "--"))
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

/// What huggingface_hub's `validate_repo_id` accepts.
fn is_part(part: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |part: &str| part.starts_with(['-', '.']) || part.ends_with(['-', '.']);
    let doubled = part.contains("--") || part.contains("..");
    let bare = part.strip_suffix(".git").is_none();
    !part.is_empty() && part.chars().all(legal) && !ends(part) && !doubled && bare
}

/// A name that git would take for a branch or tag, or a commit; nothing that a path or URL could be led astray by.
fn is_revision(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+');
    let parts = || text.split('/');
    !text.is_empty()
        && text.len() <= 255
        && text.chars().all(legal)
        && !text.contains("..")
        && parts().all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.'))
}

/// Whether a text is a commit's full name.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub() {
        let id = ModelId::parse("meta-llama/Llama-3.1-70B@refs/pr/7").unwrap();
        assert_eq!((id.repo(), id.revision_or_main()), ("meta-llama/Llama-3.1-70B", "refs/pr/7"));
        assert_eq!(id.to_string(), "meta-llama/Llama-3.1-70B@refs/pr/7");
        assert_eq!(id.folder(), "models--meta-llama--Llama-3.1-70B");
        assert_eq!(ModelId::parse("a/b").unwrap().revision_or_main(), "main");
        for wrong in [
            "gpt2",
            "a/b/c",
            "../b",
            "a/..",
            "a/b@",
            "a/b@../x",
            "a/b@x//y",
            "/a",
            "a/",
            "a b/c",
            "a/b.git",
            "a--b/c",
            "a/b@-x y",
            "a/b@.hidden",
        ] {
            assert!(ModelId::parse(wrong).is_none(), "{wrong}");
        }
    }
}
