//! How a backend is started: command, environment, how it is stopped.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::BackendSettings;
use super::protocol::{PROTOCOL, Parallel, Spec};
use super::refusal::{refused, text};
use crate::error::Result;

/// A command that trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Program and arguments.
    pub program: Vec<OsString>,
    /// What is added to the environment.
    pub env: BTreeMap<String, String>,
    /// Where it runs: the directory of the spec.
    pub directory: PathBuf,
    /// How it is asked to stop.
    pub stop: Stop,
}

/// How a backend is asked to stop with a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM to the leader of its process group.
    Terminate,
    /// Touch a file, wait for a new checkpoint, then SIGTERM.
    TouchThenTerminate {
        /// The file.
        file: PathBuf,
    },
}

impl Launch {
    /// A command of plain arguments, run beside the spec and stopped by SIGTERM.
    pub(super) fn new(spec: &Path, program: Vec<OsString>) -> Self {
        Self {
            program,
            env: BTreeMap::new(),
            directory: stage_directory(spec).to_owned(),
            stop: Stop::Terminate,
        }
    }

    /// Adds to the environment.
    pub(super) fn with_env<const N: usize>(mut self, variables: [(&str, &str); N]) -> Self {
        self.env.extend(variables.map(|(key, value)| (key.to_owned(), value.to_owned())));
        self
    }
}

/// Adds the environment of the settings. A `PYTHONPATH` comes after the adapter's own, so that its modules are found.
pub(super) fn add_environment(env: &mut BTreeMap<String, String>, settings: &BackendSettings) {
    const PYTHON_PATH: &str = "PYTHONPATH";
    let own = env.remove(PYTHON_PATH);
    env.extend(settings.env.clone());
    if let Some(own) = own {
        let more = env.get(PYTHON_PATH).cloned().or_else(|| env::var(PYTHON_PATH).ok());
        let all = match more {
            Some(more) if !more.is_empty() => format!("{own}:{more}"),
            _ => own,
        };
        env.insert(PYTHON_PATH.to_owned(), all);
    }
}

/// Where the processes of several nodes meet: `MASTER_ADDR` and `MASTER_PORT` of the settings, then of the environment,
/// then the first node of the Slurm job.
pub(super) fn rendezvous(settings: &BackendSettings) -> Result<(String, String)> {
    let variable = |name: &str| settings.env.get(name).cloned().or_else(|| env::var(name).ok());
    let port = variable("MASTER_PORT").unwrap_or_else(|| "29500".to_owned());
    let host = variable("MASTER_ADDR")
        .or_else(|| variable("SLURM_JOB_NODELIST").and_then(|nodes| first_host(&nodes)));
    match host {
        Some(host) => Ok((host, port)),
        None => Err(refused(
            "more than one node",
            "nothing says where their processes meet",
            "start it inside a Slurm job, or give `env: {MASTER_ADDR: HOST}` and a `prefix` that starts one task a node",
        )),
    }
}

/// The first host of a Slurm list: `gpu[07-08,12],login` starts with `gpu07`.
fn first_host(nodes: &str) -> Option<String> {
    let end = nodes.find([',', '[']).unwrap_or(nodes.len());
    let (stem, rest) = nodes.split_at(end);
    let number: String = match rest.strip_prefix('[') {
        Some(list) => list.chars().take_while(char::is_ascii_digit).collect(),
        None => String::new(),
    };
    let host = format!("{stem}{number}");
    (!host.is_empty()).then_some(host)
}

/// Arguments of torchrun for a spec. Several nodes meet by rendezvous, so that none needs to know its rank.
pub(super) fn torchrun(spec: &Spec, settings: &BackendSettings) -> Result<Vec<OsString>> {
    let Parallel { gpus, nodes, .. } = spec.parallel;
    let mut arguments = vec![format!("--nproc_per_node={}", gpus.max(1))];
    if nodes > 1 {
        let (host, port) = rendezvous(settings)?;
        arguments.insert(0, format!("--nnodes={nodes}"));
        arguments.push("--rdzv_backend=c10d".to_owned());
        arguments.push(format!("--rdzv_id=elo-{}", word(&spec.stage)));
        arguments.push(format!("--rdzv_endpoint={host}:{port}"));
    } else {
        arguments.insert(0, "--standalone".to_owned());
    }
    Ok(arguments.into_iter().map(OsString::from).collect())
}

/// Arguments of accelerate for a spec and its configuration.
pub(super) fn accelerate(
    config: &Path,
    spec: &Spec,
    settings: &BackendSettings,
) -> Result<Vec<OsString>> {
    let mut arguments = vec!["--config_file".into(), config.into()];
    if spec.parallel.nodes > 1 {
        let (host, port) = rendezvous(settings)?;
        arguments.extend(["--main_process_ip".into(), host.into()]);
        arguments.extend(["--main_process_port".into(), port.into()]);
    }
    Ok(arguments)
}

/// The directory of a spec.
pub(super) fn stage_directory(spec: &Path) -> &Path {
    match spec.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The main fields of a spec as environment variables, for backends without a JSON parser.
pub(super) fn mirrored(path: &Path, spec: &Spec) -> Result<BTreeMap<String, String>> {
    let data: Vec<&str> = spec.data.iter().map(|file| text(&file.path)).collect::<Result<_>>()?;
    let pairs = [
        ("ELO_PROTOCOL", PROTOCOL.to_string()),
        ("ELO_SPEC", text(path)?.to_owned()),
        ("ELO_STAGE", word(&spec.stage)),
        ("ELO_MODEL", text(&spec.model.dir)?.to_owned()),
        ("ELO_DATA", data.join(":")),
        ("ELO_OUT", text(&spec.out.model)?.to_owned()),
        ("ELO_WORK", text(&spec.out.work)?.to_owned()),
        ("ELO_EVENTS", text(&spec.out.events)?.to_owned()),
        ("ELO_RESULT", text(&spec.out.result)?.to_owned()),
        ("ELO_SEED", spec.train.seed.to_string()),
    ];
    Ok(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// Fills the placeholders of an argument list.
pub(super) fn fill(
    arguments: &[String],
    path: &Path,
    spec: &Spec,
    config: Option<&str>,
) -> Result<Vec<OsString>> {
    arguments.iter().map(|argument| fill_one(argument, path, spec, config)).collect()
}

/// The placeholders, in the order of the documentation.
const PLACEHOLDERS: &str =
    "{spec} {config} {model} {data} {out} {work} {events} {result} {stage} {seed} {gpus} {nodes}";

fn fill_one(argument: &str, path: &Path, spec: &Spec, config: Option<&str>) -> Result<OsString> {
    let mut filled = OsString::new();
    let mut rest = argument;
    while let Some((before, name, after)) = next_placeholder(rest) {
        filled.push(before);
        match name {
            "spec" => filled.push(path),
            "model" => filled.push(&spec.model.dir),
            "out" => filled.push(&spec.out.model),
            "work" => filled.push(&spec.out.work),
            "events" => filled.push(&spec.out.events),
            "result" => filled.push(&spec.out.result),
            "stage" => filled.push(word(&spec.stage)),
            "seed" => filled.push(spec.train.seed.to_string()),
            "gpus" => filled.push(spec.parallel.gpus.to_string()),
            "nodes" => filled.push(spec.parallel.nodes.to_string()),
            "data" => match spec.data.as_slice() {
                [only] => filled.push(&only.path),
                files => {
                    return Err(refused(
                        "`{data}` in a command",
                        format!("the stage has {} data files", files.len()),
                        "read them from the spec, `{spec}`",
                    ));
                }
            },
            "config" => match config {
                Some(name) => filled.push(stage_directory(path).join(name)),
                None => {
                    return Err(refused(
                        "`{config}` in a command",
                        "this backend writes no configuration of its own",
                        "use `{spec}`",
                    ));
                }
            },
            other => {
                return Err(refused(
                    format!("`{{{other}}}` in a command"),
                    "no such placeholder",
                    format!("the placeholders are {PLACEHOLDERS}"),
                ));
            }
        }
        rest = after;
    }
    filled.push(rest);
    Ok(filled)
}

/// Splits at the first `{name}`. Other braces, as in JSON, are text.
fn next_placeholder(text: &str) -> Option<(&str, &str, &str)> {
    text.match_indices('{').find_map(|(at, _)| {
        let inside = &text[at + 1..];
        let end = inside.find('}')?;
        let name = &inside[..end];
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        is_name.then(|| (&text[..at], name, &inside[end + 1..]))
    })
}

/// The word that stands for a value in the protocol.
pub(super) fn word<T: Serialize>(value: &T) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
