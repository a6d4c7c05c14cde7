//! What changes repositories: new ones, branches, commits, pull requests.

use serde_json::{Value, json};

use super::faults::Fault;
use super::hashes::{from_base64, sha256};
use super::read::move_on;
use super::store::{Blob, Content, Files, Repo};
use super::wire::{Answer, Manner, Request};
use super::{Rights, Shared};

/// The user's name, and the one organization that takes the user's repositories besides `acme`.
const CLOSED: &str = "closed";

impl Shared {
    pub(super) fn create(&self, request: &Request) -> Answer {
        let asked = request.json();
        let name = match (asked["organization"].as_str(), asked["name"].as_str()) {
            (Some(org), Some(name)) => format!("{org}/{name}"),
            (None, Some(name)) if name.contains('/') => name.to_owned(),
            (None, Some(name)) => format!("tester/{name}"),
            _ => return Answer::error(400, "", "a name is needed"),
        };
        if name.starts_with(CLOSED) {
            let message = format!(
                "You don't have the rights to create a model under the namespace \"{CLOSED}\""
            );
            return Answer::error(403, "", &message);
        }
        if asked["type"].as_str().is_some_and(|kind| kind != "model") {
            return Answer::error(400, "", "only models");
        }
        let url = format!("http://{}/{name}", self.hub);
        let mut repos = self.repos.lock().unwrap();
        if repos.contains_key(&name) {
            let told = json!({"error": "You already created this model repo", "url": url});
            return Answer::json(409, &told)
                .with("X-Error-Message", "You already created this model repo");
        }
        let private = asked["private"].as_bool() == Some(true) || asked["visibility"] == "private";
        let mut repo = Repo { private, ..Repo::default() };
        let attributes = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n";
        let attributes = Blob::new(".gitattributes", Content::of(attributes));
        repo.commit(
            "main",
            "initial commit",
            "",
            Files::from([(".gitattributes".to_owned(), attributes)]),
        );
        repos.insert(name.clone(), repo);
        Answer::json(200, &json!({"url": url, "name": name, "id": "1"}))
    }

    pub(super) fn branch(&self, request: &Request, name: &str, branch: &str) -> Answer {
        let start = request.json()["startingPoint"].as_str().unwrap_or("main").to_owned();
        self.seen(request, name, |repo| {
            if repo.branches.contains_key(branch) {
                return Answer::error(409, "", &format!("Reference already exists: {branch}"));
            }
            let Some(commit) = repo.resolve(&start).map(str::to_owned) else {
                return Answer::error(404, "RevisionNotFound", &format!("Invalid rev id: {start}"));
            };
            repo.branches.insert(branch.to_owned(), commit);
            Answer::json(200, &json!({}))
        })
    }

    pub(super) fn tag(&self, request: &Request, name: &str, revision: &str) -> Answer {
        let asked = request.json();
        self.seen(request, name, |repo| {
            let Some(tag) = asked["tag"].as_str() else {
                return Answer::error(400, "", "a tag needs a name");
            };
            if repo.tags.contains_key(tag) {
                return Answer::error(409, "", &format!("Tag already exists: {tag}"));
            }
            let Some(commit) = repo.resolve(revision).map(str::to_owned) else {
                return Answer::error(
                    404,
                    "RevisionNotFound",
                    &format!("Invalid rev id: {revision}"),
                );
            };
            repo.tags.insert(tag.to_owned(), commit);
            Answer::json(200, &json!({}))
        })
    }

    /// Pull requests: listed, and opened as drafts without commits.
    pub(super) fn discussions(&self, request: &Request, name: &str) -> Answer {
        let asked = request.json();
        self.seen(request, name, |repo| {
            if request.method == "POST" {
                let Some(main) = repo.branches.get("main").cloned() else {
                    return Answer::error(400, "", "the repository is empty");
                };
                let number = pulls(repo).len() + 1;
                repo.branches.insert(format!("refs/pr/{number}"), main);
                let url = format!("http://{}/{name}/discussions/{number}", self.hub);
                return Answer::json(201, &json!({"num": number, "url": url, "pullRequest": true}));
            }
            let listed = pulls(repo).into_iter().map(|(number, commit)| {
                let title = repo.commits.get(&commit).map(|commit| commit.title.clone());
                json!({"num": number, "title": title, "status": "open", "isPullRequest": true,
                       "author": {"name": "tester"}, "createdAt": "2026-01-01T00:00:00.000Z"})
            });
            let listed: Vec<Value> = listed.collect();
            Answer::json(200, &json!({"count": listed.len(), "start": 0, "discussions": listed}))
        })
        .with("X-Title", asked["title"].as_str().unwrap_or_default().replace(char::is_control, " "))
    }

    pub(super) fn preupload(&self, request: &Request, name: &str, revision: &str) -> Answer {
        let asked = request.json();
        self.seen(request, name, |repo| {
            let Some(files) = repo.files(revision) else {
                return Answer::error(
                    404,
                    "RevisionNotFound",
                    &format!("Invalid rev id: {revision}"),
                );
            };
            let Some(listed) = asked["files"].as_array() else {
                return Answer::error(400, "", "no files");
            };
            let answer = |file: &Value| {
                let path = file["path"].as_str()?;
                let size = file["size"].as_u64()?;
                from_base64(file["sample"].as_str()?)?;
                let mode = if self.is_lfs(path, size) { "lfs" } else { "regular" };
                let oid = files.get(path).map(|blob| blob.oid.clone());
                Some(json!({"path": path, "uploadMode": mode, "shouldIgnore": false, "oid": oid}))
            };
            match listed.iter().map(answer).collect::<Option<Vec<_>>>() {
                Some(files) => Answer::json(200, &json!({"files": files})),
                None => Answer::error(400, "", "each file needs `path`, `size` and `sample`"),
            }
        })
    }

    /// A commit: its header, and what it does with files, a line each.
    pub(super) fn commit(
        &self,
        request: &Request,
        name: &str,
        revision: &str,
        fault: Option<Fault>,
    ) -> Answer {
        if self.rights(request) != Rights::Owner {
            return Answer::error(401, "", "Invalid username or password.");
        }
        if request.header("content-type").is_none_or(|kind| !kind.contains("application/x-ndjson"))
        {
            return Answer::error(400, "", "a commit is application/x-ndjson");
        }
        let lines = request.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines: Result<Vec<Value>, _> = lines.map(serde_json::from_slice).collect();
        let Ok(lines) = lines else { return Answer::error(400, "", "a line is no JSON") };
        let pull = request.query("create_pr").is_some_and(|pr| pr == "1" || pr == "true");
        let done = self.seen(request, name, |repo| {
            if fault == Some(Fault::CommitMoves) {
                let files = repo.files(revision).cloned().unwrap_or_default();
                move_on(repo, revision, &files);
            }
            let carried_out = if fault == Some(Fault::CommitUnseen) {
                let files = repo.files(revision).cloned().unwrap_or_default();
                Ok((repo.commit(revision, "unseen", "", files), None))
            } else {
                carry_out(repo, revision, &lines, pull, &|path, size| self.is_lfs(path, size))
            };
            match carried_out {
                Ok((commit, pull)) => {
                    let url = format!("http://{}/{name}", self.hub);
                    let pull = pull.map(|number| format!("{url}/discussions/{number}"));
                    Answer::json(
                        200,
                        &json!({"success": true, "commitOid": commit, "commitUrl": format!("{url}/commit/{commit}"),
                                "hookOutput": "", "pullRequestUrl": pull}),
                    )
                }
                Err((status, message)) => Answer::error(status, "", &message),
            }
        });
        match fault {
            _ if done.status != 200 => done,
            Some(Fault::Commit500Done) => Answer::error(500, "", "fault commit500-done"),
            Some(Fault::CommitCloseDone) => done.manner(Manner::Close),
            Some(Fault::CommitHangDone) => done.manner(Manner::Silent),
            Some(Fault::CommitGarbageDone) => Answer::new(200, "{\"commitOid\": \"aa"),
            _ => done,
        }
    }
}

/// Open pull requests: number and commit.
fn pulls(repo: &Repo) -> Vec<(usize, String)> {
    let numbered = repo.branches.iter().filter_map(|(name, commit)| {
        Some((name.strip_prefix("refs/pr/")?.parse().ok()?, commit.clone()))
    });
    numbered.collect()
}

type Refused = (u16, String);

/// Makes the commit, and the pull request if it is to be one.
fn carry_out(
    repo: &mut Repo,
    revision: &str,
    lines: &[Value],
    pull: bool,
    is_lfs: &dyn Fn(&str, u64) -> bool,
) -> Result<(String, Option<usize>), Refused> {
    let refused = |message: String| Err((400, message));
    let Some(head) = repo.branches.get(revision).cloned() else {
        return Err((404, format!("Invalid rev id: {revision}")));
    };
    let mut files = repo.files(&head).cloned().unwrap_or_default();
    let mut header = None;
    let mut named: Vec<String> = Vec::new();
    for line in lines {
        let value = &line["value"];
        let path = value["path"].as_str().unwrap_or_default().to_owned();
        let legal = !path.is_empty()
            && path.split('/').all(|part| !matches!(part, "" | "." | ".." | ".git"));
        let key = line["key"].as_str().unwrap_or_default();
        if key != "header" && (!legal || named.contains(&path)) {
            return refused(format!("`{path}` is no path of a file, or is named twice"));
        }
        named.push(path.clone());
        match key {
            "header" => header = Some(value),
            "file" => {
                let content = value["content"].as_str().filter(|_| value["encoding"] == "base64");
                let Some(bytes) = content.and_then(from_base64) else {
                    return refused(format!("`{path}` has no content in base64"));
                };
                if is_lfs(&path, bytes.len() as u64) {
                    return refused(format!("`{path}` must be uploaded by LFS"));
                }
                card(&path, &bytes)?;
                let content = Content::of(bytes);
                let name = sha256(&content).map_err(|error| (500, error.to_string()))?;
                files.insert(path.clone(), Blob::hashed(false, content, name));
            }
            "lfsFile" => {
                let oid =
                    value["oid"].as_str().filter(|_| value["algo"] == "sha256").unwrap_or_default();
                let Some(content) = repo.objects.get(oid).cloned() else {
                    return refused(format!(
                        "`{path}`: LFS pointer pointed to a file that does not exist: {oid}"
                    ));
                };
                if value["size"].as_u64().is_some_and(|size| size != content.len()) {
                    return refused(format!("`{path}` has another size"));
                }
                files.insert(path, Blob::hashed(true, content, oid.to_owned()));
            }
            "deletedFile" => {
                if files.remove(&path).is_none() {
                    return refused(format!("`{path}` cannot be deleted: it does not exist"));
                }
            }
            other => return refused(format!("`{other}` is no operation")),
        }
    }
    let Some(header) = header else { return refused("a commit needs a header".into()) };
    let Some(summary) = header["summary"].as_str().filter(|summary| !summary.is_empty()) else {
        return refused("a commit needs a summary".into());
    };
    if header["parentCommit"].as_str().is_some_and(|parent| parent != head) {
        return Err((412, "A commit has happened since. Please refresh and try again.".into()));
    }
    let description = header["description"].as_str().unwrap_or_default();
    if pull {
        let number = pulls(repo).len() + 1;
        let commit = repo.add(Some(head), summary, description, files);
        repo.branches.insert(format!("refs/pr/{number}"), commit.clone());
        return Ok((commit, Some(number)));
    }
    Ok((repo.commit(revision, summary, description, files), None))
}

/// The Hub reads the metadata of model cards, and refuses what it cannot read.
fn card(path: &str, bytes: &[u8]) -> Result<(), Refused> {
    let text = String::from_utf8_lossy(bytes);
    if path == "README.md" && text.starts_with("---\n") && !text[4..].contains("\n---") {
        return Err((400, "Invalid metadata in README.md: it does not end".into()));
    }
    Ok(())
}
