//! How the Hub wants each file: as an object of its storage, or inside the commit.

use serde_json::{Value, json};

use super::super::http::{Call, Http, Payload, corrupt};
use super::super::listing::api;
use super::Target;
use super::hash::base64;
use crate::error::{Error, Result};

/// Files asked about at once.
const AT_ONCE: usize = 256;
/// The largest file that goes inside a commit: the Hub's own limit.
pub(super) const LARGEST_INLINE: u64 = 10 << 20;
/// Bytes of a file's start that the Hub looks at.
pub(super) const SAMPLE: usize = 512;

/// How a file is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Its bytes go to the storage, its SHA-256 into the commit.
    Large,
    /// Its bytes go into the commit.
    Inline,
    /// The repository's `.gitignore` leaves it out.
    Ignored,
}

/// A file to ask about.
pub(super) struct Asked<'a> {
    pub(super) path: &'a str,
    pub(super) size: u64,
    /// Its first bytes.
    pub(super) sample: &'a [u8],
}

/// Asks how each file is to be sent, in the order of `files`.
pub(super) fn modes(http: &Http, target: &Target, files: &[Asked<'_>]) -> Result<Vec<Mode>> {
    let what = target.id.repo();
    let mut all = Vec::with_capacity(files.len());
    for files in files.chunks(AT_ONCE) {
        let mut url = http.url(api(&target.id).chain(["preupload", target.branch()]));
        if target.pull_request {
            url.query_pairs_mut().append_pair("create_pr", "1");
        }
        let asked: Vec<Value> = files
            .iter()
            .map(|file| json!({ "path": file.path, "size": file.size, "sample": base64(file.sample) }))
            .collect();
        let body = json!({ "files": asked });
        let answer = http.send(&Call::post(url, what, Payload::Json(&body)))?.json(what)?;
        let told = answer.get("files").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for file in files {
            let told = told
                .iter()
                .find(|told| told.get("path").and_then(Value::as_str) == Some(file.path));
            all.push(mode(what, file, told)?);
        }
    }
    Ok(all)
}

fn mode(what: &str, file: &Asked<'_>, told: Option<&Value>) -> Result<Mode> {
    let text = |key| told.and_then(|told| told.get(key));
    if text("shouldIgnore").and_then(Value::as_bool) == Some(true) {
        return Ok(Mode::Ignored);
    }
    match text("uploadMode").and_then(Value::as_str) {
        // The storage takes no empty objects.
        Some("lfs") if file.size > 0 => Ok(Mode::Large),
        Some("lfs" | "regular") if file.size <= LARGEST_INLINE => Ok(Mode::Inline),
        Some("regular") => Err(Error::Unsupported {
            what: format!("{what}: `{}`", file.path),
            reason: format!(
                "the Hub wants its {} bytes inside the commit, which is for files of at most {LARGEST_INLINE}",
                file.size
            ),
            hint: format!(
                "let the repository's `.gitattributes` name it (`{} filter=lfs diff=lfs merge=lfs -text`), or leave it out: `--exclude '{}'`",
                file.path, file.path
            ),
        }),
        _ => Err(corrupt(what, format!("the Hub does not say how it wants `{}`", file.path))),
    }
}
