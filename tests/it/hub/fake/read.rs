//! What can be read: what a repository is, its files, their bytes.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::faults::{Fault, Place};
use super::hashes::{escape, sha1_of};
use super::log::Origin;
use super::store::{Blob, Content, Files, Repo};
use super::wire::{Answer, Body, Manner, Request};
use super::{Rights, Shared};

/// A part of an address that no client should go to.
const ESCAPED: &str = "ESCAPED";

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
            while let Some((id, commit)) = next.and_then(|id| repo.commits.get(&id).map(|commit| (id, commit))) {
                listed.push(json!({"id": id, "title": commit.title, "message": commit.description,
                                   "authors": [{"user": "tester"}], "date": "2026-01-01T00:00:00.000Z"}));
                next = commit.parent.clone();
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
            if let Some(fault) = fault {
                spoil(&mut entries, fault);
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

    /// `/REPO/resolve/REV/PATH`: what a file is, and where it lies.
    pub(super) fn resolve(
        &self,
        origin: Origin,
        request: &Request,
        name: &str,
        revision: &str,
        path: &str,
        shown: &mut Option<Fault>,
    ) -> Answer {
        let is_head = request.method == "HEAD";
        let taken = if is_head { self.faults.take(Place::Head, &request.target) } else { None };
        let fault = taken.or_else(|| self.faults.take(Place::Resolve, &request.target));
        *shown = fault;
        match fault {
            Some(Fault::HeadHang) => return Answer::new(200, "").manner(Manner::Silent),
            Some(Fault::Head500) => return Answer::error(500, "", "fault head500"),
            Some(Fault::RedirectOther) => {
                return Answer::new(302, "")
                    .with("Location", format!("http://{}{}", self.other, request.target));
            }
            Some(Fault::RedirectLoop) => {
                return Answer::new(302, "").with("Location", request.target.clone());
            }
            Some(Fault::RedirectFile) => {
                return Answer::new(302, "").with("Location", "file:///etc/passwd");
            }
            Some(Fault::RedirectNowhere) => return Answer::new(302, ""),
            _ => {}
        }
        let rights = if origin == Origin::Other { Rights::Owner } else { self.rights(request) };
        let elsewhere = self.habits.lock().unwrap().elsewhere && origin == Origin::Hub;
        let mut found = None;
        let look = |repo: &mut Repo| {
            if repo.gated && rights != Rights::Owner {
                let message = "Access to this model is restricted. You must have access to it and be authenticated to access it.";
                return Answer::error(401, "GatedRepo", message);
            }
            let Some(commit) = repo.resolve(revision).map(str::to_owned) else {
                return Answer::error(
                    404,
                    "RevisionNotFound",
                    &format!("Invalid rev id: {revision}"),
                );
            };
            let Some(blob) = repo.files(&commit).and_then(|files| files.get(path)) else {
                return Answer::error(404, "EntryNotFound", "Entry not found")
                    .with("X-Repo-Commit", commit);
            };
            found = Some((commit, blob.clone()));
            Answer::new(200, "")
        };
        let seen = if origin == Origin::Other {
            self.repos
                .lock()
                .unwrap()
                .get_mut(name)
                .map_or_else(|| Answer::error(404, "", "no such file"), look)
        } else {
            self.seen(request, name, look)
        };
        let Some((commit, blob)) = found else { return seen };
        let mut told = Answer::new(200, "").with("X-Repo-Commit", commit.clone());
        told = told.with("ETag", format!("\"{}\"", blob.etag()));
        if blob.lfs {
            told = told.with("X-Linked-Etag", format!("\"{}\"", blob.etag()));
            told = told.with("X-Linked-Size", blob.content.len().to_string());
        }
        told = lie(told, fault, &blob);
        if blob.lfs && elsewhere {
            let number = self.signature.load(Ordering::SeqCst);
            let expires = format!("X-Signature={number}&X-Expires=3600");
            let at = format!(
                "http://{}/cdn/{name}/{}/{}?{expires}",
                self.other,
                blob.sha256,
                escape(path)
            );
            return Answer { status: 302, ..told }.with("Location", at);
        }
        if !blob.lfs && origin == Origin::Hub {
            let at = format!("/api/resolve-cache/models/{name}/{commit}/{}", escape(path));
            return Answer { status: 307, ..told }.with("Location", at);
        }
        self.deliver(request, &blob.content, told, shown)
    }

    /// Where the Hub keeps small files.
    pub(super) fn small_file(
        &self,
        request: &Request,
        name: &str,
        commit: &str,
        path: &str,
        shown: &mut Option<Fault>,
    ) -> Answer {
        let mut found = None;
        let seen = self.seen(request, name, |repo| {
            found = repo.files(commit).and_then(|files| files.get(path)).cloned();
            Answer::error(404, "EntryNotFound", "Entry not found")
        });
        let Some(blob) = found else { return seen };
        let told = Answer::new(200, "").with("X-Repo-Commit", commit);
        self.deliver(
            request,
            &blob.content,
            told.with("ETag", format!("\"{}\"", blob.etag())),
            shown,
        )
    }

    /// Where the Hub's stores of large files are: a signed address, which needs no token and takes none.
    pub(super) fn signed_bytes(
        &self,
        request: &Request,
        name: &str,
        sha256: &str,
        shown: &mut Option<Fault>,
    ) -> Answer {
        let refused = |message: &str| {
            Answer::new(
                403,
                format!("<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>"),
            )
        };
        let number: u64 = request.query("X-Signature").and_then(|n| n.parse().ok()).unwrap_or(0);
        if number < self.signature.load(Ordering::SeqCst) {
            return refused("Request has expired");
        }
        if request.header("authorization").is_some() {
            return Answer::new(
                400,
                "<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>",
            );
        }
        let content =
            self.repos.lock().unwrap().get(name).and_then(|repo| repo.objects.get(sha256)).cloned();
        let Some(content) = content else { return refused("no such object") };
        // A store of objects knows nothing of the Hub's names.
        let etag = format!("\"{}-1\"", sha1_of(sha256).get(..32).unwrap_or_default());
        self.deliver(request, &content, Answer::new(200, "").with("ETag", etag), shown)
    }

    /// A file's bytes, or the range that is asked for.
    fn deliver(
        &self,
        request: &Request,
        content: &Content,
        told: Answer,
        shown: &mut Option<Fault>,
    ) -> Answer {
        let told =
            told.with("Accept-Ranges", "bytes").with("Content-Type", "application/octet-stream");
        let size = content.len();
        if request.method == "HEAD" {
            return told.with("Content-Length", size.to_string());
        }
        let fault = self.faults.take(Place::Bytes, &request.target);
        *shown = fault.or(*shown);
        if fault == Some(Fault::LinkExpired) {
            self.signature.fetch_add(1, Ordering::SeqCst);
            return Answer::new(
                403,
                "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
            );
        }
        let etag =
            told.headers.iter().find(|(name, _)| name == "ETag").map(|(_, etag)| etag.clone());
        let same = request.header("if-range").is_none_or(|wanted| Some(wanted) == etag.as_deref());
        let range = request.range(size).filter(|_| same && fault != Some(Fault::NoRange));
        let (mut status, range) = range.map_or((200, 0..size), |range| (206, range));
        if status == 206 && (range.start >= range.end || fault == Some(Fault::Get416)) {
            return Answer { status: 416, ..told }.with("Content-Range", format!("bytes */{size}"));
        }
        if status == 200 && fault == Some(Fault::Get416) {
            status = 416;
        }
        let mut told = Answer { status, ..told };
        if status == 206 {
            told = told
                .with("Content-Range", format!("bytes {}-{}/{size}", range.start, range.end - 1));
        }
        told.body = Body::Part {
            content: content.clone(),
            range,
            spoiled: fault == Some(Fault::WrongBytes),
        };
        match fault {
            Some(fault) => spoiled(told, fault, content),
            None => told,
        }
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

/// Makes what is told of a file hostile.
fn lie(told: Answer, fault: Option<Fault>, blob: &Blob) -> Answer {
    let etag = |told: Answer, etag: &str| {
        let told = told.with("ETag", format!("\"{etag}\""));
        if blob.lfs { told.with("X-Linked-Etag", format!("\"{etag}\"")) } else { told }
    };
    match fault {
        Some(Fault::EtagTraversal) => etag(told, &format!("../../../../{ESCAPED}")),
        Some(Fault::EtagOdd) => etag(told, "W/\"not a hash"),
        Some(Fault::EtagLie) => etag(told, &"e".repeat(if blob.lfs { 64 } else { 40 })),
        Some(Fault::CommitTraversal) => told.with("X-Repo-Commit", format!("../../../{ESCAPED}")),
        Some(Fault::SizeHeaderLie) => {
            told.with("X-Linked-Size", (blob.content.len() + 1).to_string())
        }
        _ => told,
    }
}

/// Bytes that come in the wrong way.
fn spoiled(told: Answer, fault: Fault, content: &Content) -> Answer {
    let refused = |status: u16| Answer::error(status, "", &format!("fault {}", fault.name()));
    let size = content.len();
    let range = match &told.body {
        Body::Part { range, .. } => range.clone(),
        Body::Bytes(_) => 0..size,
    };
    let part = |range| Body::Part { content: content.clone(), range, spoiled: false };
    match fault {
        Fault::Get403 => refused(403),
        Fault::Get404 => refused(404),
        Fault::Get500 => refused(500),
        Fault::Get429 => refused(429).with("Retry-After", "1"),
        Fault::Get503 => refused(503).with("Retry-After", "1"),
        Fault::Get429Long => refused(429).with("Retry-After", "86400"),
        Fault::Get429Odd => refused(429).with("Retry-After", "soon \u{1b}[31m"),
        Fault::Truncate => told.manner(Manner::Cut { announced: true }),
        Fault::TruncateClose => told.manner(Manner::Cut { announced: false }),
        Fault::Stall => told.manner(Manner::Stall),
        Fault::Drip => told.manner(Manner::Drip),
        Fault::SlowHead => told.manner(Manner::SlowHead),
        Fault::Endless => told.manner(Manner::Endless),
        Fault::WrongRange => {
            let shifted = format!("bytes {}-{}/{size}", range.start + 8, range.end + 7);
            Answer { status: 206, ..told }.with("Content-Range", shifted)
        }
        Fault::WrongTotal => {
            let other = format!("bytes {}-{}/{}", range.start, range.end - 1, size + 8);
            Answer { status: 206, ..told }.with("Content-Range", other)
        }
        Fault::NoContentRange => {
            let headers =
                told.headers.into_iter().filter(|(name, _)| name != "Content-Range").collect();
            Answer { status: 206, headers, ..told }
        }
        Fault::ShortRange => {
            let end = range.start + (range.end - range.start).div_ceil(2);
            let told = Answer { status: 206, body: part(range.start..end), ..told };
            told.with("Content-Range", format!("bytes {}-{}/{size}", range.start, end - 1))
        }
        Fault::LongBody => Answer { body: part(range.start..size.min(range.end + 4096)), ..told },
        Fault::EmptyBody => Answer { body: Body::Bytes(Vec::new()), ..told },
        Fault::Gzip => told.with("Content-Encoding", "gzip"),
        Fault::Close => told.manner(Manner::Close),
        Fault::Hang => told.manner(Manner::Silent),
        Fault::Garbage => told.manner(Manner::Garbage),
        Fault::HtmlPage => {
            Answer::new(200, "<html><body>Please sign in to the network</body></html>")
                .with("Content-Type", "text/html")
        }
        Fault::Changed => {
            let mut bytes = content.bytes().unwrap();
            bytes.iter_mut().for_each(|byte| *byte ^= 0x11);
            let told = Answer {
                body: Body::Part { content: Content::of(bytes), range, spoiled: false },
                ..told
            };
            told.with("ETag", format!("\"{}\"", "f".repeat(32)))
        }
        _ => told,
    }
}
