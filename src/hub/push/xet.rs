//! Large files through hf-xet: cut into chunks by their content, of which only those travel that the storage lacks.
//!
//! What the crate is told: no telemetry, our waits, a token for this storage alone (and the Hub's own address to renew it). What is not
//! left to it: whether anything still moves, cancellation, and whether the bytes it read are those that were hashed.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::Value;
use xet::XetError;
use xet::xet_session::{Sha256Policy, XetConfig, XetSession, XetSessionBuilder, XetUploadCommit};

use super::super::http::{Call, Http, broken, corrupt};
use super::super::listing::api;
use super::Target;
use super::lfs::{Object, changed};
use crate::error::{Error, HubFailure, Result, printable};

/// How often an upload at work is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// The crate's runtime and connections, made when they are first needed.
#[derive(Default)]
pub(super) struct Xet {
    session: Mutex<Option<XetSession>>,
}

/// Leave to write to the storage.
struct Leave {
    endpoint: String,
    token: String,
    expires: u64,
    renew: String,
}

impl Xet {
    /// Sends a file and waits until the storage has it, in a set of its own: then it can be dropped here.
    pub(super) fn upload(
        &self,
        http: &Http,
        target: &Target,
        object: Object<'_>,
        path: &Path,
        sent: &dyn Fn(u64),
    ) -> Result<()> {
        let what = format!("{}: {}", target.id.repo(), object.name);
        let mut failures = 0;
        loop {
            let problem = match self.once(http, target, object, path, &what, sent)? {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            };
            if failures >= http.settings().retries {
                return Err(broken(&what, &problem));
            }
            http.wait(http.pause(failures))?;
            failures += 1;
        }
    }

    /// One try. The inner error is worth another.
    fn once(
        &self,
        http: &Http,
        target: &Target,
        object: Object<'_>,
        path: &Path,
        what: &str,
        sent: &dyn Fn(u64),
    ) -> Result<Result<(), String>> {
        http.check_cancelled()?;
        let leave = leave(http, target, what)?;
        let session = self.session(http, what)?;
        let uploads = match begin(http, &session, leave) {
            Ok(uploads) => Arc::new(uploads),
            Err(error) => return told(what, path, &error).map(Err),
        };
        let (give, ended) = sync_channel(1);
        let (working, file) = (Arc::clone(&uploads), path.to_owned());
        let work = move || {
            // A file that did not go must not be committed: the crate takes its set for complete then.
            let result = working
                .upload_from_path_blocking(file, Sha256Policy::Compute)
                .and_then(|handle| handle.finalize_ingestion_blocking())
                .and_then(|sent| working.commit_blocking().map(|_| sent.xet_info));
            // Nobody listens any more: the upload was given up.
            let _ = give.send(result);
        };
        let spawned = thread::Builder::new().name("xet".into()).spawn(work);
        spawned.map_err(|error| broken(what, &format!("no thread can be made: {error}")))?;
        // Between two answers of the storage many bytes are on their way.
        let patience = http.settings().silence.saturating_mul(4);
        let (mut seen, mut since) = ((0, 0, 0), Instant::now());
        let result = loop {
            match ended.recv_timeout(LOOK) {
                Ok(result) => break result,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(corrupt(what, "the upload ended without an answer".into()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let report = uploads.progress();
            let shard = report.shard.map_or(0, |shard| shard.total_shard_bytes_upload_completed);
            let now = (report.total_bytes_completed, report.total_transfer_bytes_completed, shard);
            if now != seen {
                (seen, since) = (now, Instant::now());
                sent(report.total_bytes_completed.min(object.size));
            }
            let stopped = http.check_cancelled();
            if stopped.is_err() || since.elapsed() > patience {
                let _ = uploads.abort();
                stopped?;
                let seconds = patience.as_secs_f64();
                return Ok(Err(format!("the storage took nothing for {seconds:.0} seconds")));
            }
        };
        let info = match result {
            Ok(info) => info,
            Err(error) => return told(what, path, &error).map(Err),
        };
        let same =
            info.sha256.as_deref() == Some(object.sha256) && info.file_size == Some(object.size);
        if !same {
            return Err(changed(path));
        }
        sent(object.size);
        Ok(Ok(()))
    }

    fn session(&self, http: &Http, what: &str) -> Result<XetSession> {
        let mut made = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = &*made {
            return Ok(session.clone());
        }
        let settings = http.settings();
        let mut config = XetConfig::new();
        config.telemetry.enabled = false;
        config.client.connect_timeout = settings.connect;
        config.client.read_timeout = settings.silence;
        config.client.retry_base_delay = settings.first_wait;
        config.client.retry_max_duration = settings.longest_wait.saturating_mul(2);
        let session = XetSessionBuilder::new_with_config(config).build();
        let session =
            session.map_err(|error| broken(what, &format!("hf-xet does not start: {error}")))?;
        Ok(made.insert(session).clone())
    }
}

/// Asks the Hub for leave to write to its storage.
fn leave(http: &Http, target: &Target, what: &str) -> Result<Leave> {
    let mut url = http.url(api(&target.id).chain(["xet-write-token", target.branch()]));
    if target.pull_request {
        url.query_pairs_mut().append_pair("create_pr", "1");
    }
    let renew = url.to_string();
    let answer = http.send(&Call::get(url, what))?.json(what)?;
    let text = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
    let expires = answer.get("exp").and_then(Value::as_u64);
    let (Some(token), Some(endpoint), Some(expires)) =
        (text("accessToken"), text("casUrl"), expires)
    else {
        return Err(corrupt(what, "the Hub gives no leave to write to its storage".into()));
    };
    let tls = http.settings().endpoint.starts_with("https://");
    if !(endpoint.starts_with("https://") || (endpoint.starts_with("http://") && !tls)) {
        return Err(corrupt(what, "the Hub names a storage that is not safe".into()));
    }
    Ok(Leave { endpoint, token, expires, renew })
}

fn begin(http: &Http, session: &XetSession, leave: Leave) -> Result<XetUploadCommit, XetError> {
    let mut builder = session
        .new_upload_commit()?
        .with_endpoint(leave.endpoint)
        .with_token_info(leave.token, leave.expires);
    if let Some(token) = &http.settings().token
        && let Ok(mut value) = HeaderValue::from_str(&token.bearer())
    {
        value.set_sensitive(true);
        builder = builder
            .with_token_refresh_url(leave.renew, HeaderMap::from_iter([(AUTHORIZATION, value)]));
    }
    builder.build_blocking()
}

/// hf-xet's failures in our words: those worth another try, and those that are not.
fn told(what: &str, path: &Path, error: &XetError) -> Result<String> {
    let refused = |problem: &str, hint: &str| Error::Hub {
        what: what.to_owned(),
        kind: HubFailure::Refused,
        problem: problem.to_owned(),
        hint: hint.to_owned(),
    };
    match error {
        XetError::UserCancelled(_) | XetError::KeyboardInterrupt => {
            Err(Error::Interrupted { resumable: true })
        }
        XetError::Io(text) => Err(Error::Io {
            action: "upload",
            path: path.to_owned(),
            source: std::io::Error::other(printable(text)),
        }),
        XetError::Configuration(text) => Err(refused(
            &format!("hf-xet does not work: {}", printable(text)),
            "check the variables `HF_XET_*` of the environment",
        )),
        XetError::Authentication(_) => {
            Ok("the storage does not take the leave that the Hub gave".into())
        }
        XetError::Timeout(_) => Ok("the storage did not answer in time".into()),
        XetError::RateLimited(_) => Ok("the storage asks for fewer requests".into()),
        XetError::ServerError(_) => Ok("the storage has an error of its own".into()),
        XetError::Network(_) => Ok("the storage could not be reached".into()),
        XetError::DataIntegrity(_) => Ok("the storage found the bytes damaged on their way".into()),
        XetError::NotFound(_) => Ok("the storage does not know what it was told of".into()),
        other => Ok(format!("hf-xet failed: {}", printable(&without_address(&other.to_string())))),
    }
}

/// Addresses may be signed: they are left out.
fn without_address(text: &str) -> String {
    let words =
        text.split_whitespace().map(|word| if word.contains("://") { "[address]" } else { word });
    words.collect::<Vec<_>>().join(" ")
}
