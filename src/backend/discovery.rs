//! Which backends there are: a path, the adapters of this program, `elo-backend-NAME` on PATH. No registry.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::axolotl::Axolotl;
use super::builtin::Builtin;
use super::command::Command;
use super::external::External;
use super::llama_factory::LlamaFactory;
use super::trl::Trl;
use super::{Adapter, Backend, BackendSettings, Origin};
use crate::error::{Error, Result};

/// Prefix of external backends on PATH.
const PREFIX: &str = "elo-backend-";

/// The adapters of this program.
const BUILT_IN: [&str; 5] = ["builtin", "axolotl", "llama-factory", "trl", "command"];

/// A backend that exists somehow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub origin: Origin,
    /// Version of what trains, where it is known.
    pub version: Option<String>,
    /// Why it cannot be used here; empty where it can.
    pub problems: Vec<String>,
    /// Files of the same name that it hides.
    pub shadows: Vec<PathBuf>,
}

fn built_in(name: &str) -> Option<Box<dyn Adapter>> {
    Some(match name {
        "builtin" => Box::new(Builtin),
        "axolotl" => Box::new(Axolotl),
        "llama-factory" | "llamafactory" => Box::new(LlamaFactory),
        "trl" => Box::new(Trl),
        "command" => Box::new(Command),
        _ => return None,
    })
}

/// The name by which an adapter goes.
fn canonical(name: &str) -> &str {
    if name == "llamafactory" { "llama-factory" } else { name }
}

fn external(name: &str, program: &Path, origin: Origin) -> Backend {
    let adapter = Box::new(External { name: name.to_owned(), program: program.to_owned() });
    Backend { name: name.to_owned(), origin, adapter }
}

/// Finds the backend that the settings name.
pub(super) fn find(settings: &BackendSettings) -> Result<Backend> {
    let name = settings.name.as_str();
    if name.contains('/') {
        return by_path(Path::new(name));
    }
    if let Some(adapter) = built_in(name) {
        let origin = if name == "command" { Origin::Command } else { Origin::BuiltIn };
        return Ok(Backend { name: canonical(name).to_owned(), origin, adapter });
    }
    let found = on_path(&search_path(settings));
    match found.get(name).and_then(|files| files.iter().find(|file| is_executable(file))) {
        Some(file) => Ok(external(name, file, Origin::OnPath(file.clone()))),
        None => Err(unknown(name, &found)),
    }
}

fn by_path(path: &Path) -> Result<Backend> {
    let hint =
        "give the path of an executable that speaks the backend protocol, see docs/backends.md";
    let problem = if !path.is_file() {
        "no such file"
    } else if !is_executable(path) {
        "it is not executable: chmod +x"
    } else {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = name.strip_prefix(PREFIX).unwrap_or(&name).to_owned();
        return Ok(external(&name, &path, Origin::Path(path.clone())));
    };
    Err(Error::Usage {
        problem: format!("backend `{}`: {problem}", path.display()),
        hint: hint.into(),
    })
}

fn unknown(name: &str, found: &BTreeMap<String, Vec<PathBuf>>) -> Error {
    let mut known: Vec<&str> = BUILT_IN.to_vec();
    known.extend(found.keys().map(String::as_str));
    if let Some([file, ..]) = found.get(name).map(Vec::as_slice) {
        return Error::Usage {
            problem: format!("backend `{name}`: `{}` is not executable", file.display()),
            hint: format!("chmod +x {}", file.display()),
        };
    }
    let close = known
        .iter()
        .map(|candidate| (distance(name, candidate), *candidate))
        .filter(|(distance, _)| *distance <= 1 + name.chars().count() / 3)
        .min();
    let meant = close.map_or_else(String::new, |(_, close)| format!("; did you mean `{close}`?"));
    Error::Usage {
        problem: format!("no backend `{name}`{meant}"),
        hint: format!(
            "known are {}; another one is an executable `{PREFIX}{name}` on PATH, or its path",
            known.join(", ")
        ),
    }
}

/// Levenshtein distance, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Every known backend.
pub fn list(settings: Option<&BackendSettings>) -> Vec<Listing> {
    let settings = settings.cloned().unwrap_or_default();
    let found = on_path(&search_path(&settings));
    let mut listings = Vec::new();
    for name in BUILT_IN {
        if name == "command" && settings.command.is_empty() {
            continue;
        }
        let settings = BackendSettings { name: name.to_owned(), ..settings.clone() };
        let shadows = found.get(name).cloned().unwrap_or_default();
        if let Ok(backend) = find(&settings) {
            listings.push(listed(&backend, &settings, shadows));
        }
    }
    for (name, files) in &found {
        if built_in(name).is_some() {
            continue;
        }
        let settings = BackendSettings { name: name.clone(), ..settings.clone() };
        if let Ok(backend) = find(&settings) {
            let chosen = match backend.origin() {
                Origin::OnPath(path) => path.clone(),
                _ => PathBuf::new(),
            };
            let shadows = files.iter().filter(|file| **file != chosen).cloned().collect();
            listings.push(listed(&backend, &settings, shadows));
        } else if let [first, rest @ ..] = files.as_slice() {
            listings.push(Listing {
                name: name.clone(),
                origin: Origin::OnPath(first.clone()),
                version: None,
                problems: vec!["not executable: chmod +x".to_owned()],
                shadows: rest.to_vec(),
            });
        }
    }
    listings
}

fn listed(backend: &Backend, settings: &BackendSettings, shadows: Vec<PathBuf>) -> Listing {
    let (version, problems) = match backend.describe(settings) {
        Ok(told) => (Some(told.version), told.problems),
        Err(error) => (None, vec![error.to_string()]),
    };
    let version = version.filter(|version| !version.is_empty() && version != "unknown");
    let origin = backend.origin().clone();
    Listing { name: backend.name().to_owned(), origin, version, problems, shadows }
}

/// PATH as the backend's processes will see it.
pub(super) fn search_path(settings: &BackendSettings) -> OsString {
    settings.env.get("PATH").map(OsString::from).or_else(|| env::var_os("PATH")).unwrap_or_default()
}

/// The first executable of a name on a search path.
pub(super) fn which(program: &str, path: &OsString) -> Option<PathBuf> {
    env::split_paths(path).map(|dir| dir.join(program)).find(|file| is_executable(file))
}

/// Files named like external backends, by name, in the order of the search path.
fn on_path(path: &OsString) -> BTreeMap<String, Vec<PathBuf>> {
    let mut found: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for directory in env::split_paths(path) {
        if directory.as_os_str().is_empty() || !seen.insert(directory.clone()) {
            continue;
        }
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let file = entry.file_name();
            let Some(name) = file.to_str().and_then(|file| file.strip_prefix(PREFIX)) else {
                continue;
            };
            if !name.is_empty() && entry.path().is_file() {
                found.entry(name.to_owned()).or_default().push(entry.path());
            }
        }
    }
    found
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
