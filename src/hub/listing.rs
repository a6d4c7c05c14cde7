//! What a model's repository holds at a revision: its commit, and every file with size and hash.
//!
//! The revision is looked up once; everything after that names the commit, which cannot change. Paths and hashes come from
//! the server and become file names, so only those that can do no harm are taken.

use std::collections::BTreeSet;

use reqwest::Url;
use serde_json::Value;

use super::http::{Call, Http, corrupt};
use super::id::{ModelId, is_commit};
use crate::error::{Result, printable};

/// A repository of more files is no model.
const MOST_FILES: usize = 100_000;
const LONGEST_PATH: usize = 1024;
/// Such a list has fewer pages.
const MOST_PAGES: usize = 5_000;
/// No file of the Hub is near to it, and sums of so many files fit 64 bits.
const LARGEST_FILE: u64 = 1 << 44;

/// A file's name by its content, as the Hub lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hash {
    /// Of large files (LFS, xet): SHA-256 of the bytes.
    Sha256(String),
    /// Of small files: SHA-1 of git's header and the bytes, or, on mirrors that know no git, of the bytes.
    Git(String),
}

impl Hash {
    /// The hexadecimal digits: huggingface_hub's name of the blob.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) => hex,
        }
    }
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository: relative, `/` between its parts, none of them special.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// What its bytes must be.
    pub hash: Hash,
}

/// The files of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
    /// In the order of their paths.
    pub files: Vec<RemoteFile>,
}

impl Listing {
    /// A file by its path.
    pub fn file(&self, path: &str) -> Option<&RemoteFile> {
        let at = self.files.binary_search_by(|file| file.path.as_str().cmp(path)).ok()?;
        self.files.get(at)
    }
}

/// The commit that a revision names now.
pub fn commit_of(http: &Http, id: &ModelId) -> Result<String> {
    let what = id.to_string();
    let url = http.url(api(id).chain(["revision", id.revision_or_main()]));
    let info = http.send(&Call::get(url, &what))?.json(&what)?;
    let commit = info.get("sha").and_then(Value::as_str).filter(|sha| is_commit(sha));
    commit.map(str::to_owned).ok_or_else(|| corrupt(&what, "the Hub names no commit".into()))
}

/// The files of a commit.
pub fn list(http: &Http, id: &ModelId, commit: &str) -> Result<Listing> {
    let what = id.to_string();
    let mut url = http.url(api(id).chain(["tree", commit]));
    url.query_pairs_mut().append_pair("recursive", "true");
    let (mut files, mut pages) = (Vec::new(), BTreeSet::new());
    let mut next = Some(url);
    while let Some(page) = next.take() {
        if !pages.insert(page.to_string()) {
            return Err(corrupt(&what, "the list of its files goes round in circles".into()));
        }
        if pages.len() > MOST_PAGES {
            return Err(corrupt(&what, "the list of its files does not end".into()));
        }
        let answer = http.send(&Call::get(page.clone(), &what))?;
        next = match answer.header("link").and_then(next_page) {
            None => None,
            Some(link) => {
                // The token goes with the request: it must not be led elsewhere.
                let link = page.join(&link).ok().filter(|link| http.is_own(link));
                Some(link.ok_or_else(|| {
                    corrupt(&what, "the list of its files goes on at another host".into())
                })?)
            }
        };
        let entries = answer.json(&what)?;
        let entries = entries
            .as_array()
            .ok_or_else(|| corrupt(&what, "the list of its files is none".into()))?;
        if entries.is_empty() && next.is_some() {
            return Err(corrupt(&what, "the list of its files goes on with empty pages".into()));
        }
        for entry in entries {
            files.extend(file(entry).map_err(|problem| corrupt(&what, problem))?);
        }
        if files.len() > MOST_FILES {
            return Err(corrupt(&what, format!("it has more than {MOST_FILES} files")));
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    if let Some(twice) = files.windows(2).find(|pair| pair[0].path == pair[1].path) {
        return Err(corrupt(&what, format!("it lists `{}` twice", twice[0].path)));
    }
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let folders = |path: &'_ str| path.match_indices('/').map(|(end, _)| end).collect::<Vec<_>>();
    let both = paths.iter().find_map(|path| {
        folders(path).into_iter().filter_map(|end| path.get(..end)).find(|up| paths.contains(up))
    });
    if let Some(both) = both {
        return Err(corrupt(&what, format!("it lists `{both}` as a file and as a folder")));
    }
    Ok(Listing { commit: commit.to_owned(), files })
}

/// `api/models/ORG/NAME` of an address.
pub(super) fn api(id: &ModelId) -> impl Iterator<Item = &str> {
    ["api", "models"].into_iter().chain(id.repo().split('/'))
}

/// The address of a file's bytes.
pub(super) fn resolve(http: &Http, id: &ModelId, commit: &str, path: &str) -> Url {
    http.url(id.repo().split('/').chain(["resolve", commit]).chain(path.split('/')))
}

/// `<address>; rel="next"` of a `Link` header.
fn next_page(header: &str) -> Option<String> {
    header.split(',').find_map(|link| {
        let (address, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = rest.split(';').any(|word| matches!(word.trim(), "rel=\"next\"" | "rel=next"));
        next.then(|| address.to_owned())
    })
}

/// One entry of a tree; nothing for folders.
pub(super) fn file(entry: &Value) -> Result<Option<RemoteFile>, String> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let path = text(entry, "path").ok_or("an entry of its list has no path")?;
    if !is_safe(&path) {
        return Err(format!(
            "it lists `{}`, which is no name of a file in a repository",
            printable(&path)
        ));
    }
    if text(entry, "type").as_deref() != Some("file") {
        return Ok(None);
    }
    let hash = match entry.get("lfs").filter(|lfs| !lfs.is_null()) {
        Some(lfs) => text(lfs, "oid").filter(|hex| is_hex(hex, 64)).map(Hash::Sha256),
        None => text(entry, "oid").filter(|hex| is_hex(hex, 40)).map(Hash::Git),
    };
    let sized = entry.get("lfs").filter(|lfs| !lfs.is_null()).unwrap_or(entry);
    let size = sized.get("size").and_then(Value::as_u64);
    match (hash, size) {
        (_, Some(size)) if size > LARGEST_FILE => {
            Err(format!("it lists `{path}` with {size} bytes, which no file has"))
        }
        (Some(hash), Some(size)) => Ok(Some(RemoteFile { path, size, hash })),
        _ => Err(format!("it lists `{path}` without size or hash")),
    }
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a path stays below the folder it is joined to, on any system, and can be shown.
pub(super) fn is_safe(path: &str) -> bool {
    let part = |part: &str| {
        let special = part.is_empty() || part == "." || part == "..";
        !special && !part.chars().any(|c| c.is_control() || matches!(c, '\\' | ':'))
    };
    path.len() <= LONGEST_PATH && path.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_that_lead_away_are_refused() {
        for good in ["config.json", "onnx/model.onnx", "a b/ü.txt", ".gitattributes"] {
            assert!(is_safe(good), "{good}");
        }
        for bad in
            ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/./b", "a\\b", "C:x", "a\0b", "a\nb"]
        {
            assert!(!is_safe(bad), "{bad:?}");
            assert!(
                file(&json!({"type": "file", "path": bad, "size": 1, "oid": "0".repeat(40)}))
                    .is_err()
            );
        }
    }

    #[test]
    fn entries_say_what_a_file_must_be() {
        let small = json!({"type": "file", "path": "a", "size": 3, "oid": "a".repeat(40)});
        assert_eq!(file(&small).unwrap().unwrap().hash, Hash::Git("a".repeat(40)));
        let lfs = json!({"oid": "b".repeat(64), "size": 9, "pointerSize": 130});
        let large =
            json!({"type": "file", "path": "a", "size": 9, "oid": "a".repeat(40), "lfs": lfs});
        let large = file(&large).unwrap().unwrap();
        assert_eq!((large.hash, large.size), (Hash::Sha256("b".repeat(64)), 9));
        assert_eq!(file(&json!({"type": "directory", "path": "a", "oid": "x"})).unwrap(), None);
        for wrong in [
            json!({"type": "file", "path": "a", "size": 3, "oid": "../x"}),
            json!({"type": "file", "path": "a", "size": -3, "oid": "a".repeat(40)}),
            json!({"type": "file", "path": "a", "size": 3, "oid": "a".repeat(40), "lfs": {"oid": "A", "size": 3}}),
        ] {
            assert!(file(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn links_to_the_next_page() {
        let link = "<https://h/api?cursor=x>; rel=\"next\"";
        assert_eq!(next_page(link).as_deref(), Some("https://h/api?cursor=x"));
        assert_eq!(next_page("<x>; rel=\"prev\", <y>; rel=\"next\"").as_deref(), Some("y"));
        assert_eq!(next_page("<x>; rel=\"prev\""), None);
    }
}
