//! A Hub on this machine: `ROOT/ORG/NAME/` are its models, and it goes wrong on demand.
//!
//! ```text
//! cargo run --example fake_hub -- --root DIR --port 8700 --fault get429:2 --log requests.jsonl
//! HF_ENDPOINT=http://127.0.0.1:8700 HF_TOKEN=hf_CanaryThatMustNeverBeSeenAnywhere1 elo-surgery pull org/name
//! ```
//!
//! What is pushed stays in memory; `--keep DIR` writes the files of every branch when the Hub ends, on a line on its
//! standard input or at its end.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "the tests' Hub, as a program")]

#[allow(dead_code, reason = "the tests use more of it")]
mod fake;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use fake::faults::{ALL, Rule};
use fake::{FakeHub, Transfer};

#[derive(Parser)]
struct Options {
    /// Directory of `ORG/NAME/` directories, each a model's files on `main`.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Port of 127.0.0.1 and 127.0.0.2; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// What goes wrong: `NAME[:TIMES[:SKIP]][@PART OF THE ADDRESS]`; without TIMES, for ever.
    #[arg(long)]
    fault: Vec<String>,
    /// File to which a line of JSON is written for each request.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Write the address to this file once the Hub listens.
    #[arg(long)]
    address: Option<PathBuf>,
    /// Directory for the files of all repositories at the end: `ORG/NAME/BRANCH/`.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// How large files are to be uploaded.
    #[arg(long, value_enum, default_value_t = Way::Basic)]
    transfer: Way,
    /// The token that opens private repositories and may write.
    #[arg(long, default_value = fake::TOKEN)]
    token: String,
    /// Serve large files from the Hub's own address instead of by a redirect.
    #[arg(long)]
    direct: bool,
    /// Hash names and sizes of large files instead of their bytes: for models that nobody fetches whole.
    #[arg(long)]
    quick: bool,
    /// List the faults and end.
    #[arg(long)]
    list_faults: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    Basic,
    Multipart,
    Xet,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut out = io::stdout();
    if options.list_faults {
        for (_, name, place, about) in ALL {
            writeln!(out, "{name:22} {:10} {about}", format!("{place:?}").to_lowercase())?;
        }
        return Ok(());
    }
    let hub = FakeHub::listen(options.port)?;
    {
        let mut habits = hub.habits();
        habits.token.clone_from(&options.token);
        habits.elsewhere = !options.direct;
        habits.transfer = match options.transfer {
            Way::Basic => Transfer::Basic,
            Way::Multipart => Transfer::Multipart,
            Way::Xet => Transfer::Xet,
        };
    }
    if let Some(log) = &options.log {
        hub.log().write_to(File::create(log)?);
    }
    if let Some(root) = &options.root {
        for name in hub.add_all(root, options.quick)? {
            writeln!(out, "serving {name}")?;
        }
    }
    for fault in &options.fault {
        hub.fault(Rule::parse(fault)?);
    }
    writeln!(out, "HF_ENDPOINT={}", hub.endpoint())?;
    out.flush()?;
    if let Some(file) = &options.address {
        fs::write(file, hub.endpoint())?;
    }
    // Until a line, or the end of the input, tells it to end.
    let read = io::stdin().read_line(&mut String::new())?;
    if read == 0 && options.keep.is_none() {
        // Started without a terminal: it runs until it is killed.
        loop {
            std::thread::park();
        }
    }
    options.keep.map_or(Ok(()), |keep| write_all(&hub, &keep))?;
    Ok(())
}

/// The files of all branches.
fn write_all(hub: &FakeHub, keep: &Path) -> io::Result<()> {
    for (name, repo) in hub.repos().iter() {
        for branch in repo.branches.keys() {
            for (path, blob) in repo.files(branch).into_iter().flatten() {
                let file = keep.join(name).join(branch).join(path);
                fs::create_dir_all(file.parent().unwrap_or(keep))?;
                fs::write(file, blob.content.bytes()?)?;
            }
        }
    }
    Ok(())
}
