//! Who answers what, and what goes wrong before anybody does.

use super::faults::Fault;
use super::log::Origin;
use super::wire::{Answer, Manner, Request};
use super::{Rights, Shared};

impl Shared {
    /// The answer to a request. `fault` is what goes wrong with requests of its kind; `shown` becomes what did go wrong.
    pub(super) fn answer(
        &self,
        origin: Origin,
        request: &Request,
        fault: Option<Fault>,
        shown: &mut Option<Fault>,
    ) -> Answer {
        if let Some(answer) = fault.and_then(instead) {
            return answer;
        }
        let segments = request.segments();
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        if let ["api", "models", org, name, ..] = parts.as_slice()
            && let Some(to) = self.renamed.lock().unwrap().get(&repo(org, name))
        {
            let to = request.target.replacen(&repo(org, name), to, 1);
            return Answer::new(307, "").with("Location", to);
        }
        if request.method != "GET" && request.method != "HEAD" && origin == Origin::Hub {
            let open =
                matches!(parts.as_slice(), ["api", "models", _, _, "paths-info", _] | ["cas", ..]);
            match self.rights(request) {
                _ if open => {}
                Rights::Owner => {}
                Rights::Nobody => return Answer::error(401, "", "Invalid username or password."),
                Rights::Stranger => {
                    return Answer::error(401, "", "Invalid credentials in Authorization header");
                }
            }
        }
        match (request.method.as_str(), parts.as_slice()) {
            ("GET", ["api", "whoami-v2"]) => self.whoami(request),
            ("GET", ["api", "models", org, name]) => {
                self.info(request, &repo(org, name), "main", fault)
            }
            ("GET", ["api", "models", org, name, "revision", revision @ ..]) => {
                self.info(request, &repo(org, name), &revision.join("/"), fault)
            }
            ("GET", ["api", "models", org, name, "tree", revision, under @ ..]) => {
                self.tree(request, &repo(org, name), revision, &under.join("/"), fault)
            }
            ("GET", ["api", "models", org, name, "refs"]) => self.refs(request, &repo(org, name)),
            ("GET", ["api", "models", org, name, "commits", revision]) => {
                self.commits(request, &repo(org, name), revision)
            }
            ("GET" | "POST", ["api", "models", org, name, "discussions", ..]) => {
                self.discussions(request, &repo(org, name))
            }
            ("POST", ["api", "models", org, name, "paths-info", revision]) => {
                self.paths_info(request, &repo(org, name), revision)
            }
            (
                "GET",
                ["api", "models", org, name, kind @ ("xet-read-token" | "xet-write-token"), _],
            ) => self.xet_token(request, &repo(org, name), kind, fault),
            ("POST", ["api", "validate-yaml"]) => {
                Answer::json(200, &serde_json::json!({"errors": [], "warnings": []}))
            }
            ("POST", ["api", "repos", "create"]) => self.create(request),
            ("POST", ["api", "models", org, name, "branch", branch]) => {
                self.branch(request, &repo(org, name), branch)
            }
            ("POST", ["api", "models", org, name, "tag", revision]) => {
                self.tag(request, &repo(org, name), revision)
            }
            ("POST", ["api", "models", org, name, "preupload", revision]) => {
                self.preupload(request, &repo(org, name), revision)
            }
            ("POST", ["api", "models", org, name, "commit", revision]) => {
                self.commit(request, &repo(org, name), revision, fault)
            }
            ("GET" | "HEAD", ["api", "resolve-cache", "models", org, name, commit, path @ ..]) => {
                self.small_file(request, &repo(org, name), commit, &path.join("/"), shown)
            }
            ("POST", [org, name, "info", "lfs", "objects", "batch"]) => {
                self.batch(request, &repo(org, name.trim_end_matches(".git")), fault)
            }
            ("POST", [org, name, "info", "lfs", "verify"]) => {
                self.verify(request, &repo(org, name.trim_end_matches(".git")))
            }
            ("PUT", ["lfs", org, name, oid, rest @ ..]) if origin == Origin::Other => {
                self.put(request, &repo(org, name), oid, rest.first().copied(), fault)
            }
            ("POST", ["lfs", "complete", org, name, oid]) => {
                self.complete(request, &repo(org, name), oid)
            }
            ("GET", ["cdn", org, name, sha256, ..]) if origin == Origin::Other => {
                self.signed_bytes(request, &repo(org, name), sha256, shown)
            }
            (_, ["cas", rest @ ..]) => self.cas(request, rest),
            ("GET" | "HEAD", [org, name, "resolve", "refs", "pr", number, path @ ..]) => {
                let revision = format!("refs/pr/{number}");
                self.resolve(origin, request, &repo(org, name), &revision, &path.join("/"), shown)
            }
            ("GET" | "HEAD", [org, name, "resolve", revision, path @ ..]) => {
                self.resolve(origin, request, &repo(org, name), revision, &path.join("/"), shown)
            }
            _ => Answer::error(404, "", "the fake Hub has no such address"),
        }
    }
}

fn repo(org: &str, name: &str) -> String {
    format!("{org}/{name}")
}

/// What a fault answers although nobody looked at the request.
fn instead(fault: Fault) -> Option<Answer> {
    use Fault as F;
    let broken = |status| Answer::error(status, "", &format!("fault {}", fault.name()));
    let silent = || Answer::new(200, "").manner(Manner::Silent);
    let text = |bytes: Vec<u8>| Answer::new(200, bytes).with("Content-Type", "application/json");
    Some(match fault {
        F::Info500
        | F::Tree500
        | F::Create500
        | F::Preupload500
        | F::Batch500
        | F::Put500
        | F::Complete500
        | F::Commit500
        | F::Token500
        | F::Cas500 => broken(500),
        F::Create403 => broken(403),
        F::Put403 => Answer::new(
            403,
            "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
        ),
        F::Verify404 => broken(404),
        F::Cas401 => broken(401),
        F::Create409 | F::Branch409 => Answer::error(409, "", "it exists already"),
        F::Commit400 => Answer::error(400, "", "Invalid metadata in README.md"),
        F::Commit412 => {
            Answer::error(412, "", "A commit has happened since. Please refresh and try again.")
        }
        F::Info429 | F::Commit429 => broken(429).with("Retry-After", "1"),
        F::Commit429Long => broken(429).with("Retry-After", "3600"),
        F::InfoHang | F::PutHang | F::CasHang => silent(),
        F::CasClose => silent().manner(Manner::Close),
        F::InfoGarbage | F::TreeGarbage | F::PreuploadGarbage => text(b"{\"sha\": \"aaaa".to_vec()),
        F::TreeObject => text(b"{\"error\": null}".to_vec()),
        F::InfoHuge | F::TreeHuge => text(b"[".to_vec()).manner(Manner::Endless),
        F::InfoDeep => text(vec![b'['; 1 << 20]),
        _ => return None,
    })
}
