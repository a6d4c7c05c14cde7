//! Uploads of large files: the batch that says what is lacking and where it goes, whole files, files in parts.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::faults::Fault;
use super::hashes::{hex, sha1_of};
use super::store::Content;
use super::wire::{Answer, Request};
use super::{Shared, Transfer};

impl Shared {
    /// What of the objects is lacking, and how to bring it. Objects that are there get no actions.
    pub(super) fn batch(&self, request: &Request, name: &str, fault: Option<Fault>) -> Answer {
        let (asked, habits) = (request.json(), self.habits.lock().unwrap().clone());
        let offered = |transfer: &str| {
            asked["transfers"].as_array().is_some_and(|all| all.iter().any(|t| t == transfer))
        };
        if asked["operation"] != "upload"
            || asked["hash_algo"].as_str().is_some_and(|algo| algo != "sha256")
        {
            return Answer::error(422, "", "only uploads by sha256");
        }
        let Some(objects) = asked["objects"].as_array() else {
            return Answer::error(422, "", "no objects");
        };
        if objects.len() > 1000 {
            return Answer::error(413, "", "too many objects");
        }
        let transfer = match habits.transfer {
            Transfer::Xet if offered("xet") => "xet",
            Transfer::Multipart if offered("multipart") => "multipart",
            _ => "basic",
        };
        self.seen(request, name, |repo| {
            let answer = |object: &Value| {
                let (oid, size) =
                    (object["oid"].as_str().unwrap_or_default(), object["size"].as_u64());
                let mut entry = json!({"oid": oid, "size": size, "authenticated": true});
                let Some(size) =
                    size.filter(|_| oid.len() == 64 && oid.bytes().all(|b| b.is_ascii_hexdigit()))
                else {
                    entry["error"] = json!({"code": 422, "message": "no such kind of object"});
                    return entry;
                };
                if fault == Some(Fault::BatchError) {
                    entry["error"] = json!({"code": 507, "message": "storage quota exceeded"});
                } else if repo.objects.get(oid).is_none_or(|content| content.len() != size) {
                    entry["actions"] = self.actions(name, oid, size, transfer, habits.part, fault);
                }
                entry
            };
            let objects: Vec<Value> = objects.iter().map(answer).collect();
            let answer = Answer::json(200, &json!({"transfer": transfer, "objects": objects}));
            answer.with("Content-Type", "application/vnd.git-lfs+json")
        })
    }

    fn actions(
        &self,
        name: &str,
        oid: &str,
        size: u64,
        transfer: &str,
        part: u64,
        fault: Option<Fault>,
    ) -> Value {
        let store = if fault == Some(Fault::BatchFile) {
            "file:///etc/passwd#".to_owned()
        } else {
            format!("http://{}/lfs/{name}/{oid}", self.other)
        };
        let verify = json!({"href": format!("http://{}/{name}.git/info/lfs/verify", self.hub)});
        let upload = match transfer {
            "xet" => json!({"href": format!("http://{}/cas", self.hub)}),
            "multipart" => {
                let mut header = serde_json::Map::new();
                header.insert("chunk_size".into(), json!(part.to_string()));
                for number in 1..=size.div_ceil(part).max(1) {
                    let at = format!("{store}/{number}?X-Signature=1");
                    header.insert(format!("{number:05}"), json!(at));
                }
                let complete =
                    format!("http://{}/lfs/complete/{name}/{oid}?uploadId=1", self.other);
                json!({"href": complete, "header": header})
            }
            _ => json!({"href": format!("{store}?X-Signature=1")}),
        };
        json!({"upload": upload, "verify": verify})
    }

    /// A whole object, or a part of one, as a store of objects takes it.
    pub(super) fn put(
        &self,
        request: &Request,
        name: &str,
        oid: &str,
        part: Option<&str>,
        fault: Option<Fault>,
    ) -> Answer {
        if request.header("authorization").is_some() {
            return Answer::new(
                400,
                "<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>",
            );
        }
        if request.query("X-Signature").is_none() {
            return Answer::new(403, "<Error><Code>AccessDenied</Code></Error>");
        }
        if request.header("content-length").is_none() {
            return Answer::new(411, "<Error><Code>MissingContentLength</Code></Error>");
        }
        if fault == Some(Fault::PutLost) {
            return Answer::new(200, "").with("ETag", "\"lost\"");
        }
        if let Some(part) = part {
            let Ok(number) = part.parse() else {
                return Answer::error(400, "", "no number of a part");
            };
            let etag = format!("\"{}\"", sha1_of(&hex(&Sha256::digest(&request.body))));
            self.parts.lock().unwrap().insert((oid.to_owned(), number), request.body.clone());
            return Answer::new(200, "").with("ETag", etag);
        }
        self.keep(name, oid, request.body.clone())
    }

    /// Puts the parts of an object together.
    pub(super) fn complete(&self, request: &Request, name: &str, oid: &str) -> Answer {
        let asked = request.json();
        if asked["oid"] != oid {
            return Answer::error(400, "", "another object");
        }
        let Some(listed) = asked["parts"].as_array() else {
            return Answer::error(400, "", "no parts");
        };
        let mut whole = Vec::new();
        for (index, part) in (1..).zip(listed) {
            let parts = self.parts.lock().unwrap();
            let bytes = parts.get(&(oid.to_owned(), index));
            let etag = bytes.map(|bytes| sha1_of(&hex(&Sha256::digest(bytes))));
            let told = part["etag"].as_str().map(|etag| etag.trim_matches('"'));
            if part["partNumber"] != index || etag.is_none() || etag.as_deref() != told {
                return Answer::error(400, "", &format!("part {index} is not what was uploaded"));
            }
            whole.extend_from_slice(bytes.map_or(&[][..], Vec::as_slice));
        }
        self.keep(name, oid, whole)
    }

    fn keep(&self, name: &str, oid: &str, bytes: Vec<u8>) -> Answer {
        if hex(&Sha256::digest(&bytes)) != oid {
            return Answer::error(400, "", "the bytes do not have the hash that was announced");
        }
        let mut repos = self.repos.lock().unwrap();
        let Some(repo) = repos.get_mut(name) else {
            return Answer::error(404, "", "no such repository");
        };
        repo.objects.insert(oid.to_owned(), Content::of(bytes));
        Answer::json(200, &json!({}))
    }

    pub(super) fn verify(&self, request: &Request, name: &str) -> Answer {
        let asked = request.json();
        self.seen(request, name, |repo| {
            let object = asked["oid"].as_str().and_then(|oid| repo.objects.get(oid));
            match object {
                Some(content) if asked["size"] == content.len() => Answer::json(200, &json!({})),
                Some(_) => Answer::error(422, "", "the object has another size"),
                None => Answer::error(404, "", "the object is not there"),
            }
        })
    }
}
