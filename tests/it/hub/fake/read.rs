//! What a repository is: its commits, its files, by page.

use serde_json::{Value, json};

use super::faults::Fault;
use super::hashes::{plain_sha1, sha1_of};
use super::store::{Blob, Content, Files, Repo};
use super::wire::{Answer, Request};
use super::{Rights, Shared};

/// A part of an address that no client should go to.
pub(super) const ESCAPED: &str = "ESCAPED";

impl Shared {
    pub(super) fn whoami(&self, request: &Request) -> Answer {
        match self.rights(request) {
            Rights::Owner => Answer::json(
                200,
                &json!({"type": "user", "id": "1", "name": "tester", "orgs": [{"name": "acme"}],
                        "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": "write"}}}),
            ),
            _ => Answer::error(401, "", "Invalid username or password."),
        }
    }

    /// Runs `look` on a repository that may be seen.
    pub(super) fn seen(
        &self,
        request: &Request,
        name: &str,
        look: impl FnOnce(&mut Repo) -> Answer,
    ) -> Answer {
        let rights = self.rights(request);
        if rights == Rights::Stranger {
            return Answer::error(401, "", "Invalid credentials in Authorization header");
        }
        let mut repos = self.repos.lock().unwrap();
        match repos.get_mut(name) {
            Some(repo) if !repo.private || rights == Rights::Owner => look(repo),
            _ if rights == Rights::Owner => {
                Answer::error(404, "RepoNotFound", "Repository not found")
            }
            _ => Answer::error(401, "RepoNotFound", "Invalid username or password."),
        }
    }

    pub(super) fn info(
        &self,
        request: &Request,
        name: &str,
        revision: &str,
        fault: Option<Fault>,
    ) -> Answer {
        self.seen(request, name, |repo| {
            let Some(commit) = repo.resolve(revision).map(str::to_owned) else {
                return Answer::error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
            };
            let files = repo.files(&commit).cloned().unwrap_or_default();
            let with_blobs = request.query("blobs").is_some_and(|b| b == "true" || b == "True" || b == "1");
            let mut siblings: Vec<Value> = files
                .iter()
                .map(|(path, blob)| if with_blobs { sibling(path, blob) } else { json!({"rfilename": path}) })
                .collect();
            if fault == Some(Fault::SiblingTraversal) {
                siblings.push(json!({"rfilename": format!("../../{ESCAPED}.json"), "size": 5}));
            }
            if fault == Some(Fault::RevisionMoves) {
                move_on(repo, revision, &files);
            }
            let sha = if fault == Some(Fault::ShaTraversal) { format!("../../../{ESCAPED}") } else { commit };
            Answer::json(
                200,
                &json!({"_id": "1", "id": name, "modelId": name, "author": name.split('/').next(), "sha": sha,
                        "private": repo.private, "gated": if repo.gated { json!("manual") } else { json!(false) },
                        "disabled": false, "downloads": 0, "likes": 0, "tags": [], "library_name": "transformers",
                        "createdAt": "2026-01-01T00:00:00.000Z", "lastModified": "2026-01-01T00:00:00.000Z",
                        "siblings": siblings}),
            )
        })
    }

    pub(super) fn refs(&self, request: &Request, name: &str) -> Answer {
        self.seen(request, name, |repo| {
            let list = |pulls: bool| -> Vec<Value> {
                let chosen = repo.branches.iter().filter(|(name, _)| name.starts_with("refs/pr/") == pulls);
                let full = |name: &str| if pulls { name.to_owned() } else { format!("refs/heads/{name}") };
                chosen.map(|(name, c)| json!({"name": name, "ref": full(name), "targetCommit": c})).collect()
            };
            let tag = |(name, c): (&String, &String)| json!({"name": name, "ref": format!("refs/tags/{name}"), "targetCommit": c});
            let tags: Vec<Value> = repo.tags.iter().map(tag).collect();
            let (branches, pulls) = (list(false), list(true));
            Answer::json(200, &json!({"branches": branches, "converts": [], "tags": tags, "pullRequests": pulls}))
        })
    }

    /// A revision's history, newest first.
    pub(super) fn commits(&self, request: &Request, name: &str, revision: &str) -> Answer {
        self.seen(request, name, |repo| {
            let mut next = repo.resolve(revision).map(str::to_owned);
            if next.is_none() {
                return Answer::error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
            }
            let mut listed = Vec::new();
            while let Some((id, commit)) = next.take().and_then(|id| repo.commits.get(&id).map(|commit| (id, commit))) {
                listed.push(json!({"id": id, "title": commit.title, "message": commit.description,
                                   "authors": [{"user": "tester"}], "date": "2026-01-01T00:00:00.000Z"}));
                next.clone_from(&commit.parent);
            }
            Answer::json(200, &json!(listed))
        })
    }

    pub(super) fn tree(
        &self,
        request: &Request,
        name: &str,
        revision: &str,
        under: &str,
        fault: Option<Fault>,
    ) -> Answer {
        let (page, origin) = (self.habits.lock().unwrap().page, format!("http://{}", self.hub));
        self.seen(request, name, |repo| {
            let Some(files) = repo.files(revision) else {
                return Answer::error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
            };
            let flag = |name| request.query(name).is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1");
            let recursive = flag("recursive");
            let mut entries = entries(files, under, recursive);
            if entries.is_empty() && !under.is_empty() {
                return Answer::error(404, "EntryNotFound", &format!("{under} does not exist on \"{revision}\""));
            }
            let start: usize = request.query("cursor").and_then(|c| c.parse().ok()).unwrap_or(0);
            let total = entries.len();
            entries = entries.into_iter().skip(start).take(page).collect();
            match fault {
                Some(Fault::TreePlain) => entries.iter_mut().for_each(|entry| make_plain(entry, files)),
                Some(fault) => spoil(&mut entries, fault),
                None => {}
            }
            let path = request.target.split('?').next().unwrap_or_default();
            let next = |origin: &str, cursor: usize| {
                format!("<{origin}{path}?recursive={recursive}&expand={}&cursor={cursor}>; rel=\"next\"", flag("expand"))
            };
            let link = match fault {
                Some(Fault::LinkOther) => Some(next(&format!("http://{}", self.other), start + page)),
                Some(Fault::LinkFile) => Some("<file:///etc/passwd>; rel=\"next\"".to_owned()),
                // Pages without entries, each with another cursor.
                Some(Fault::LinkEndless) => Some(next(&origin, start + page)),
                Some(Fault::LinkCircle) => Some(next(&origin, start)),
                _ if start + page < total => Some(next(&origin, start + page)),
                _ => None,
            };
            let answer = Answer::json(200, &json!(entries));
            link.into_iter().fold(answer, |answer, link| answer.with("Link", link))
        })
    }

    pub(super) fn paths_info(&self, request: &Request, name: &str, revision: &str) -> Answer {
        let asked = request.json();
        self.seen(request, name, |repo| {
            let Some(files) = repo.files(revision) else {
                return Answer::error(
                    404,
                    "RevisionNotFound",
                    &format!("Invalid rev id: {revision}"),
                );
            };
            let paths: Vec<&str> = match &asked["paths"] {
                Value::Array(paths) => paths.iter().filter_map(Value::as_str).collect(),
                one => one.as_str().into_iter().collect(),
            };
            let found = paths.iter().filter_map(|path| files.get_key_value(*path));
            Answer::json(200, &found.map(|(path, blob)| entry(path, blob)).collect())
        })
    }
}

/// A commit on top in which all large files have other bytes of the same size.
pub(super) fn move_on(repo: &mut Repo, revision: &str, files: &Files) {
    let change = |(path, blob): (&String, &Blob)| {
        let mut bytes = blob.content.bytes().unwrap();
        if blob.lfs {
            bytes.iter_mut().rev().take(16).for_each(|byte| *byte ^= 0xff);
        }
        (path.clone(), Blob::new(path, Content::of(bytes)))
    };
    let changed = files.iter().map(change).collect();
    repo.commit(revision, "somebody else's commit", "", changed);
}

/// A file's entry in a listing.
fn entry(path: &str, blob: &Blob) -> Value {
    let mut entry =
        json!({"type": "file", "oid": blob.oid, "size": blob.content.len(), "path": path});
    if blob.lfs {
        entry["lfs"] = json!({"oid": blob.sha256, "size": blob.content.len(), "pointerSize": blob.pointer_size()});
    }
    entry
}

fn sibling(path: &str, blob: &Blob) -> Value {
    let mut entry = json!({"rfilename": path, "blobId": blob.oid, "size": blob.content.len()});
    if blob.lfs {
        entry["lfs"] = json!({"sha256": blob.sha256, "size": blob.content.len(), "pointerSize": blob.pointer_size()});
    }
    entry
}

/// Files and folders below a folder.
fn entries(files: &Files, under: &str, recursive: bool) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    let mut folders: Vec<String> = Vec::new();
    let start = if under.is_empty() { String::new() } else { format!("{under}/") };
    for (path, blob) in files {
        let Some(rest) = path.strip_prefix(&start) else { continue };
        for (at, _) in rest.match_indices('/') {
            let folder = format!("{start}{}", &rest[..at]);
            let shown = recursive || !rest[..at].contains('/');
            if shown && !folders.contains(&folder) {
                found.push(json!({"type": "directory", "oid": sha1_of(&folder), "size": 0, "path": folder}));
                folders.push(folder);
            }
        }
        if recursive || !rest.contains('/') {
            found.push(entry(path, blob));
        }
    }
    found
}

/// A file as mirrors without git and LFS list it.
fn make_plain(entry: &mut Value, files: &Files) {
    let Some(blob) = entry["path"].as_str().and_then(|path| files.get(path)) else { return };
    let plain = plain_sha1(&blob.content).unwrap();
    *entry = json!({"type": "file", "oid": plain, "size": entry["size"], "path": entry["path"]});
}

/// Makes a listing hostile.
fn spoil(entries: &mut Vec<Value>, fault: Fault) {
    let file = |path: &str| json!({"type": "file", "oid": "c".repeat(40), "size": 5, "path": path});
    let of_files = entries.iter_mut().filter(|entry| entry["type"] == "file");
    match fault {
        Fault::TreeTraversal => entries.push(file(&format!("../../{ESCAPED}.json"))),
        Fault::TreeDeepTraversal => entries.push(file(&format!("a/../../../{ESCAPED}.json"))),
        Fault::TreeAbsolute => entries.push(file(&format!("/tmp/{ESCAPED}.json"))),
        Fault::TreeNul => entries.push(file(&format!("{ESCAPED}\0.json"))),
        Fault::TreeControl => entries.push(file(&format!("\u{1b}[31m{ESCAPED}\r\n.json"))),
        Fault::TreeEmptyName => entries.push(file("")),
        Fault::TreeLong => entries.push(file(&format!("{}.json", "l".repeat(100_000)))),
        Fault::TreeTwice => entries.push(file("config.json")),
        Fault::TreeFileAndFolder => entries.push(file("config.json/inner.json")),
        Fault::TreeOid => of_files.for_each(|entry| {
            entry["oid"] = json!(format!("../../../{ESCAPED}"));
            if entry["lfs"].is_object() {
                entry["lfs"]["oid"] = json!(format!("../../../{ESCAPED}"));
            }
        }),
        Fault::TreeShaLie => of_files.for_each(|entry| {
            entry["oid"] = json!("d".repeat(40));
            if entry["lfs"].is_object() {
                entry["lfs"]["oid"] = json!("d".repeat(64));
            }
        }),
        Fault::SizeLie | Fault::SizeSmall | Fault::SizeHuge | Fault::SizeNegative => of_files
            .for_each(|entry| {
                let size = entry["size"].as_i64().unwrap_or(0);
                let size = match fault {
                    Fault::SizeLie => size + 1,
                    Fault::SizeSmall => size - 1,
                    Fault::SizeHuge => 1 << 62,
                    _ => -size,
                };
                entry["size"] = json!(size);
                if entry["lfs"].is_object() {
                    entry["lfs"]["size"] = json!(size);
                }
            }),
        _ => {}
    }
}
