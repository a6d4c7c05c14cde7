//! One request to the Hub, to its end: an answer whose status is known, or an error that says what to do.
//!
//! * The token goes to the Hub's own origin (scheme, host, port) and to no other, whatever redirects and links say.
//! * Redirects are followed by hand, at most ten, never from https to http.
//! * What the Hub did not answer, or answered with "later" (408, 429, 5xx), is asked again a few times, after the wait that
//!   the Hub asks for if it is bearable; what must not be carried out twice is sent once, and told what was answered.
//! * Every wait has an end: for the connection, for the answer, for each piece of a body, and for all tries of a request that
//!   nobody answers. Waiting ends when the run is cancelled.
//! * Bodies come as they are: no content coding is asked for, and none is accepted.

use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, Response};
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;

use super::lock::Heart;
use super::settings::Settings;
use crate::error::{Error, HubFailure, Result, printable};

const MOST_REDIRECTS: usize = 10;
/// The largest answer that is taken into memory.
const LARGEST_ANSWER: u64 = 64 << 20;
/// A wait longer than this is told instead of waited for, and a Hub that is silent for so long is given up.
const MOST_PATIENCE: Duration = Duration::from_mins(2);

/// What a request carries.
pub(super) enum Payload<'a> {
    Nothing,
    Json(&'a Value),
    /// Bytes and their media type.
    Bytes(&'a [u8], &'static str),
}

/// A request, and what the user would call it.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    /// What is asked for, in words for errors: `org/name`, `org/name: model.safetensors`.
    pub(super) what: &'a str,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) payload: Payload<'a>,
    /// How long to wait for the answer, if longer than usual.
    pub(super) patience: Option<Duration>,
}

impl<'a> Call<'a> {
    pub(super) fn get(url: Url, what: &'a str) -> Self {
        let (method, headers, payload) = (Method::GET, Vec::new(), Payload::Nothing);
        Self { method, url, what, headers, payload, patience: None }
    }

    pub(super) fn post(url: Url, what: &'a str, payload: Payload<'a>) -> Self {
        Self { method: Method::POST, payload, ..Self::get(url, what) }
    }

    /// Asks for a range of bytes.
    pub(super) fn range(mut self, range: &Range<u64>) -> Self {
        let value = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        self.headers.push((header::RANGE, value));
        self
    }
}

/// An answer with a status of success (2xx), or 304 or 416, which callers ask for.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Headers of the redirects on the way, first first, then of the answer.
    hops: Vec<HeaderMap>,
    response: Response,
}

impl Answer {
    /// A header of the last answer.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// A header of the first answer on the way that has it: the Hub says there what a file is, before it sends the
    /// client to where its bytes lie.
    pub(super) fn first_header(&self, name: &str) -> Option<&str> {
        self.hops.iter().find_map(|headers| headers.get(name)?.to_str().ok())
    }

    /// Where the answer came from, after redirects.
    pub(super) fn url(&self) -> &Url {
        self.response.url()
    }

    /// The body. Each read waits no longer than the settings' silence.
    pub(super) fn body(self) -> impl Read {
        self.response
    }

    /// The whole body as JSON.
    pub(super) fn json(self, what: &str) -> Result<Value> {
        let mut bytes = Vec::new();
        let read = self.response.take(LARGEST_ANSWER + 1).read_to_end(&mut bytes);
        read.map_err(|error| broken(what, &format!("the answer broke off: {error}")))?;
        if bytes.len() as u64 > LARGEST_ANSWER {
            return Err(corrupt(what, "the answer is larger than any of the Hub's".into()));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| corrupt(what, format!("the answer is not JSON: {error}")))
    }
}

/// A client of the Hub.
pub struct Http {
    settings: Settings,
    endpoint: Url,
    client: OnceLock<Client>,
    cancelled: Arc<dyn Fn() -> bool + Send + Sync>,
    received: AtomicU64,
    requests: AtomicU64,
    heart: Heart,
}

impl Http {
    /// A client that opens no connection before it is asked for something.
    pub fn new(settings: Settings, cancelled: Arc<dyn Fn() -> bool + Send + Sync>) -> Result<Self> {
        let endpoint = Url::parse(&settings.endpoint).map_err(|error| Error::Usage {
            problem: format!("`{}` is no address of a Hub: {error}", settings.endpoint),
            hint: "check `HF_ENDPOINT`".into(),
        })?;
        let (client, received) = (OnceLock::new(), AtomicU64::new(0));
        let (requests, heart) = (AtomicU64::new(0), Heart::default());
        Ok(Self { settings, endpoint, client, cancelled, received, requests, heart })
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// An address on the Hub. Each part is one segment of the path: what would be more is escaped.
    pub(super) fn url<'p>(&self, parts: impl IntoIterator<Item = &'p str>) -> Url {
        let mut url = self.endpoint.clone();
        // Only addresses without a path, such as `mailto:`, have no segments; `Settings` lets none through.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
        }
        url
    }

    /// Whether an address is on the Hub itself.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// Bytes of bodies of files received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Requests sent so far, those that were redirected among them.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn count_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.heart.beat();
    }

    /// By which other processes see that this one gets on.
    pub(super) fn heart(&self) -> &Heart {
        &self.heart
    }

    /// Fails if the run is to end.
    pub(super) fn check_cancelled(&self) -> Result<()> {
        if (self.cancelled)() { Err(Error::Interrupted { resumable: true }) } else { Ok(()) }
    }

    /// Waits, unless the run is cancelled.
    pub(super) fn wait(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.check_cancelled()?;
            match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => sleep(left.min(Duration::from_millis(100))),
                _ => return Ok(()),
            }
        }
    }

    /// The wait before the repetition after `failures` failures.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        let doubled = self.settings.first_wait.saturating_mul(1 << failures.min(10));
        doubled.min(self.settings.longest_wait)
    }

    /// Sends a request, again where that helps, and returns the answer that settles it.
    pub(super) fn send(&self, call: &Call<'_>) -> Result<Answer> {
        let (mut failures, mut silence) = (0, Duration::ZERO);
        loop {
            let began = Instant::now();
            let later = match self.send_once(call)? {
                Ok(answer) => return Ok(answer),
                Err(later) => later,
            };
            silence += began.elapsed();
            let given_up = silence + self.settings.silence >= MOST_PATIENCE;
            if later.is_too_long() || failures >= self.settings.retries || given_up {
                return Err(later.told(call.what));
            }
            self.wait(later.wait.unwrap_or_else(|| self.pause(failures)))?;
            failures += 1;
        }
    }

    /// Sends a request that must not be carried out twice: one try. The inner error settles nothing.
    pub(super) fn send_once(&self, call: &Call<'_>) -> Result<Result<Answer, Later>> {
        if self.settings.offline {
            return Err(offline(call.what));
        }
        self.check_cancelled()?;
        self.follow(call)
    }

    /// One try, through its redirects.
    fn follow(&self, call: &Call<'_>) -> Result<Result<Answer, Later>> {
        let mut url = call.url.clone();
        let mut hops = Vec::new();
        loop {
            let response = match self.once(call, &url)? {
                Ok(response) => response,
                Err(problem) => return Ok(Err(Later { problem, wait: None })),
            };
            let status = response.status();
            hops.push(response.headers().clone());
            if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
                let to = to.and_then(|to| url.join(to).ok());
                let Some(to) = to else {
                    return Err(corrupt(call.what, "a redirect leads nowhere".into()));
                };
                if !matches!(to.scheme(), "http" | "https")
                    || (url.scheme() == "https" && to.scheme() == "http")
                {
                    return Err(corrupt(
                        call.what,
                        format!("a redirect leads to `{}:`", to.scheme()),
                    ));
                }
                if hops.len() > MOST_REDIRECTS {
                    return Err(corrupt(
                        call.what,
                        format!("more than {MOST_REDIRECTS} redirects"),
                    ));
                }
                url = to;
                continue;
            }
            if is_later(status) {
                let problem = format!("the Hub answered {}", told(status));
                return Ok(Err(Later { problem, wait: retry_after(response.headers()) }));
            }
            let settled = status.is_success()
                || status == StatusCode::NOT_MODIFIED
                || status == StatusCode::RANGE_NOT_SATISFIABLE;
            // An address that the Hub led to has expired, or its store fails: the Hub gives another one.
            if !settled
                && status != StatusCode::NOT_FOUND
                && !self.is_own(&url)
                && self.is_own(&call.url)
                && call.method == Method::GET
            {
                let problem = format!("the store that the Hub named answered {}", told(status));
                return Ok(Err(Later { problem, wait: None }));
            }
            if !settled {
                return Err(self.refused(call.what, status, &hops, response));
            }
            let coding = response.headers().get(header::CONTENT_ENCODING);
            if coding.is_some_and(|coding| coding.as_bytes() != b"identity") {
                return Err(corrupt(
                    call.what,
                    "the answer is compressed, which was not asked for".into(),
                ));
            }
            return Ok(Ok(Answer { status, hops, response }));
        }
    }

    /// One exchange. The inner error is worth another try.
    fn once(&self, call: &Call<'_>, url: &Url) -> Result<Result<Response, String>> {
        let mut request = self.client()?.request(call.method.clone(), url.clone());
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if let (Some(token), true) = (&self.settings.token, self.is_own(url)) {
            let mut value = HeaderValue::from_str(&token.bearer())
                .map_err(|_| corrupt(call.what, "the token cannot be sent".into()))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        request = match &call.payload {
            Payload::Nothing => request,
            Payload::Json(json) => {
                let request = request.header(header::CONTENT_TYPE, "application/json");
                request.body(json.to_string())
            }
            Payload::Bytes(bytes, media) => {
                request.header(header::CONTENT_TYPE, *media).body(bytes.to_vec())
            }
        };
        if let Some(patience) = call.patience {
            request = request.timeout(patience);
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        Ok(request.send().map_err(|error| unreached(&error, url)))
    }

    /// The connections, which carry no token of their own.
    pub(super) fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let made = Client::builder()
            .redirect(Policy::none())
            // One connection for all would share one window: ranges come over connections of their own.
            .http1_only()
            .connect_timeout(self.settings.connect)
            .timeout(self.settings.silence)
            .user_agent(concat!("elo-surgery/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| {
                broken(
                    &self.settings.endpoint,
                    &format!("no client can be made: {}", causes(&error)),
                )
            })?;
        Ok(self.client.get_or_init(|| made))
    }

    /// Why the Hub does not do what was asked.
    fn refused(
        &self,
        what: &str,
        status: StatusCode,
        hops: &[HeaderMap],
        response: Response,
    ) -> Error {
        let from_hub = |name: &str| {
            let found = hops.iter().find_map(|headers| headers.get(name)?.to_str().ok());
            found.map(printable)
        };
        let code = from_hub("x-error-code").unwrap_or_default();
        let message = from_hub("x-error-message").or_else(|| message_in(response));
        let message =
            message.filter(|m| !m.is_empty()).map(|m| format!(": {m}")).unwrap_or_default();
        let signed_in = self.settings.token.is_some();
        let (kind, problem, hint) = match (status, code.as_str()) {
            (_, "GatedRepo") => (
                HubFailure::Refused,
                format!("access is granted on request only{message}"),
                format!("ask for it at {}/{}, and sign in with `hf auth login`", self.settings.endpoint, what_of(what)),
            ),
            (_, "RevisionNotFound") => (
                HubFailure::Missing,
                "there is no such revision".to_owned(),
                "check the branch, tag or commit after the `@`".to_owned(),
            ),
            (_, "EntryNotFound") => {
                (HubFailure::Missing, "there is no such file".to_owned(), "check the file's name".to_owned())
            }
            (StatusCode::UNAUTHORIZED, _) if signed_in => (
                HubFailure::Refused,
                format!("the Hub does not take the token, or there is no such repository{message}"),
                "check the name; sign in anew with `hf auth login`, or set `HF_TOKEN`".to_owned(),
            ),
            (StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND, _) => (
                HubFailure::Missing,
                format!("the Hub has no such repository, or shows it to its members only{message}"),
                "check the name; for private and gated models sign in with `hf auth login`, or set `HF_TOKEN`".to_owned(),
            ),
            (StatusCode::FORBIDDEN, _) => (
                HubFailure::Refused,
                format!("the Hub does not allow it{message}"),
                "use a token with the rights for it: `hf auth login`, or `HF_TOKEN`".to_owned(),
            ),
            (StatusCode::PRECONDITION_FAILED, _) => (
                HubFailure::Moved,
                format!("the repository changed meanwhile{message}"),
                "run the same command again to see what is left to do".to_owned(),
            ),
            (status, _) if status.is_client_error() && status != StatusCode::CONFLICT => (
                HubFailure::Refused,
                format!("the Hub refuses the request with {}{message}", told(status)),
                "it would refuse it again: what it says names the reason".to_owned(),
            ),
            _ => (
                HubFailure::Network,
                format!("the Hub answered {}{message}", told(status)),
                "run the same command again: nothing that was done is lost".to_owned(),
            ),
        };
        Error::Hub { what: what.to_owned(), kind, problem, hint }
    }
}

/// No answer, or "later".
pub(super) struct Later {
    problem: String,
    /// The wait that was asked for.
    pub(super) wait: Option<Duration>,
}

impl Later {
    /// Whether the wait is to be told instead of waited for.
    pub(super) fn is_too_long(&self) -> bool {
        self.wait.is_some_and(|wait| wait > MOST_PATIENCE)
    }

    /// In words, as the end of all tries.
    pub(super) fn told(&self, what: &str) -> Error {
        let mut told = broken(what, &self.problem);
        if let (Error::Hub { hint, .. }, Some(wait), true) =
            (&mut told, self.wait, self.is_too_long())
        {
            let seconds = wait.as_secs();
            *hint =
                format!("the Hub asks to wait {seconds} seconds; run the same command again then");
        }
        told
    }
}

pub(super) fn is_later(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// The wait that is asked for: `Retry-After` in seconds, or the rest of a window in which nothing is left, as the Hub's rate
/// limits say it (`RateLimit: "api";r=0;t=55`). A date is left to the usual waits.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let text = |name: HeaderName| headers.get(name)?.to_str().ok();
    let window = || {
        let limit = text(HeaderName::from_static("ratelimit"))?;
        let item = |key| limit.split(';').find_map(|item| number(item.trim().strip_prefix(key)?));
        item("t=").filter(|_| item("r=") == Some(0))
    };
    text(header::RETRY_AFTER).and_then(number).or_else(window).map(Duration::from_secs)
}

fn told(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} ({reason})", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// The repository in a name such as `org/name: file`.
fn what_of(what: &str) -> &str {
    what.split([':', '@']).next().unwrap_or(what)
}

/// What the Hub says in the body of a refusal.
fn message_in(response: Response) -> Option<String> {
    let mut bytes = Vec::new();
    response.take(4096).read_to_end(&mut bytes).ok()?;
    let json: Value = serde_json::from_slice(&bytes).ok()?;
    json.get("error")?.as_str().map(printable)
}

fn unreached(error: &reqwest::Error, url: &Url) -> String {
    let host = url.host_str().unwrap_or("the Hub");
    if error.is_timeout() {
        format!("`{host}` did not answer in time")
    } else {
        format!("`{host}` could not be reached: {}", causes(error))
    }
}

/// An error's causes without the address, which may be signed.
pub(super) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    printable(&innermost.to_string())
}

pub(super) fn offline(what: &str) -> Error {
    Error::Hub {
        what: what.to_owned(),
        kind: HubFailure::Offline,
        problem: "it is not in the cache, and this run is offline".into(),
        hint: "run without `--offline` and `HF_HUB_OFFLINE`, or fetch it before with `elo-surgery pull`".into(),
    }
}

/// The connection failed.
pub(super) fn broken(what: &str, problem: &str) -> Error {
    Error::Hub {
        what: what.to_owned(),
        kind: HubFailure::Network,
        problem: problem.to_owned(),
        hint: "run the same command again to go on where it stopped".into(),
    }
}

/// The Hub sent what it should not have.
pub(super) fn corrupt(what: &str, problem: String) -> Error {
    Error::Hub {
        what: what.to_owned(),
        kind: HubFailure::Corrupt,
        problem,
        hint:
            "nothing of it was kept; if it happens again, the Hub, a mirror or a proxy is at fault"
                .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_as_long_as_the_hub_asks() {
        let waits = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            retry_after(&pairs.collect()).map(|wait| wait.as_secs())
        };
        assert_eq!(waits(&[]), None);
        assert_eq!(waits(&[("retry-after", " 7 ")]), Some(7));
        assert_eq!(waits(&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")]), None);
        assert_eq!(waits(&[("ratelimit", "\"api\";r=0;t=55")]), Some(55));
        assert_eq!(waits(&[("ratelimit", "\"api\";r=12;t=55")]), None);
        assert_eq!(waits(&[("retry-after", "3"), ("ratelimit", "\"api\";r=0;t=55")]), Some(3));
    }
}
