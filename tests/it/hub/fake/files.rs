//! Files: where the Hub says that they lie, and their bytes, whole or in ranges.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use super::faults::{Fault, Place};
use super::hashes::{escape, sha1_of};
use super::log::Origin;
use super::read::ESCAPED;
use super::store::{Blob, Content, Repo};
use super::wire::{Answer, Body, Manner, Request};
use super::{Rights, Shared};

impl Shared {
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
        let at_home = (origin == Origin::Hub).then_some(Place::Resolve);
        let fault = taken.or_else(|| self.faults.take(at_home?, &request.target));
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
            let mut expires = format!("X-Signature={number}&X-Expires=3600");
            if self.faults.has(Fault::LinkOnce) {
                let unique = self.links.fetch_add(1, Ordering::SeqCst);
                let _infallible = write!(expires, "&X-Request={unique}");
            }
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

    /// Whether an address is used for the first time, or for the same range as then.
    fn is_bound_to_this(&self, request: &Request) -> bool {
        let range = request.header("range").map(str::to_owned);
        let mut bound = self.bound.lock().unwrap();
        let first = bound.entry(request.target.clone()).or_insert_with(|| range.clone());
        !request.target.contains("X-Signature") || *first == range
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
        if fault == Some(Fault::LinkOnce) && !self.is_bound_to_this(request) {
            return Answer::new(
                403,
                "<Error><Code>AccessDenied</Code><Message>Request is for another range</Message></Error>",
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
            for byte in &mut bytes {
                *byte ^= 0x11;
            }
            let told = Answer {
                body: Body::Part { content: Content::of(bytes), range, spoiled: false },
                ..told
            };
            told.with("ETag", format!("\"{}\"", "f".repeat(32)))
        }
        _ => told,
    }
}
