//! A directory as names and digests, to say that two are equal or that one has not changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use elo_surgery::format::PROVENANCE_FILE;

/// Relative path to what is there: a digest, a link's target, or the kind of special file.
pub(crate) type Tree = BTreeMap<PathBuf, String>;

/// Every file below `root`. A missing root is an empty tree.
pub(crate) fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    walk(root, root, &mut found);
    found
}

fn walk(root: &Path, dir: &Path, found: &mut Tree) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let key = path.strip_prefix(root).unwrap().to_owned();
        let value = if meta.is_symlink() {
            format!("link {}", fs::read_link(&path).unwrap().display())
        } else if meta.is_dir() {
            walk(root, &path, found);
            continue;
        } else if meta.is_file() && meta.len() > (1 << 32) {
            format!("sparse {}", meta.len())
        } else if meta.is_file() {
            let bytes = fs::read(&path).unwrap();
            format!("{} {}", bytes.len(), blake3::hash(&bytes).to_hex())
        } else {
            "special".to_owned()
        };
        found.insert(key, value);
    }
}

/// The weights, config, index and sidecars: all but our own record, which names the command.
pub(crate) fn model_files(root: &Path) -> Tree {
    let mut files = tree(root);
    files.remove(Path::new(PROVENANCE_FILE));
    files
}

/// The safetensors files, `config.json` and the index.
pub(crate) fn weights_and_config(root: &Path) -> Tree {
    let mut files = tree(root);
    files.retain(|path, _| {
        let name = path.to_string_lossy();
        name.ends_with(".safetensors") || name.ends_with(".index.json") || name == "config.json"
    });
    files
}

/// One line for every path on which two trees disagree.
pub(crate) fn differences(left: &Tree, right: &Tree) -> Vec<String> {
    let paths: std::collections::BTreeSet<&PathBuf> = left.keys().chain(right.keys()).collect();
    paths
        .into_iter()
        .filter(|path| left.get(*path) != right.get(*path))
        .map(|path| {
            format!("{}: {:?} against {:?}", path.display(), left.get(path), right.get(path))
        })
        .collect()
}

/// Fails with the list of differences.
#[track_caller]
pub(crate) fn assert_same(left: &Tree, right: &Tree, what: &str) {
    assert!(!left.is_empty(), "{what}: nothing to compare");
    let found = differences(left, right);
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}
