//! Transfers against a server whose every answer a test decides.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::http::Http;
use super::listing::Hash;
use super::settings::Settings;
use super::target::Target;
use super::transfer::{Manner, Wanted, fetch};
use super::{Quiet, Token};
use crate::error::{Error, HubFailure};
use crate::format::{Fetched, record_of};

/// A request as a server sees it.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    path: String,
    range: Range<u64>,
    if_range: Option<String>,
    token: bool,
}

/// A server, and what it was asked.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// `answer` writes a whole response, headers first.
    fn start(
        host: &str,
        answer: impl Fn(&Asked, usize, &mut TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let request = read(&stream);
                    let number = {
                        let mut log = log.lock().unwrap();
                        log.push(request.clone());
                        log.len()
                    };
                    answer(&request, number, &mut stream);
                });
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Asked {
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap_or_default);
    let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut range, mut if_range, mut token) = (0..0, None, false);
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let (a, b) = value.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                range = a.parse().unwrap()..b.parse::<u64>().unwrap() + 1;
            }
            "if-range" => if_range = Some(value.to_owned()),
            "authorization" => token = true,
            _ => {}
        }
    }
    Asked { path, range, if_range, token }
}

/// Says 206 with what was asked for, and more headers; the body is the caller's.
fn partial(stream: &mut TcpStream, asked: &Asked, total: usize, more: &str) {
    let Range { start, end } = asked.range;
    let length = end - start;
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{total}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n",
        end - 1
    )
    .unwrap();
}

fn slice<'a>(bytes: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
}

/// A place for a file of these bytes, fetched from a server.
struct Place {
    dir: tempfile::TempDir,
    http: Arc<Http>,
    target: Arc<Target>,
}

impl Place {
    fn new(server: &Server, bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            endpoint: server.address.clone(),
            token: Token::new("hf_canary"),
            cache: dir.path().to_owned(),
            offline: false,
            connect: Duration::from_secs(2),
            silence: Duration::from_millis(500),
            retries: 3,
            first_wait: Duration::from_millis(5),
            longest_wait: Duration::from_millis(20),
        };
        let http = Arc::new(Http::new(settings, Arc::new(|| false)).unwrap());
        let mut hash = String::new();
        for byte in Sha256::digest(bytes) {
            write!(hash, "{byte:02x}").unwrap();
        }
        let at = |name: &str| -> PathBuf { dir.path().join(name) };
        let target = Arc::new(Target::new(
            "org/name: file".into(),
            http.url(["file"]),
            "c",
            (bytes.len() as u64, Hash::Sha256(hash)),
            (at("partial"), at("whole"), None),
            at("list"),
        ));
        Self { dir, http, target }
    }

    fn fetch(&self, ranges: &[Range<u64>]) -> crate::Result<()> {
        let ranges = ranges.iter().cloned().collect();
        let wanted = vec![Wanted { target: Arc::clone(&self.target), ranges }];
        fetch(&self.http, wanted, Manner::default(), &Quiet)
    }

    fn here(&self) -> u64 {
        Fetched::of(&self.partial()).unwrap().unwrap().bytes()
    }

    fn partial(&self) -> PathBuf {
        self.dir.path().join("partial")
    }

    fn whole(&self) -> PathBuf {
        self.dir.path().join("whole")
    }
}

fn kind(error: &Error) -> HubFailure {
    match error {
        Error::Hub { kind, .. } => *kind,
        other => panic!("{other}"),
    }
}

#[test]
fn what_breaks_off_is_gone_on_with() {
    let bytes = content(300_000);
    let served = bytes.clone();
    let server = Server::start("127.0.0.1", move |asked, number, stream| {
        partial(stream, asked, served.len(), "");
        let body = slice(&served, &asked.range);
        let body = if number <= 2 { &body[..100_000.min(body.len())] } else { body };
        let _ = stream.write_all(body);
    });
    let place = Place::new(&server, &bytes);
    let all = 0..300_000;
    place.fetch(std::slice::from_ref(&all)).unwrap();
    let starts: Vec<u64> = server.asked().iter().map(|asked| asked.range.start).collect();
    assert_eq!(starts, [0, 100_000, 200_000]);
    assert_eq!(std::fs::read(place.whole()).unwrap(), bytes);
    assert!(!place.partial().exists() && !record_of(&place.partial()).exists());
}

#[test]
fn other_ranges_than_those_asked_for_are_refused() {
    let bytes = content(1000);
    for headers in ["Content-Range: bytes 1-10/1000", "Content-Range: bytes 0-9/999", "X: y"] {
        let server = Server::start("127.0.0.1", move |_, _, stream| {
            let _ = write!(
                stream,
                "HTTP/1.1 206 Partial Content\r\n{headers}\r\nContent-Length: 10\r\n\r\n0123456789"
            );
        });
        let place = Place::new(&server, &bytes);
        let range = 0..10;
        let error = place.fetch(std::slice::from_ref(&range)).unwrap_err();
        assert_eq!(kind(&error), HubFailure::Corrupt, "{headers}: {error}");
        assert_eq!((place.here(), server.asked().len()), (0, 1), "{headers}");
    }
}

#[test]
fn wrong_files_get_no_name() {
    let bytes = content(1000);
    let server = Server::start("127.0.0.1", |asked, _, stream| {
        partial(stream, asked, 1000, "");
        let _ = stream.write_all(&[7; 1000]);
    });
    let place = Place::new(&server, &bytes);
    let all = 0..1000;
    let error = place.fetch(std::slice::from_ref(&all)).unwrap_err();
    assert_eq!((kind(&error), error.exit_code()), (HubFailure::Corrupt, 7));
    assert!(
        !place.whole().exists()
            && !place.partial().exists()
            && !record_of(&place.partial()).exists()
    );
}

#[test]
fn signed_addresses_are_used_while_they_work() {
    let bytes = content(4_000_000);
    let served = bytes.clone();
    let store = Server::start("127.0.0.2", move |asked, number, stream| {
        if number == 2 {
            let _ = write!(
                stream,
                "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return;
        }
        partial(stream, asked, served.len(), "ETag: \"tag\"\r\n");
        let _ = stream.write_all(slice(&served, &asked.range));
    });
    let to = format!("{}/signed", store.address);
    let hub = Server::start("127.0.0.1", move |_, _, stream| {
        let _ = write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    });
    let place = Place::new(&hub, &bytes);
    for start in [0, 2_000_000, 3_000_000] {
        let range = start..start + 10;
        place.fetch(std::slice::from_ref(&range)).unwrap();
    }
    // Asked at first, and when the address had expired.
    assert_eq!(hub.asked().len(), 2);
    assert!(hub.asked().iter().all(|asked| asked.token));
    let stored = store.asked();
    assert!(stored.iter().all(|asked| !asked.token), "the token went to another origin");
    let tags: Vec<bool> = stored.iter().map(|asked| asked.if_range.is_some()).collect();
    assert_eq!(tags, [false, true, false, true]);
}

/// A store that binds each address to the range that it was first used for.
#[test]
fn addresses_for_one_range_are_asked_for_anew() {
    let bytes = content(70_000_000);
    let served = bytes.clone();
    let bound: Mutex<BTreeMap<String, Range<u64>>> = Mutex::default();
    let store = Server::start("127.0.0.2", move |asked, _, stream| {
        let first =
            bound.lock().unwrap().entry(asked.path.clone()).or_insert(asked.range.clone()).clone();
        if first != asked.range {
            let refusal =
                "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(refusal.as_bytes());
            return;
        }
        partial(stream, asked, served.len(), "ETag: \"tag\"\r\n");
        let _ = stream.write_all(slice(&served, &asked.range));
    });
    let to = format!("{}/signed", store.address);
    let hub = Server::start("127.0.0.1", move |_, number, stream| {
        let _ = write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: {to}{number}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    });
    let mut place = Place::new(&hub, &bytes);
    let settings = Settings { retries: 0, ..place.http.settings().clone() };
    place.http = Arc::new(Http::new(settings, Arc::new(|| false)).unwrap());
    for range in [0..10, 20_000_000..20_000_010, 0..70_000_000] {
        place.fetch(std::slice::from_ref(&range)).unwrap();
    }
    assert_eq!(std::fs::read(place.whole()).unwrap(), bytes);
    let asked = store.asked();
    assert!(asked.len() > hub.asked().len(), "no address was used twice: {asked:?}");
}

#[test]
fn drips_are_stalls() {
    let bytes = content(100_000);
    let server = Server::start("127.0.0.1", |asked, _, stream| {
        partial(stream, asked, 100_000, "");
        while stream.write_all(&[0]).is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let mut place = Place::new(&server, &bytes);
    let settings =
        Settings { silence: Duration::from_secs(1), retries: 1, ..place.http.settings().clone() };
    place.http = Arc::new(Http::new(settings, Arc::new(|| false)).unwrap());
    let all = 0..100_000;
    let error = place.fetch(std::slice::from_ref(&all)).unwrap_err();
    assert!(error.to_string().contains("1 kB"), "{error}");
    assert_eq!(server.asked().len(), 2);
    assert!(place.here() > 0, "what came is kept");
}

#[test]
fn neighbours_are_fetched_together_within_a_budget() {
    let bytes = content(8_000_000);
    let served = bytes.clone();
    let server = Server::start("127.0.0.1", move |asked, _, stream| {
        partial(stream, asked, served.len(), "");
        let _ = stream.write_all(slice(&served, &asked.range));
    });
    let place = Place::new(&server, &bytes);
    place.fetch(&[0..2_000_000, 2_000_100..4_000_000, 7_000_000..8_000_000]).unwrap();
    let mut asked: Vec<Range<u64>> = server.asked().into_iter().map(|asked| asked.range).collect();
    asked.sort_by_key(|range| range.start);
    assert_eq!(asked, [0..4_000_000, 7_000_000..8_000_000]);
    // Nothing twice.
    place.fetch(&[10..100, 7_500_000..8_000_000]).unwrap();
    assert_eq!(server.asked().len(), 2);
    let written = std::fs::read(Path::new(&place.partial())).unwrap();
    assert_eq!(written[..4_000_000], bytes[..4_000_000]);
}

#[test]
fn two_fetches_of_a_file_are_one() {
    let bytes = content(3_000_000);
    let served = bytes.clone();
    let server = Server::start("127.0.0.1", move |asked, _, stream| {
        partial(stream, asked, served.len(), "");
        thread::sleep(Duration::from_millis(200));
        let _ = stream.write_all(slice(&served, &asked.range));
    });
    let place = Place::new(&server, &bytes);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let all = 0..3_000_000;
                place.fetch(std::slice::from_ref(&all)).unwrap();
            });
        }
    });
    assert_eq!(server.asked().len(), 1);
    assert_eq!(std::fs::read(place.whole()).unwrap(), bytes);
}
