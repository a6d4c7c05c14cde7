//! HTTP/1.1 as far as a Hub needs it: requests are read, answers are written, well or as badly as a fault wants it.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::hashes::unescape;
use super::store::Content;

const LARGEST_HEAD: u64 = 1 << 20;
/// How long a silence lasts that nobody ends. Longer than any client should wait.
const LONG: Duration = Duration::from_mins(5);

/// What a client asks for.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query, as they came.
    pub(crate) target: String,
    /// Names in small letters.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The parts of the path, each decoded: an escaped slash stays inside its part.
    pub(crate) fn segments(&self) -> Vec<String> {
        let path = self.target.split('?').next().unwrap_or_default();
        path.split('/').filter(|part| !part.is_empty()).map(unescape).collect()
    }

    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.filter(|(n, _)| *n == name).map(|(_, value)| unescape(value)).next()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// First and last byte of `Range: bytes=a-b`, `a-` or `-n`, within a file of this size.
    pub(crate) fn range(&self, size: u64) -> Option<Range<u64>> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        if first.is_empty() {
            let count: u64 = last.parse().ok()?;
            return Some(size.saturating_sub(count)..size);
        }
        let first = first.parse().ok()?;
        let end = last.parse::<u64>().map_or(size, |last| size.min(last.saturating_add(1)));
        Some(first..end)
    }
}

/// Reads the head of the next request; `None` if there is none any more.
pub(crate) fn read_head(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut lines = Vec::new();
    let mut limited = stream.by_ref().take(LARGEST_HEAD);
    loop {
        let mut line = String::new();
        if limited.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" if lines.is_empty() => {}
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut first = lines.first()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines.iter().skip(1).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    });
    Some(Request { method, target, headers: headers.collect(), body: Vec::new() })
}

/// Reads the request's body; only the first half if it is to be `broken` off.
pub(crate) fn read_body(
    stream: &mut BufReader<TcpStream>,
    request: &mut Request,
    broken: bool,
) -> Option<()> {
    if request.header("expect").is_some_and(|e| e.eq_ignore_ascii_case("100-continue")) {
        stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    if request.header("transfer-encoding").is_some_and(|e| e.contains("chunked")) {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            let size = u64::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
            let mut limited = stream.by_ref().take(size);
            let read = limited.read_to_end(&mut request.body).ok()?;
            let mut end = String::new();
            stream.read_line(&mut end).ok()?;
            if size == 0 || broken {
                return Some(());
            }
            if read as u64 != size {
                return None;
            }
        }
    }
    let announced: u64 = request.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let size = if broken { announced / 2 } else { announced };
    let read = stream.by_ref().take(size).read_to_end(&mut request.body).ok()?;
    (read as u64 == size).then_some(())
}

/// What is sent after the head.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Bytes(Vec<u8>),
    /// A part of a file, its last bytes changed if it is `spoiled`.
    Part {
        content: Content,
        range: Range<u64>,
        spoiled: bool,
    },
}

impl Body {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Part { range, .. } => range.end.saturating_sub(range.start),
        }
    }

    fn read(&self, at: u64, most: u64) -> io::Result<Vec<u8>> {
        let end = self.len().min(at.saturating_add(most));
        match self {
            Self::Bytes(bytes) => {
                let (at, end) = (usize::try_from(at), usize::try_from(end));
                Ok(bytes[at.map_err(io::Error::other)?..end.map_err(io::Error::other)?].to_vec())
            }
            Self::Part { content, range, spoiled } => {
                let mut bytes = content.read(range.start + at..range.start + end)?;
                if *spoiled && end == self.len() {
                    bytes.iter_mut().rev().take(4).for_each(|byte| *byte ^= 0x55);
                }
                Ok(bytes)
            }
        }
    }
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Well,
    /// Half of the body, then the end of the connection. The length was announced or was not.
    Cut {
        announced: bool,
    },
    /// Half of the body, then nothing.
    Stall,
    /// A byte a second.
    Drip,
    /// In chunks without end.
    Endless,
    /// A head that comes a byte a second.
    SlowHead,
    /// Nothing at all, and the connection stays.
    Silent,
    /// Nothing at all, and the connection ends.
    Close,
    /// What is no HTTP.
    Garbage,
}

/// What the Hub answers.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
    pub(crate) manner: Manner,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: Body::Bytes(body.into()), manner: Manner::Well }
    }

    pub(crate) fn json(status: u16, value: &Value) -> Self {
        Self::new(status, value.to_string()).with("Content-Type", "application/json; charset=utf-8")
    }

    /// A refusal as the Hub words it.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        let answer = Self::json(status, &serde_json::json!({ "error": message }));
        let answer = answer.with("X-Error-Message", message);
        if code.is_empty() { answer } else { answer.with("X-Error-Code", code) }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn manner(self, manner: Manner) -> Self {
        Self { manner, ..self }
    }
}

/// One connection's sending side.
pub(crate) struct Sender<'a> {
    pub(crate) stream: &'a mut TcpStream,
    pub(crate) stopping: &'a dyn Fn() -> bool,
    /// Told after each piece of a body.
    pub(crate) sent: &'a dyn Fn(u64),
}

impl Sender<'_> {
    /// Sends an answer; whether the connection can go on.
    pub(crate) fn send(&mut self, answer: &Answer, head_only: bool) -> io::Result<bool> {
        match answer.manner {
            Manner::Silent => return self.silence(LONG).map(|()| false),
            Manner::Close => return Ok(false),
            Manner::Garbage => {
                return self.stream.write_all(b"\x16\x03\x01 not HTTP\r\n\r\n").map(|()| false);
            }
            _ => {}
        }
        let length = answer.body.len();
        let announced =
            !matches!(answer.manner, Manner::Cut { announced: false } | Manner::Endless);
        let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
        for (name, value) in &answer.headers {
            let _infallible = write!(head, "{name}: {value}\r\n");
        }
        let given =
            answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        if announced && !given {
            let _infallible = write!(head, "Content-Length: {length}\r\n");
        } else if answer.manner == Manner::Endless {
            head.push_str("Transfer-Encoding: chunked\r\n");
        } else if !announced {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        if answer.manner == Manner::SlowHead {
            return self.drip(head.as_bytes()).map(|()| false);
        }
        self.stream.write_all(head.as_bytes())?;
        if head_only {
            return Ok(answer.manner == Manner::Well);
        }
        match answer.manner {
            Manner::Cut { .. } => self.body(&answer.body, 0..length / 2).map(|()| false),
            Manner::Stall => {
                self.body(&answer.body, 0..length / 2)?;
                self.silence(LONG).map(|()| false)
            }
            Manner::Drip => {
                let bytes = answer.body.read(0, 4096)?;
                self.drip(&bytes)?;
                self.silence(LONG).map(|()| false)
            }
            Manner::Endless => self.endless(&answer.body).map(|()| false),
            _ => self.body(&answer.body, 0..length).map(|()| true),
        }
    }

    fn body(&mut self, body: &Body, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let piece = body.read(at, (range.end - at).min(1 << 18))?;
            self.stream.write_all(&piece)?;
            at += piece.len() as u64;
            (self.sent)(piece.len() as u64);
        }
        self.stream.flush()
    }

    fn drip(&mut self, bytes: &[u8]) -> io::Result<()> {
        for byte in bytes {
            self.stream.write_all(&[*byte])?;
            (self.sent)(1);
            self.silence(Duration::from_secs(1))?;
        }
        Ok(())
    }

    /// The body, then zeros for ever.
    fn endless(&mut self, body: &Body) -> io::Result<()> {
        let mut at = 0;
        while !(self.stopping)() {
            let piece = if at < body.len() { body.read(at, 1 << 16)? } else { vec![0; 1 << 16] };
            self.stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
            self.stream.write_all(&piece)?;
            self.stream.write_all(b"\r\n")?;
            at += piece.len() as u64;
            (self.sent)(piece.len() as u64);
        }
        Ok(())
    }

    /// Says nothing until the time is over, the client has gone, or the Hub stops.
    fn silence(&mut self, time: Duration) -> io::Result<()> {
        let end = Instant::now() + time;
        self.stream.set_nonblocking(true)?;
        let mut gone = false;
        while Instant::now() < end && !gone && !(self.stopping)() {
            sleep(Duration::from_millis(20));
            gone = matches!(self.stream.peek(&mut [0]), Ok(0))
                || self.stream.take_error().is_ok_and(|error| error.is_some());
        }
        self.stream.set_nonblocking(false)?;
        if gone || (self.stopping)() {
            Err(io::ErrorKind::ConnectionAborted.into())
        } else {
            Ok(())
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        206 => "Partial Content",
        302 => "Found",
        307 => "Temporary Redirect",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        412 => "Precondition Failed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}
