//! Xet's store of chunks, as far as uploads need it: blocks of chunks ("xorbs") come first, then a "shard" that says which
//! chunks each file is made of. The files are put together and hashed here, so that a commit can name only what really came.

use std::collections::BTreeMap;
use std::io::Cursor;

use serde_json::json;
use xet_core_structures::metadata_shard::file_structs::MDBFileInfo;
use xet_core_structures::metadata_shard::streaming_shard::MDBMinimalShard;
use xet_core_structures::xorb_object::reconstruct_xorb_with_footer;

use super::faults::Fault;
use super::hashes::sha256;
use super::store::Content;
use super::wire::{Answer, Request};
use super::{Rights, Shared};

/// Xorbs by hash: their bytes with the footer that says where chunks begin.
pub(super) type Chunks = BTreeMap<String, Vec<u8>>;

/// What a token for the store starts with; the repository follows, its slash as `+`.
const TOKEN: &str = "xet-";

impl Shared {
    /// Where the store is, and a token for it.
    pub(super) fn xet_token(
        &self,
        request: &Request,
        name: &str,
        kind: &str,
        fault: Option<Fault>,
    ) -> Answer {
        if kind == "xet-write-token" && self.rights(request) != Rights::Owner {
            return Answer::error(401, "", "Invalid username or password.");
        }
        let store = if fault == Some(Fault::TokenFile) {
            "file:///etc/passwd".to_owned()
        } else {
            format!("http://{}/cas", self.other)
        };
        self.seen(request, name, |_| {
            let token = format!("{TOKEN}{}-{}", kind.contains("write"), name.replace('/', "+"));
            let expires = 4_000_000_000_u64;
            Answer::json(200, &json!({"accessToken": token, "exp": expires, "casUrl": store}))
                .with("X-Xet-Cas-Url", store.clone())
                .with("X-Xet-Access-Token", token)
                .with("X-Xet-Token-Expiration", expires.to_string())
        })
    }

    pub(super) fn cas(&self, request: &Request, path: &[&str]) -> Answer {
        let may_write = format!("Bearer {TOKEN}true-");
        let Some(name) =
            request.header("authorization").and_then(|token| token.strip_prefix(&may_write))
        else {
            return Answer::error(401, "", "a token of the store is needed");
        };
        match (request.method.as_str(), path) {
            ("POST", ["v1", "xorbs", "default", hash]) => self.xorb(request, hash),
            ("POST", ["v1", "shards"]) => self.shard(request, &name.replace('+', "/")),
            ("POST", ["v1", "telemetry"]) => Answer::json(200, &json!({})),
            _ => Answer::error(404, "", "the fake store has no such address"),
        }
    }

    fn xorb(&self, request: &Request, hash: &str) -> Answer {
        let mut whole = Vec::new();
        match reconstruct_xorb_with_footer(&mut whole, &request.body) {
            Ok((_, computed)) if computed.hex() == hash => {
                let new = self.chunks.lock().unwrap().insert(hash.to_owned(), whole).is_none();
                Answer::json(200, &json!({"was_inserted": new}))
            }
            Ok(_) => Answer::error(400, "", "the chunks do not have the hash that was announced"),
            Err(error) => Answer::error(400, "", &format!("no block of chunks: {error}")),
        }
    }

    /// Puts the files of a shard together.
    fn shard(&self, request: &Request, name: &str) -> Answer {
        let shard = match MDBMinimalShard::from_reader(&mut Cursor::new(&request.body), true, true)
        {
            Ok(shard) => shard,
            Err(error) => return Answer::error(400, "", &format!("no shard: {error}")),
        };
        let files = (0..shard.num_files()).filter_map(|number| shard.file(number));
        for file in files.map(MDBFileInfo::from) {
            let bytes = match self.assemble(&file) {
                Ok(bytes) => Content::of(bytes),
                Err(problem) => return Answer::error(400, "", &problem),
            };
            let Ok(hash) = sha256(&bytes) else { return Answer::error(500, "", "cannot hash") };
            // Without it, LFS's name of the file leads nowhere.
            let Some(told) = file.metadata_ext.map(|ext| ext.sha256.hex()) else { continue };
            if told != hash {
                return Answer::error(400, "", &format!("the file of {told} has the hash {hash}"));
            }
            if let Some(repo) = self.repos.lock().unwrap().get_mut(name) {
                repo.objects.insert(hash, bytes);
            }
        }
        Answer::json(200, &json!({"result": 1}))
    }

    fn assemble(&self, file: &MDBFileInfo) -> Result<Vec<u8>, String> {
        let chunks = self.chunks.lock().unwrap();
        let mut bytes = Vec::new();
        for segment in &file.segments {
            let hash = segment.xorb_hash.hex();
            let stored = chunks.get(&hash).ok_or_else(|| format!("there are no chunks {hash}"))?;
            let mut footer = Vec::new();
            let (xorb, _) = reconstruct_xorb_with_footer(&mut footer, stored)
                .map_err(|error| error.to_string())?;
            let (first, end) = (segment.chunk_index_start, segment.chunk_index_end);
            let part = xorb.get_bytes_by_chunk_range(&mut Cursor::new(stored), first, end);
            bytes.extend(part.map_err(|error| error.to_string())?);
        }
        Ok(bytes)
    }
}
