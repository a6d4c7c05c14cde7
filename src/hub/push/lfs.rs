//! Large files: where the storage wants their bytes (git LFS's batch), and sending them there.
//!
//! The answer names a transfer: `basic` (one PUT), `multipart` (a PUT for each part, then a message which parts there are), or
//! `xet`, which hf-xet carries out. An object without actions is there already.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::super::hash::hex;
use super::super::http::{Call, Http, Payload, corrupt};
use super::storage::{self, Piece, Stored};
use super::{How, Target};
use crate::error::{Error, HubFailure, IoContext as _, Result, printable};

const MEDIA: &str = "application/vnd.git-lfs+json";
/// More parts than storages take.
const MOST_PARTS: usize = 10_000;

/// A large file by its bytes.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    /// Its path in the repository.
    pub(super) name: &'a str,
    pub(super) sha256: &'a str,
    pub(super) size: u64,
}

/// How the storage gets an object.
pub(super) enum Way {
    /// It has it.
    There,
    /// By hf-xet, which finds out itself what the storage has.
    Xet,
    /// By PUTs.
    Put(Box<Put>),
}

/// Addresses to PUT an object to.
pub(super) struct Put {
    headers: HeaderMap,
    parts: Parts,
    /// Where to tell that it is complete.
    verify: Option<(Url, HeaderMap)>,
}

enum Parts {
    One(Url),
    Many { size: u64, urls: Vec<Url>, complete: Url },
}

/// Asks how the storage gets an object.
pub(super) fn way(http: &Http, target: &Target, object: Object<'_>) -> Result<Way> {
    let what = format!("{}: {}", target.id.repo(), object.name);
    let (owner, name) = target.id.repo().split_once('/').unwrap_or_default();
    let url = http.url([owner, &format!("{name}.git"), "info", "lfs", "objects", "batch"]);
    let mut body = json!({
        "operation": "upload",
        "transfers": ["basic", "multipart", "xet"],
        "objects": [{ "oid": object.sha256, "size": object.size }],
        "hash_algo": "sha256",
    });
    // Who proposes a change need not have rights to the branch.
    if !target.pull_request {
        body["ref"] = json!({ "name": target.branch() });
    }
    let body = body.to_string();
    let mut call = Call::post(url, &what, Payload::Bytes(body.as_bytes(), MEDIA));
    call.headers.push((reqwest::header::ACCEPT, MEDIA.to_owned()));
    let answer = http.send(&call)?.json(&what)?;
    read(http, &what, object, &answer)
}

/// What the answer says of an object.
fn read(http: &Http, what: &str, object: Object<'_>, answer: &Value) -> Result<Way> {
    let odd =
        |problem: &str| corrupt(what, format!("the Hub's answer about its storage {problem}"));
    let objects =
        answer.get("objects").and_then(Value::as_array).ok_or_else(|| odd("names no objects"))?;
    let is_it = |told: &&Value| told.get("oid").and_then(Value::as_str) == Some(object.sha256);
    let told = objects.iter().find(is_it).ok_or_else(|| odd("is about other objects"))?;
    if let Some(error) = told.get("error").filter(|error| !error.is_null()) {
        let message = error.get("message").and_then(Value::as_str).unwrap_or("no reason given");
        return Err(Error::Hub {
            what: what.to_owned(),
            kind: HubFailure::Refused,
            problem: format!("the storage does not take it: {}", printable(message)),
            hint: "the file's size, or the account's storage, may be over a limit".into(),
        });
    }
    let transfer = answer.get("transfer").and_then(Value::as_str).unwrap_or("basic");
    match transfer {
        "xet" => return Ok(Way::Xet),
        "basic" | "multipart" => {}
        other => {
            return Err(odd(&format!(
                "asks for the transfer `{}`, which is not known",
                printable(other)
            )));
        }
    }
    let action = |name: &str| {
        told.get("actions").and_then(|actions| actions.get(name)).filter(|a| !a.is_null())
    };
    let Some(upload) = action("upload") else { return Ok(Way::There) };
    let address = |action: &Value| -> Result<Url> {
        let href =
            action.get("href").and_then(Value::as_str).and_then(|href| Url::parse(href).ok());
        let url = href.ok_or_else(|| odd("has no address"))?;
        safe(http, url).ok_or_else(|| odd("has an address that is not safe"))
    };
    let href = address(upload)?;
    let verify = match action("verify") {
        None => None,
        Some(verify) => Some((address(verify)?, headers(verify))),
    };
    let chunk = upload.get("header").and_then(|header| header.get("chunk_size"));
    let chunk = match chunk {
        None => {
            return Ok(Way::Put(Box::new(Put {
                headers: headers(upload),
                parts: Parts::One(href),
                verify,
            })));
        }
        Some(Value::String(text)) => text.parse().ok(),
        Some(number) => number.as_u64(),
    };
    let size = chunk.filter(|size| *size > 0).ok_or_else(|| odd("has parts of no size"))?;
    let mut urls: Vec<(usize, Url)> = Vec::new();
    for (number, url) in upload.get("header").and_then(Value::as_object).into_iter().flatten() {
        let (Ok(number), Some(url)) = (number.parse(), url.as_str()) else { continue };
        let url = Url::parse(url).ok().and_then(|url| safe(http, url));
        urls.push((number, url.ok_or_else(|| odd("has an address that is not safe"))?));
    }
    urls.sort_by_key(|(number, _)| *number);
    let numbered = urls.iter().enumerate().all(|(i, (number, _))| *number == i + 1);
    if !numbered || urls.len() > MOST_PARTS || urls.len() as u64 != object.size.div_ceil(size) {
        return Err(odd("has another number of parts than the file"));
    }
    let urls = urls.into_iter().map(|(_, url)| url).collect();
    let parts = Parts::Many { size, urls, complete: href };
    Ok(Way::Put(Box::new(Put { headers: HeaderMap::new(), parts, verify })))
}

/// An address that may be sent to: a Hub that is asked over TLS may not lead to where there is none.
fn safe(http: &Http, url: Url) -> Option<Url> {
    let tls = http.settings().endpoint.starts_with("https://");
    let fits = url.scheme() == "https" || (url.scheme() == "http" && !tls);
    (fits && url.host_str().is_some()).then_some(url)
}

/// The headers that an action asks for. Those that frame a request are ours.
fn headers(action: &Value) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in action.get("header").and_then(Value::as_object).into_iter().flatten() {
        let Some(value) = value.as_str() else { continue };
        let framing = ["host", "content-length", "transfer-encoding", "connection", "expect"];
        if framing.contains(&name.to_ascii_lowercase().as_str()) {
            continue;
        }
        if let (Ok(name), Ok(mut value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
        {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    headers
}

/// Sends an object by PUTs. `Ok(None)` if its addresses are good no more.
///
/// The bytes sent must be those of the name: a file that changed meanwhile is an error.
pub(super) fn put(
    http: &Http,
    target: &Target,
    object: Object<'_>,
    path: &Path,
    put: &Put,
    sent: &dyn Fn(u64),
) -> Result<Result<How, Error>> {
    let what = format!("{}: {}", target.id.repo(), object.name);
    let file = Arc::new(File::open(path).at("open", path)?);
    let mut hasher = Sha256::new();
    let (mut etags, mut done) = (Vec::new(), 0);
    let (size, urls) = match &put.parts {
        Parts::One(url) => (object.size, std::slice::from_ref(url)),
        Parts::Many { size, urls, .. } => (*size, urls.as_slice()),
    };
    for url in urls {
        let range = done..object.size.min(done + size);
        let end = range.end;
        let piece = Piece { what: &what, url, headers: &put.headers, file: &file, range };
        match storage::put(http, &piece, &hasher, &|bytes| sent(done + bytes))? {
            Stored::Done { etag, hasher: after } => {
                hasher = after;
                etags.push(etag);
            }
            // Storages look at what they get: bytes of another name are the file's fault.
            Stored::Refused { hasher: Some(after), .. }
                if end == object.size && hex(&after.clone().finalize()) != object.sha256 =>
            {
                return Err(changed(path));
            }
            Stored::Refused { error, expired: true, .. } => return Ok(Err(error)),
            Stored::Refused { error, .. } => return Err(error),
        }
        done = end;
    }
    if hex(&hasher.finalize()) != object.sha256 {
        return Err(changed(path));
    }
    let how = match &put.parts {
        Parts::One(_) => How::Basic,
        Parts::Many { complete, .. } => {
            let parts: Option<Vec<Value>> = etags
                .iter()
                .enumerate()
                .map(|(i, etag)| {
                    etag.as_ref().map(|etag| json!({ "partNumber": i + 1, "etag": etag }))
                })
                .collect();
            let parts = parts
                .ok_or_else(|| corrupt(&what, "the storage gives no name to a part".into()))?;
            let body = json!({ "oid": object.sha256, "parts": parts });
            tell(http, &what, complete.clone(), &HeaderMap::new(), &body)?;
            How::Multipart
        }
    };
    if let Some((url, headers)) = &put.verify {
        let body = json!({ "oid": object.sha256, "size": object.size });
        tell(http, &what, url.clone(), headers, &body)?;
    }
    Ok(Ok(how))
}

/// Tells the Hub that something is complete. Its token goes with it only if the address is its own.
fn tell(http: &Http, what: &str, url: Url, headers: &HeaderMap, body: &Value) -> Result<()> {
    let body = body.to_string();
    let mut call = Call::post(url, what, Payload::Bytes(body.as_bytes(), MEDIA));
    call.headers.push((reqwest::header::ACCEPT, MEDIA.to_owned()));
    for (name, value) in headers {
        // The Hub's own addresses get the token from the client, others have what came with them.
        let ours = *name == reqwest::header::AUTHORIZATION && http.is_own(&call.url);
        if let (Ok(value), false) = (value.to_str(), ours) {
            call.headers.push((name.clone(), value.to_owned()));
        }
    }
    call.patience = Some(http.settings().silence.saturating_mul(4));
    http.send(&call).map(drop)
}

/// What was sent is not what was to be sent.
pub(super) fn changed(path: &Path) -> Error {
    Error::SourceChanged {
        path: path.to_owned(),
        tensor: None,
        what: "the bytes that were uploaded are not those that were hashed; nothing was committed"
            .into(),
    }
}
