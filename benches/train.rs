//! Trains as a JSON file of `Training` says, or evaluates: for measurements and for comparison with peers.
//!
//! ```text
//! train TRAINING.json                            one JSON line a step, then the outcome
//! train --batches TRAINING.json STEPS            the micro batches of the first steps, for a peer to train on
//! train --evaluate MODEL TOKENIZER LENGTH FILE.. loss, perplexity and bits per byte of each file
//! ```

#![allow(clippy::print_stdout, reason = "an example")]

use std::path::{Path, PathBuf};

use elo_surgery::trainer::{Slice, Step, Training, Watch, batches, evaluate, train};
use elo_surgery::{Error, Result};
use serde_json::json;

struct Printer;

impl Watch for Printer {
    fn started(&self, steps_total: u64, resumed_at: u64) {
        println!("{}", json!({"event": "start", "steps_total": steps_total, "at": resumed_at}));
    }

    fn step(&self, s: &Step) {
        let line = json!({"event": "step", "step": s.step, "loss": s.loss, "lr": s.learning_rate,
            "grad_norm": s.grad_norm, "tokens": s.tokens, "tok_s": s.tokens_per_second});
        println!("{line}");
    }

    fn checkpoint(&self, step: u64, dir: &Path) {
        println!("{}", json!({"event": "checkpoint", "step": step, "dir": dir}));
    }

    fn warn(&self, message: &str) {
        println!("{}", json!({"event": "warn", "msg": message}));
    }
}

fn usage() -> Error {
    let hint = "train TRAINING.json | --batches TRAINING.json STEPS | --evaluate MODEL TOKENIZER LENGTH FILE..";
    Error::Usage { problem: "not a command line of this example".to_owned(), hint: hint.to_owned() }
}

fn read(path: &str) -> Result<Training> {
    let failed = |message: String| Error::Json { path: path.into(), message };
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| failed(e.to_string()))
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["--batches", file, steps] => {
            let steps = steps.parse().map_err(|_| usage())?;
            for step in batches(&read(file)?, steps, &Printer)? {
                println!("{}", json!({"event": "batches", "micro": step}));
            }
        }
        ["--evaluate", model, tokenizer, length, files @ ..] => {
            let length = length.parse().map_err(|_| usage())?;
            let slice = |f: &&str| Slice { name: (*f).to_owned(), path: PathBuf::from(f) };
            let slices: Vec<Slice> = files.iter().map(slice).collect();
            let (model, tokenizer) = (Path::new(model), Path::new(tokenizer));
            for p in evaluate(model, tokenizer, &slices, length, 0, &Printer)? {
                let line = json!({"event": "eval", "name": p.name, "documents": p.documents, "tokens": p.tokens,
                    "bytes": p.bytes, "loss": p.loss, "perplexity": p.perplexity, "bits_per_byte": p.bits_per_byte});
                println!("{line}");
            }
        }
        [file] => {
            let done = train(&read(file)?, &Printer)?;
            let status = format!("{:?}", done.status);
            println!("{}", json!({"event": "end", "status": status, "steps": done.steps}));
        }
        _ => return Err(usage()),
    }
    Ok(())
}
