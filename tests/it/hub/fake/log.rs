//! Every request, and what became of it.

use std::fs::File;
use std::io::Write as _;
use std::sync::Mutex;

use serde_json::json;

/// Which of the two addresses was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The Hub.
    Hub,
    /// Another host: what serves bytes, or what nobody should trust.
    Other,
}

/// What a request says about who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Nothing,
    /// The user's token.
    Token,
    /// Something else in the `Authorization` header.
    Unknown,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(crate) origin: Origin,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) sent: Sent,
    /// Whether the token's text is anywhere but in the `Authorization` header.
    pub(crate) leaked: bool,
    pub(crate) range: Option<String>,
    /// Bytes of the request's body.
    pub(crate) received: u64,
    /// How many requests were being answered when it came, itself among them.
    pub(crate) at_once: usize,
    /// Bytes of the answer's body that were sent.
    pub(crate) bytes: u64,
    pub(crate) status: u16,
    pub(crate) fault: Option<&'static str>,
    /// Whether the answer was sent to its end.
    pub(crate) whole: bool,
}

impl Logged {
    /// Whether bytes of a file were asked for, by their own address or the Hub's.
    pub(crate) fn is_bytes(&self) -> bool {
        self.method == "GET"
            && ["/resolve/", "/cdn/", "/api/resolve-cache/"]
                .iter()
                .any(|part| self.target.contains(part))
    }

    fn line(&self) -> String {
        let line = json!({
            "origin": format!("{:?}", self.origin).to_lowercase(),
            "method": self.method,
            "target": self.target,
            "authorization": format!("{:?}", self.sent).to_lowercase(),
            "leaked": self.leaked,
            "range": self.range,
            "received": self.received,
            "at_once": self.at_once,
            "bytes": self.bytes,
            "status": self.status,
            "fault": self.fault,
            "whole": self.whole,
        });
        format!("{line}\n")
    }
}

/// All requests so far, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Log {
    entries: Mutex<Vec<Logged>>,
    file: Mutex<Option<File>>,
}

impl Log {
    pub(crate) fn write_to(&self, file: File) {
        *self.file.lock().unwrap() = Some(file);
    }

    /// Adds a request; its number is for [`Log::update`].
    pub(crate) fn add(&self, entry: Logged) -> usize {
        let mut entries = self.entries.lock().unwrap();
        entries.push(entry);
        entries.len() - 1
    }

    pub(crate) fn update(&self, number: usize, change: impl FnOnce(&mut Logged)) {
        if let Some(entry) = self.entries.lock().unwrap().get_mut(number) {
            change(entry);
        }
    }

    /// Nothing more will come of this request.
    pub(crate) fn finish(&self, number: usize) {
        let line = self.entries.lock().unwrap().get(number).map(Logged::line);
        if let (Some(line), Some(file)) = (line, self.file.lock().unwrap().as_mut()) {
            let _told = file.write_all(line.as_bytes());
        }
    }

    pub(crate) fn entries(&self) -> Vec<Logged> {
        self.entries.lock().unwrap().clone()
    }
}
