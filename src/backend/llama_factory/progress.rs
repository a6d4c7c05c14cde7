//! Progress from `trainer_log.jsonl`, which LLaMA-Factory appends to while it trains.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::checkpoints::{self, number};
use super::super::event::NativeEvents;
use super::super::protocol::{Event, StepEvent};
use crate::error::{IoContext as _, Result};

const LOG: &str = "trainer_log.jsonl";

pub(super) struct Progress {
    output: PathBuf,
    /// Bytes of the log already read, and the line begun after them.
    read: u64,
    begun: Vec<u8>,
    told_start: bool,
    checkpoint: Option<u64>,
}

impl Progress {
    /// Follows an output directory from what it holds now: earlier attempts have been told.
    pub(super) fn follow(output: &Path) -> Self {
        let read = output.join(LOG).metadata().map_or(0, |metadata| metadata.len());
        let newest = checkpoints::newest(output).ok().flatten();
        Self {
            output: output.to_owned(),
            read,
            begun: Vec::new(),
            told_start: false,
            checkpoint: newest.map(|checkpoint| checkpoint.step),
        }
    }

    /// Complete lines that were added.
    fn lines(&mut self) -> Result<Vec<String>> {
        let path = self.output.join(LOG);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.read = 0;
                self.begun.clear();
                return Ok(Vec::new());
            }
            Err(error) => return Err(error).at("read", &path),
        };
        if file.metadata().at("read", &path)?.len() < self.read {
            // Begun anew.
            self.read = 0;
            self.begun.clear();
        }
        file.seek(SeekFrom::Start(self.read)).at("read", &path)?;
        let mut added = Vec::new();
        self.read += file.read_to_end(&mut added).at("read", &path)? as u64;
        self.begun.append(&mut added);
        let mut lines = Vec::new();
        while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.begun.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line).into_owned());
        }
        Ok(lines)
    }
}

impl NativeEvents for Progress {
    fn poll(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for line in self.lines()? {
            let line = line.replace(": NaN", ": null");
            let Ok(told) = serde_json::from_str::<Value>(&line) else { continue };
            let whole = |key: &str| told.get(key).and_then(Value::as_u64);
            let fraction = |key: &str| told.get(key).and_then(number);
            let Some(step) = whole("current_steps") else { continue };
            if !self.told_start {
                self.told_start = true;
                let steps_total = whole("total_steps");
                events.push(Event::Start { steps_total, resumed_at: self.checkpoint });
            }
            if told.get("loss").is_some() {
                events.push(Event::Step(StepEvent {
                    step,
                    loss: fraction("loss"),
                    lr: fraction("lr"),
                    tokens: whole("total_tokens"),
                    tok_s: fraction("throughput"),
                    grad_norm: None,
                }));
            }
        }
        if let Some(newest) = checkpoints::newest(&self.output)?
            && self.checkpoint < Some(newest.step)
        {
            self.checkpoint = Some(newest.step);
            events.push(Event::Checkpoint { step: newest.step, dir: Some(newest.directory) });
        }
        Ok(events)
    }
}
