//! A Hub on this machine, for tests, scripts and people: repositories with commits, branches and pull requests; files by
//! address and range; LFS and xet uploads; commits. It checks what the real one checks, logs every request, and goes wrong on
//! demand ([`faults`]).
//!
//! It listens at two addresses. The first is the Hub. The second stands for every other host: it serves the bytes of large
//! files and takes uploads under signed addresses, as the real Hub's stores do, refuses the Hub's token there, and is where
//! hostile answers lead.

mod answer;
mod cas;
pub(crate) mod faults;
mod files;
pub(crate) mod hashes;
mod lfs;
pub(crate) mod log;
mod read;
pub(crate) mod store;
mod wire;
mod write;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use faults::{Fault, Faults, Place, Rule};
use log::{Log, Logged, Origin, Sent};
use store::{Files, Repo};
use wire::{Request, Sender};

/// Who may write, and read what is private.
pub(crate) const TOKEN: &str = "hf_CanaryThatMustNeverBeSeenAnywhere1";

/// How large files are to be uploaded, if the client can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    Basic,
    Multipart,
    Xet,
}

/// How the Hub behaves when nothing is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    pub(crate) token: String,
    pub(crate) transfer: Transfer,
    /// Whether large files' bytes come from the other origin, by a redirect.
    pub(crate) elsewhere: bool,
    /// Entries of a page of a listing.
    pub(crate) page: usize,
    /// Bytes of a part of an upload in parts.
    pub(crate) part: u64,
    /// What the names of files end with that repositories want inside commits, whatever their kind.
    pub(crate) inline: Option<&'static str>,
    /// What every answer waits, as if the Hub were far away.
    pub(crate) latency: Duration,
}

impl Default for Habits {
    fn default() -> Self {
        let (transfer, page, part) = (Transfer::Basic, 50, 1 << 20);
        let latency = Duration::ZERO;
        let token = TOKEN.to_owned();
        Self { token, transfer, elsewhere: true, page, part, inline: None, latency }
    }
}

/// All that the connections share.
struct Shared {
    hub: SocketAddr,
    other: SocketAddr,
    habits: Mutex<Habits>,
    repos: Mutex<BTreeMap<String, Repo>>,
    /// Old names of repositories to new ones.
    renamed: Mutex<BTreeMap<String, String>>,
    /// Parts of uploads that are not complete: LFS name and number to bytes.
    parts: Mutex<BTreeMap<(String, u32), Vec<u8>>>,
    chunks: Mutex<cas::Chunks>,
    faults: Faults,
    log: Log,
    /// Signed addresses with a lower number have expired.
    signature: AtomicU64,
    /// Signed addresses that were given where each must be another.
    links: AtomicU64,
    /// Ranges that signed addresses were first used for, where they serve no other.
    bound: Mutex<BTreeMap<String, Option<String>>>,
    connections: AtomicUsize,
    /// Requests being answered.
    busy: AtomicUsize,
    stopping: AtomicBool,
}

/// A Hub that runs until it is dropped.
pub(crate) struct FakeHub {
    shared: Arc<Shared>,
}

impl FakeHub {
    /// A Hub without repositories at ports of its own.
    pub(crate) fn start() -> Self {
        Self::listen(0).unwrap()
    }

    /// A Hub at this port of 127.0.0.1; the other origin is at the same port of 127.0.0.2, if that is free.
    pub(crate) fn listen(port: u16) -> io::Result<Self> {
        let hub = TcpListener::bind(("127.0.0.1", port))?;
        let port = hub.local_addr()?.port();
        let other = TcpListener::bind(("127.0.0.2", port))
            .or_else(|_| TcpListener::bind(("127.0.0.2", 0)))?;
        let shared = Arc::new(Shared {
            hub: hub.local_addr()?,
            other: other.local_addr()?,
            habits: Mutex::default(),
            repos: Mutex::default(),
            renamed: Mutex::default(),
            parts: Mutex::default(),
            chunks: Mutex::default(),
            faults: Faults::default(),
            log: Log::default(),
            signature: AtomicU64::new(1),
            links: AtomicU64::new(0),
            bound: Mutex::default(),
            connections: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        });
        for (listener, origin) in [(hub, Origin::Hub), (other, Origin::Other)] {
            let shared = Arc::clone(&shared);
            thread::spawn(move || accept(&listener, origin, &shared));
        }
        Ok(Self { shared })
    }

    /// For `HF_ENDPOINT`.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.shared.hub)
    }

    pub(crate) fn other(&self) -> String {
        format!("http://{}", self.shared.other)
    }

    pub(crate) fn habits(&self) -> MutexGuard<'_, Habits> {
        self.shared.habits.lock().unwrap()
    }

    /// All repositories, to look at and to change; nothing is served meanwhile.
    pub(crate) fn repos(&self) -> MutexGuard<'_, BTreeMap<String, Repo>> {
        self.shared.repos.lock().unwrap()
    }

    /// Adds a repository with these files on `main`; its commit.
    pub(crate) fn add(&self, name: &str, files: Files) -> String {
        self.repos().entry(name.to_owned()).or_default().commit("main", "initial commit", "", files)
    }

    /// Adds a repository with a directory's files on `main`; its commit.
    pub(crate) fn add_directory(&self, name: &str, root: &Path) -> String {
        self.add(name, store::from_directory(root, false).unwrap())
    }

    /// Adds every `ORG/NAME` directory below `root`; their names.
    pub(crate) fn add_all(&self, root: &Path, quick: bool) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for org in fs::read_dir(root)?.filter_map(Result::ok).filter(|org| org.path().is_dir()) {
            for repo in
                fs::read_dir(org.path())?.filter_map(Result::ok).filter(|repo| repo.path().is_dir())
            {
                let name = format!("{}/{}", org.file_name().display(), repo.file_name().display());
                self.add(&name, store::from_directory(&repo.path(), quick)?);
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Gives a repository another name; requests to the API under the old one are redirected.
    pub(crate) fn rename(&self, old: &str, new: &str) {
        let mut repos = self.repos();
        let repo = repos.remove(old).unwrap();
        repos.insert(new.to_owned(), repo);
        self.shared.renamed.lock().unwrap().insert(old.to_owned(), new.to_owned());
    }

    /// What shall go wrong from now on.
    pub(crate) fn fault(&self, rule: Rule) {
        self.shared.faults.add(rule);
    }

    pub(crate) fn no_faults(&self) {
        self.shared.faults.clear();
    }

    pub(crate) fn log(&self) -> &Log {
        &self.shared.log
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Logged> {
        self.shared.log.entries()
    }

    /// Connections that were opened, at both addresses.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for address in [self.shared.hub, self.shared.other] {
            // Wakes the listener.
            let _woken = TcpStream::connect(address);
        }
    }
}

fn accept(listener: &TcpListener, origin: Origin, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(shared);
        thread::spawn(move || shared.converse(stream, origin));
    }
}

impl Shared {
    /// Answers the requests of a connection.
    fn converse(&self, stream: TcpStream, origin: Origin) {
        let _fast = stream.set_nodelay(true);
        let Ok(mut sending) = stream.try_clone() else { return };
        let mut reading = BufReader::new(stream);
        while let Some(mut request) = wire::read_head(&mut reading) {
            let place = place_of(&request);
            let fault = place.and_then(|place| self.faults.take(place, &request.target));
            let broken = fault == Some(Fault::PutBreak);
            let complete = wire::read_body(&mut reading, &mut request, broken).is_some();
            let busy = Busy::begin(&self.busy);
            let number = self.log.add(self.logged(origin, &request, fault, busy.at_once));
            if broken || !complete {
                self.log.finish(number);
                return;
            }
            let latency = self.habits.lock().unwrap().latency;
            thread::sleep(latency);
            let mut shown = fault;
            let answer = self.answer(origin, &request, fault, &mut shown);
            self.log.update(number, |entry| {
                entry.status = answer.status;
                entry.fault = shown.map(Fault::name);
            });
            let mut sender = Sender {
                stream: &mut sending,
                stopping: &|| self.stopping.load(Ordering::SeqCst),
                sent: &|bytes| self.log.update(number, |entry| entry.bytes += bytes),
            };
            let sent = sender.send(&answer, request.method == "HEAD");
            let goes_on = sent.unwrap_or(false);
            self.log.update(number, |entry| entry.whole = goes_on);
            self.log.finish(number);
            if !goes_on
                || request.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close"))
            {
                let _closed = sending.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }

    fn logged(
        &self,
        origin: Origin,
        request: &Request,
        fault: Option<Fault>,
        at_once: usize,
    ) -> Logged {
        let token = self.habits.lock().unwrap().token.clone();
        let sent = match request.header("authorization") {
            None => Sent::Nothing,
            Some(value) if value == format!("Bearer {token}") => Sent::Token,
            Some(_) => Sent::Unknown,
        };
        let in_body = hashes::contains(&request.body, &token);
        let in_headers = request
            .headers
            .iter()
            .any(|(name, value)| name != "authorization" && value.contains(&token));
        Logged {
            origin,
            method: request.method.clone(),
            target: request.target.clone(),
            sent,
            leaked: in_body || in_headers || request.target.contains(&token),
            range: request.header("range").map(str::to_owned),
            received: request.body.len() as u64,
            at_once,
            bytes: 0,
            status: 0,
            fault: fault.map(Fault::name),
            whole: false,
        }
    }

    /// Whether a file belongs into the storage for large files.
    fn is_lfs(&self, path: &str, size: u64) -> bool {
        let inline = self.habits.lock().unwrap().inline;
        !inline.is_some_and(|ending| path.ends_with(ending)) && store::is_lfs(path, size)
    }

    /// Whether the request carries the token that opens everything, or a wrong one.
    fn rights(&self, request: &Request) -> Rights {
        let token = format!("Bearer {}", self.habits.lock().unwrap().token);
        match request.header("authorization") {
            None => Rights::Nobody,
            Some(value) if value == token => Rights::Owner,
            Some(_) => Rights::Stranger,
        }
    }
}

/// A request being answered.
struct Busy<'a> {
    all: &'a AtomicUsize,
    /// How many were being answered when it began, itself among them.
    at_once: usize,
}

impl<'a> Busy<'a> {
    fn begin(all: &'a AtomicUsize) -> Self {
        Self { all, at_once: all.fetch_add(1, Ordering::SeqCst) + 1 }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    Nobody,
    /// Somebody whose token is unknown.
    Stranger,
    Owner,
}

/// The kind of a request, as far as its address tells. Bytes are asked for in several ways, and some of them lead
/// elsewhere first: [`read`] asks for faults of bytes itself.
fn place_of(request: &Request) -> Option<Place> {
    let segments = request.segments();
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    match (request.method.as_str(), parts.as_slice()) {
        ("GET", ["api", "models", _, _] | ["api", "models", _, _, "revision", ..]) => {
            Some(Place::Info)
        }
        ("GET", ["api", "models", _, _, "tree", ..]) => Some(Place::Tree),
        ("POST", ["api", "repos", "create"]) => Some(Place::Create),
        ("POST", ["api", "models", _, _, "branch", _]) => Some(Place::Branch),
        ("POST", ["api", "models", _, _, "preupload", _]) => Some(Place::Preupload),
        ("POST", ["api", "models", _, _, "commit", _]) => Some(Place::Commit),
        ("GET", ["api", "models", _, _, "xet-write-token" | "xet-read-token", _]) => {
            Some(Place::XetToken)
        }
        ("POST", [_, _, "info", "lfs", "objects", "batch"]) => Some(Place::Batch),
        ("POST", [_, _, "info", "lfs", "verify"]) => Some(Place::Verify),
        ("PUT", ["lfs", ..]) => Some(Place::Put),
        ("POST", ["lfs", "complete", ..]) => Some(Place::Complete),
        (_, ["cas", ..]) => Some(Place::Cas),
        _ => None,
    }
}
