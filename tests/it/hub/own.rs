//! The fake Hub itself: that it answers as the Hub does, checks what the Hub checks, and goes wrong as it says.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::fake::faults::{ALL, Fault, Place, Rule};
use super::fake::hashes::{contains, from_base64, hex, unescape};
use super::fake::log::{Origin, Sent};
use super::fake::store::{Blob, Content, Files};
use super::fake::{FakeHub, TOKEN, Transfer};

const FILE: &str = "/acme/m/resolve/main/model.safetensors";

/// A Hub with a model of one large file and one small one.
fn hub() -> FakeHub {
    let hub = FakeHub::start();
    let file = |path: &str, bytes: &[u8]| (path.to_owned(), Blob::new(path, Content::of(bytes)));
    hub.add(
        "acme/m",
        Files::from([file("config.json", b"{}"), file("model.safetensors", &[7; 1000])]),
    );
    hub
}

/// An answer: status, head, body.
struct Seen {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One request, on a connection of its own. What does not come within a second does not come.
fn ask(address: &str, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Seen {
    let mut stream = TcpStream::connect(address.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    for (name, value) in headers {
        let _infallible = write!(head, "{name}: {value}\r\n");
    }
    if !body.is_empty() || method == "PUT" {
        let _infallible = write!(head, "Content-Length: {}\r\n", body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    let _taken = stream.write_all(body);
    let mut bytes = Vec::new();
    let mut piece = vec![0; 65536];
    while let Ok(read) = stream.read(&mut piece) {
        bytes.extend_from_slice(&piece[..read]);
        if read == 0 || bytes.len() > 1 << 22 {
            break;
        }
    }
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(bytes.len());
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Seen { status, head, body: bytes.get(end + 4..).unwrap_or_default().to_vec() }
}

fn bearer() -> (&'static str, String) {
    ("Authorization", format!("Bearer {TOKEN}"))
}

/// With the token.
fn ask_as_owner(hub: &FakeHub, method: &str, target: &str, kind: &str, body: &[u8]) -> Seen {
    let (name, value) = bearer();
    ask(&hub.endpoint(), method, target, &[(name, &value), ("Content-Type", kind)], body)
}

fn post(hub: &FakeHub, target: &str, body: &Value) -> Seen {
    ask_as_owner(hub, "POST", target, "application/json", body.to_string().as_bytes())
}

/// Follows redirects as a client would; the token stays at home.
fn fetch(hub: &FakeHub, target: &str, headers: &[(&str, &str)]) -> Seen {
    let first = ask(&hub.endpoint(), "GET", target, headers, b"");
    match first.header("location").map(str::to_owned) {
        Some(to) if to.starts_with("http") => {
            let (host, path) = to.trim_start_matches("http://").split_once('/').unwrap();
            ask(host, "GET", &format!("/{path}"), headers, b"")
        }
        Some(to) => ask(&hub.endpoint(), "GET", &to, headers, b""),
        None => first,
    }
}

#[test]
fn files_and_ranges() {
    let hub = hub();
    let head = ask(&hub.endpoint(), "HEAD", FILE, &[], b"");
    assert_eq!((head.status, head.header("x-linked-size")), (302, Some("1000")));
    let sha = hub.repos()["acme/m"].files("main").unwrap()["model.safetensors"].sha256.clone();
    assert_eq!(head.header("x-linked-etag"), Some(format!("\"{sha}\"").as_str()));
    assert!(head.header("location").unwrap().starts_with(&hub.other()));
    let part = fetch(&hub, FILE, &[("Range", "bytes=10-19")]);
    assert_eq!(
        (part.status, part.body.len(), part.header("content-range")),
        (206, 10, Some("bytes 10-19/1000"))
    );
    let beyond = fetch(&hub, FILE, &[("Range", "bytes=1000-")]);
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */1000")));
    let whole = fetch(&hub, FILE, &[("Range", "bytes=10-19"), ("If-Range", "\"another\"")]);
    assert_eq!((whole.status, whole.body.len()), (200, 1000));
    let small = ask(&hub.endpoint(), "GET", "/acme/m/resolve/main/config.json", &[], b"");
    assert!(
        small.status == 307 && small.header("location").unwrap().starts_with("/api/resolve-cache/")
    );
    assert_eq!(fetch(&hub, "/acme/m/resolve/main/config.json", &[]).body, b"{}");
    assert_eq!(
        ask(&hub.endpoint(), "GET", "/acme/m/resolve/main/none", &[], b"").header("x-error-code"),
        Some("EntryNotFound")
    );
    // A store of objects takes no token, and signed addresses expire.
    let to = head
        .header("location")
        .unwrap()
        .trim_start_matches("http://")
        .split_once('/')
        .unwrap()
        .1
        .to_owned();
    let with = ask(&hub.other(), "GET", &format!("/{to}"), &[("Authorization", &bearer().1)], b"");
    assert_eq!(with.status, 400);
    assert!(hub.requests().iter().any(|r| r.origin == Origin::Other && r.sent == Sent::Token));
    hub.fault(Rule::once(Fault::LinkExpired));
    assert_eq!(
        [
            ask(&hub.other(), "GET", &format!("/{to}"), &[], b"").status,
            fetch(&hub, FILE, &[]).status
        ],
        [403, 200]
    );
    assert_eq!(ask(&hub.other(), "GET", &format!("/{to}"), &[], b"").status, 403);
}

#[test]
fn listings_have_folders_and_pages() {
    let hub = FakeHub::start();
    hub.habits().page = 3;
    let names: Vec<String> = (0..7).map(|n| format!("sub/{n}.json")).collect();
    hub.add("acme/m", names.iter().map(|n| (n.clone(), Blob::new(n, Content::of("x")))).collect());
    let (mut next, mut found) =
        (Some("/api/models/acme/m/tree/main?recursive=true".to_owned()), Vec::new());
    while let Some(page) = next {
        let seen = ask(&hub.endpoint(), "GET", &page, &[], b"");
        found.extend(seen.json().as_array().unwrap().clone());
        let link = seen.header("link").and_then(|link| link.strip_prefix('<')?.split_once('>'));
        next = link.map(|(to, _)| to.trim_start_matches(&hub.endpoint()).to_owned());
    }
    let files: Vec<&str> =
        found.iter().filter(|e| e["type"] == "file").filter_map(|e| e["path"].as_str()).collect();
    assert_eq!((files.len(), found.len()), (7, 8));
    assert_eq!(files, names);
    let flat = ask(&hub.endpoint(), "GET", "/api/models/acme/m/tree/main", &[], b"").json();
    assert_eq!(flat.as_array().unwrap().len(), 1);
}

#[test]
fn only_the_owner_sees_what_is_private_and_writes() {
    let hub = hub();
    hub.repos().get_mut("acme/m").unwrap().private = true;
    let info = |token: &str| {
        let value = format!("Bearer {token}");
        ask(&hub.endpoint(), "GET", "/api/models/acme/m", &[("Authorization", &value)], b"").status
    };
    assert_eq!([info(TOKEN), info("hf_other")], [200, 401]);
    assert_eq!(ask(&hub.endpoint(), "GET", "/api/models/acme/m", &[], b"").status, 401);
    let create = json!({"name": "n", "organization": "acme"}).to_string();
    assert_eq!(
        ask(&hub.endpoint(), "POST", "/api/repos/create", &[], create.as_bytes()).status,
        401
    );
}

fn commit(hub: &FakeHub, to: &str, lines: &[Value]) -> Seen {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    ask_as_owner(
        hub,
        "POST",
        &format!("/api/models/acme/n/commit/{to}"),
        "application/x-ndjson",
        lines.join("\n").as_bytes(),
    )
}

#[test]
fn uploads_are_checked_and_commits_know_their_parent() {
    use sha2::Digest;
    for transfer in [Transfer::Basic, Transfer::Multipart] {
        let hub = FakeHub::start();
        (hub.habits().transfer, hub.habits().part) = (transfer, 400);
        let named = json!({"name": "n", "organization": "acme", "private": true});
        assert_eq!(post(&hub, "/api/repos/create", &named).status, 200);
        assert_eq!(post(&hub, "/api/repos/create", &named).status, 409);
        assert!(hub.repos()["acme/n"].private);
        let parent = hub.repos()["acme/n"].branches["main"].clone();
        let bytes = vec![3; 1000];
        let oid = hex(&sha2::Sha256::digest(&bytes));
        let header = |parent: &str| json!({"key": "header", "value": {"summary": "s", "parentCommit": parent}});
        let file = json!({"key": "lfsFile", "value": {"path": "a.safetensors", "algo": "sha256", "oid": oid, "size": 1000}});
        // Nothing was uploaded yet.
        assert_eq!(commit(&hub, "main", &[header(&parent), file.clone()]).status, 400);
        let batch = json!({"operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256",
                           "objects": [{"oid": oid, "size": 1000}]});
        let actions = post(&hub, "/acme/n.git/info/lfs/objects/batch", &batch).json();
        let upload = actions["objects"][0]["actions"]["upload"].clone();
        let put = |href: &Value, bytes: &[u8]| {
            let href = href.as_str().unwrap().trim_start_matches(&hub.other()).to_owned();
            ask(&hub.other(), "PUT", &href, &[], bytes)
        };
        if transfer == Transfer::Basic {
            assert_eq!(put(&upload["href"], &[4; 1000]).status, 400, "other bytes");
            assert_eq!(put(&upload["href"], &bytes).status, 200);
        } else {
            let parts: Vec<Value> = (1..=3)
                .map(|number: usize| {
                    let end = (number * 400).min(1000);
                    let seen = put(
                        &upload["header"][format!("{number:05}")],
                        &bytes[(number - 1) * 400..end],
                    );
                    json!({"partNumber": number, "etag": seen.header("etag")})
                })
                .collect();
            let href = upload["href"].as_str().unwrap().trim_start_matches(&hub.other()).to_owned();
            let body = json!({"oid": oid, "parts": parts}).to_string();
            assert_eq!(ask(&hub.other(), "POST", &href, &[], body.as_bytes()).status, 200);
        }
        assert_eq!(
            post(&hub, "/acme/n.git/info/lfs/verify", &json!({"oid": oid, "size": 1000})).status,
            200
        );
        let again = post(&hub, "/acme/n.git/info/lfs/objects/batch", &batch).json();
        assert!(again["objects"][0].get("actions").is_none());
        let inline = json!({"key": "file", "value": {"path": "c.json", "content": "e30=", "encoding": "base64"}});
        let done = commit(&hub, "main", &[header(&parent), file.clone(), inline.clone()]);
        assert_eq!(done.status, 200);
        // The same again would be a commit on a commit that is not the newest.
        assert_eq!(commit(&hub, "main", &[header(&parent), file.clone()]).status, 412);
        let head = done.json()["commitOid"].as_str().unwrap().to_owned();
        let pull = commit(
            &hub,
            "main?create_pr=1",
            &[header(&head), json!({"key": "deletedFile", "value": {"path": "c.json"}})],
        );
        assert!(pull.json()["pullRequestUrl"].as_str().unwrap().ends_with("/discussions/1"));
        let repos = hub.repos();
        let repo = &repos["acme/n"];
        assert_eq!(repo.files("main").unwrap()["c.json"].content.bytes().unwrap(), b"{}");
        assert!(!repo.files("refs/pr/1").unwrap().contains_key("c.json"));
    }
}

/// Each fault, where it shows, is not what comes without it.
#[test]
fn every_fault_shows() {
    super::many::each(ALL, |(fault, name, place, _)| {
        let hub = hub();
        // Endless pages follow the last one.
        hub.habits().page = if *fault == Fault::LinkEndless { 50 } else { 1 };
        assert_eq!(Fault::by_name(name), Some(*fault));
        let range: &[(&str, &str)] = &[("Range", "bytes=100-299")];
        let seen = |hub: &FakeHub| match place {
            Place::Info => fetch(hub, "/api/models/acme/m/revision/main", &[]),
            Place::Tree => fetch(hub, "/api/models/acme/m/tree/main?recursive=true", &[]),
            Place::Head => ask(&hub.endpoint(), "HEAD", FILE, &[], b""),
            Place::Resolve => ask(&hub.endpoint(), "GET", FILE, &[], b""),
            Place::Bytes => fetch(hub, FILE, range),
            Place::Create => {
                post(hub, "/api/repos/create", &json!({"name": "n", "organization": "acme"}))
            }
            Place::Branch => post(hub, "/api/models/acme/m/branch/b", &json!({})),
            Place::Preupload => {
                post(hub, "/api/models/acme/m/preupload/main", &json!({"files": []}))
            }
            Place::Batch => {
                let object = json!({"oid": "a".repeat(64), "size": 3});
                post(
                    hub,
                    "/acme/m.git/info/lfs/objects/batch",
                    &json!({"operation": "upload", "objects": [object]}),
                )
            }
            Place::Put => ask(
                &hub.other(),
                "PUT",
                &format!("/lfs/acme/m/{}?X-Signature=1", "a".repeat(64)),
                &[],
                b"abc",
            ),
            Place::Complete => ask(&hub.other(), "POST", "/lfs/complete/acme/m/a", &[], b"{}"),
            Place::Verify => post(hub, "/acme/m.git/info/lfs/verify", &json!({"oid": "b"})),
            Place::Commit => {
                let header = json!({"key": "header", "value": {"summary": "s"}}).to_string();
                ask_as_owner(
                    hub,
                    "POST",
                    "/api/models/acme/m/commit/main",
                    "application/x-ndjson",
                    header.as_bytes(),
                )
            }
            Place::XetToken => {
                ask_as_owner(hub, "GET", "/api/models/acme/m/xet-write-token/main", "", b"")
            }
            Place::Cas => ask(&hub.other(), "GET", "/cas/v1/chunks/default/a", &[], b""),
        };
        let well = seen(&hub);
        let before = hub.repos()["acme/m"].commits.len();
        hub.fault(Rule::once(*fault));
        let wrong = seen(&hub);
        let shown = hub.requests().iter().any(|entry| entry.fault == Some(*name));
        assert!(shown, "{name} did not show");
        let moved =
            matches!(fault, Fault::RevisionMoves | Fault::CommitMoves | Fault::CommitUnseen);
        if moved {
            assert!(hub.repos()["acme/m"].commits.len() > before, "{name}: nothing moved");
        } else if !matches!(
            fault,
            Fault::Verify404 | Fault::Cas401 | Fault::ShaTraversal | Fault::LinkOnce
        ) {
            let same =
                well.status == wrong.status && well.head == wrong.head && well.body == wrong.body;
            assert!(!same, "{name} changes nothing: {} {}", wrong.status, wrong.head);
        }
        // It showed once: all is well again.
        if *fault != Fault::LinkExpired
            && !moved
            && *place != Place::Create
            && *place != Place::Branch
            && *place != Place::Commit
        {
            let after = seen(&hub);
            assert_eq!(
                (after.status, after.body.len()),
                (well.status, well.body.len()),
                "{name} stays"
            );
        }
    });
}

#[test]
fn addresses_are_good_for_one_range() {
    let hub = hub();
    hub.fault(Rule::always(Fault::LinkOnce));
    let address = || {
        let led = ask(&hub.endpoint(), "HEAD", FILE, &[], b"");
        led.header("location").unwrap().trim_start_matches(&hub.other()).to_owned()
    };
    let status = |to: &str, range| ask(&hub.other(), "GET", to, &[("Range", range)], b"").status;
    let to = address();
    assert_eq!([status(&to, "bytes=0-9"), status(&to, "bytes=0-9")], [206, 206]);
    assert_eq!([status(&to, "bytes=10-19"), status(&address(), "bytes=10-19")], [403, 206]);
}

#[test]
fn rules_are_read() {
    let rule = Rule::parse("get429:2:3@.safetensors").unwrap();
    assert_eq!(
        (rule.fault, rule.times, rule.skip, rule.part.as_str()),
        (Fault::Get429, Some(2), 3, ".safetensors")
    );
    assert_eq!(Rule::parse("stall").unwrap().times, None);
    assert!(Rule::parse("nonsense").is_err() && Rule::parse("stall:x").is_err());
    assert_eq!(from_base64("aGVsbG8=").unwrap(), b"hello");
    assert_eq!(from_base64("aGVsbG8h").unwrap(), b"hello!");
    assert!(from_base64("a*").is_none());
    assert!(
        contains(b"xxabcabd", "abd") && contains(b"abd", "abd") && !contains(b"abababab", "abd")
    );
    assert_eq!(unescape("refs%2Fpr%2F1%"), "refs/pr/1%");
}
