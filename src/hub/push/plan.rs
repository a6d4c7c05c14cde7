//! What of a directory the Hub lacks.

use std::collections::BTreeSet;
use std::mem::take;
use std::path::Path;

use serde::Serialize;

use super::commit::is_same;
use super::modes::LARGEST_INLINE;
use super::weights::Weights;
use super::{Folder, Hashes};
use crate::error::printable;
use crate::hub::listing::{Listing, RemoteFile};

/// Git's own files: they are the repository's, not the model's.
const REPOSITORYS: [&str; 2] = [".gitattributes", ".gitignore"];
/// Why weights of another layout are deleted.
const REPLACED: &str = "replaced by the new weights";
/// Most names in a note.
const MOST_NAMES: usize = 5;

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
    /// The branch has it, and will not any more.
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
    /// Why it is deleted, if nobody asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
}

/// What would be published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Every file, in the order of paths.
    pub items: Vec<Item>,
    /// Files of the branch with older weights that stay, as nothing loads them.
    pub outranked: Vec<String>,
}

impl Plan {
    /// The files that are deleted.
    pub fn deleted(&self) -> Vec<String> {
        let deleted = self.items.iter().filter(|item| item.change == Change::Deleted);
        deleted.map(|item| item.path.clone()).collect()
    }

    /// Decisions about the files of the branch that the directory lacks.
    pub fn notes(&self) -> Vec<String> {
        let replaced: Vec<&str> = self
            .items
            .iter()
            .filter(|item| item.reason == Some(REPLACED))
            .map(|item| item.path.as_str())
            .collect();
        let outranked: Vec<&str> = self.outranked.iter().map(String::as_str).collect();
        let mut notes = Vec::new();
        if !replaced.is_empty() {
            notes.push(format!(
                "weights of the branch are {REPLACED}, and deleted in the same commit: {}",
                named(&replaced)
            ));
        }
        if !outranked.is_empty() {
            notes.push(format!(
                "older weights stay on the branch; nothing loads them beside safetensors: {}",
                named(&outranked)
            ));
        }
        notes
    }

    /// Takes files out that the repository does not take. What only those would replace stays.
    pub fn leave_out(&mut self, is_ignored: &dyn Fn(&str) -> bool) {
        let (ignored, rest): (Vec<Item>, Vec<Item>) = take(&mut self.items)
            .into_iter()
            .partition(|item| item.change != Change::Deleted && is_ignored(&item.path));
        let lacking = Weights::among(ignored.iter().map(|item| item.path.as_str()));
        let stays = |item: &Item| item.reason == Some(REPLACED) && lacking.include(&item.path);
        self.items = rest.into_iter().filter(|item| !stays(item)).collect();
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
/// files made besides. Weights at the root that are published replace all of the same checkpoint; with `delete`, everything goes
/// that the directory lacks.
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
    let elsewhere = folder.elsewhere().iter().map(String::as_str);
    let here: BTreeSet<&str> =
        items.iter().map(|item| item.path.as_str()).chain(elsewhere).collect();
    let stays = |path: &str| {
        here.contains(path)
            || keep.contains(path)
            || folder.is_excluded(path)
            || REPOSITORYS.contains(&path)
    };
    let weights = Weights::among(here.iter().copied());
    let (mut gone, mut outranked) = (Vec::new(), Vec::new());
    for file in head.iter().flat_map(|head| &head.files).filter(|file| !stays(&file.path)) {
        let reason = weights.include(&file.path).then_some(REPLACED);
        if delete || reason.is_some() {
            gone.push(deleted(file, reason));
        } else if weights.outrank(&file.path) {
            outranked.push(file.path.clone());
        }
    }
    items.extend(gone);
    items.sort_by(|a, b| a.path.cmp(&b.path));
    Plan { items, outranked }
}

fn deleted(file: &RemoteFile, reason: Option<&'static str>) -> Item {
    Item {
        path: file.path.clone(),
        size: file.size,
        sha256: None,
        change: Change::Deleted,
        large: false,
        reason,
    }
}

/// Files in a line.
pub(super) fn named(paths: &[impl AsRef<str>]) -> String {
    let shown = paths.iter().take(MOST_NAMES);
    let shown = shown.map(|path| format!("`{}`", printable(path.as_ref())));
    let mut names: Vec<String> = shown.collect();
    if paths.len() > names.len() {
        names.push(format!("{} more", paths.len() - names.len()));
    }
    names.join(", ")
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
        reason: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_weights_stay_where_the_new_ones_are_not_taken() {
        let item = |path: &str, reason: Option<&'static str>| Item {
            path: path.to_owned(),
            size: 1,
            sha256: None,
            change: if reason.is_some() { Change::Deleted } else { Change::New },
            large: true,
            reason,
        };
        let items = vec![
            item("config.json", None),
            item("extra/model.safetensors", None),
            item("model-00001-of-00001.safetensors", None),
            item("model.safetensors", Some(REPLACED)),
        ];
        let left = |ignored: &str| {
            let mut plan = Plan { items: items.clone(), outranked: Vec::new() };
            plan.leave_out(&|path| path == ignored);
            plan.items.into_iter().map(|item| item.path).collect::<Vec<_>>()
        };
        assert_eq!(
            left("extra/model.safetensors"),
            ["config.json", "model-00001-of-00001.safetensors", "model.safetensors"]
        );
        assert_eq!(
            left("model-00001-of-00001.safetensors"),
            ["config.json", "extra/model.safetensors"]
        );
        assert_eq!(left("none").len(), 4);
    }
}
