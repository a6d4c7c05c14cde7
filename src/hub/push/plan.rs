//! What of a directory the Hub lacks.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use super::commit::is_same;
use super::modes::LARGEST_INLINE;
use super::{Folder, Hashes};
use crate::hub::listing::Listing;

/// Git's own files: they are the repository's, not the model's.
const REPOSITORYS: [&str; 2] = [".gitattributes", ".gitignore"];

/// What happens to a file of the branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The branch has no such file.
    New,
    /// The branch has another.
    Changed,
    /// The branch has it.
    Unchanged,
    /// The branch has it, the directory does not.
    Deleted,
}

/// A file and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Its path in the repository.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of its bytes; none of what is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// What happens to it.
    pub change: Change,
    /// Whether it is likely to go to the storage for large files; the Hub decides.
    pub large: bool,
}

/// What would be published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Every file, in the order of paths.
    pub items: Vec<Item>,
}

impl Plan {
    /// The files that are deleted.
    pub fn deleted(&self) -> Vec<String> {
        let deleted = self.items.iter().filter(|item| item.change == Change::Deleted);
        deleted.map(|item| item.path.clone()).collect()
    }

    /// Bytes of the files that the branch lacks.
    pub fn bytes(&self) -> u64 {
        let sent =
            self.items.iter().filter(|item| matches!(item.change, Change::New | Change::Changed));
        sent.map(|item| item.size).sum()
    }

    /// Whether nothing is left to do.
    pub fn is_empty(&self) -> bool {
        self.items.iter().all(|item| item.change == Change::Unchanged)
    }
}

/// Compares a directory with the head of a branch. `keep` are files of the directory that stay as the branch has them, `made` are
/// files made besides; with `delete`, what the directory lacks goes.
pub fn plan(
    folder: &Folder,
    head: Option<&Listing>,
    keep: &BTreeSet<String>,
    made: &[(&str, &Hashes)],
    delete: bool,
) -> Plan {
    let local = folder.files.iter().map(|file| (file.name.as_str(), &file.hashes));
    let local = local
        .filter(|(name, _)| !keep.contains(*name) && made.iter().all(|(made, _)| made != name));
    let mut items: Vec<Item> =
        local.chain(made.iter().copied()).map(|(name, hashes)| item(name, hashes, head)).collect();
    if delete {
        let here: BTreeSet<&str> = items.iter().map(|item| item.path.as_str()).collect();
        let stays = |path: &str| {
            here.contains(path)
                || keep.contains(path)
                || folder.is_excluded(path)
                || REPOSITORYS.contains(&path)
        };
        let gone = head.iter().flat_map(|head| &head.files).filter(|file| !stays(&file.path));
        let gone: Vec<Item> = gone
            .map(|file| Item {
                path: file.path.clone(),
                size: file.size,
                sha256: None,
                change: Change::Deleted,
                large: false,
            })
            .collect();
        items.extend(gone);
    }
    items.sort_by(|a, b| a.path.cmp(&b.path));
    Plan { items }
}

fn item(name: &str, hashes: &Hashes, head: Option<&Listing>) -> Item {
    let change = match head.and_then(|head| head.file(name)) {
        None => Change::New,
        Some(found) if is_same(hashes, found.size, &found.hash) => Change::Unchanged,
        Some(_) => Change::Changed,
    };
    let large = Path::new(name).extension().is_some_and(|kind| kind == "safetensors")
        || hashes.size > LARGEST_INLINE;
    Item {
        path: name.to_owned(),
        size: hashes.size,
        sha256: Some(hashes.sha256.clone()),
        change,
        large,
    }
}
