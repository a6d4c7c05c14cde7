//! Every error as a user sees it: message, hint, exit status.

use std::fmt::Write;

use super::*;

/// One of each. The match in [`position`] makes the compiler ask for new ones.
fn one_of_each() -> Vec<Error> {
    let path = || PathBuf::from("model/model-00002-of-00004.safetensors");
    let dir = || PathBuf::from("model");
    let hint = || "the way out".to_owned();
    vec![
        Error::Io { action: "read", path: path(), source: io::ErrorKind::PermissionDenied.into() },
        Error::NoSpace { path: dir(), needed: 141_000_000_000, free: 12_000 },
        Error::Header { path: path(), problem: HeaderProblem::Trailing { extra: 13 } },
        Error::Index { path: path(), problem: IndexProblem::NoWeightMap },
        Error::Json { path: path(), message: "EOF at line 1 column 200".into() },
        Error::NotACheckpoint { path: dir(), reason: "it holds no `.safetensors` file".into() },
        Error::PickleOnly { path: dir(), file: "pytorch_model.bin".into() },
        Error::NotRegular { path: path(), kind: "a FIFO, socket or device".into() },
        Error::Config { path: path(), problem: ConfigProblem::NoSuchLayer { layer: 7, layers: 6 } },
        Error::Selector {
            problem: SelectorProblem::NoSuchLayer {
                layer: "33".into(),
                model: "m".into(),
                count: 32,
            },
        },
        Error::Mismatch {
            what: "the models do not fit together".into(),
            problems: (0..25).map(|i| format!("tensor `t{i}` is missing")).collect(),
            hint: hint(),
        },
        Error::Vocabulary { problems: vec!["tensor `embed`: into [12, 8], inst [14, 8]".into()] },
        Error::Unsupported {
            what: "tensor `t`".into(),
            reason: "it is quantised".into(),
            hint: hint(),
        },
        Error::OutputExists { path: dir() },
        Error::OutputIsInput { output: dir(), input: path(), relation: "contains" },
        Error::Locked { path: dir(), holder: "process 7 on host h".into() },
        Error::CannotResume { path: dir(), difference: "it makes something else".into() },
        Error::SourceChanged {
            path: path(),
            tensor: Some("evil\u{1b}[31m".into()),
            what: "it was truncated".into(),
        },
        Error::NonFinite { tensor: "t".into(), count: 3, dtype: "F16".into() },
        Error::Verification { path: dir(), problems: vec!["`config.json` differs".into()] },
        Error::Plan { problem: "tensor `t`: it has no parts".into() },
        Error::UnfinishedInPlace { path: dir() },
        Error::Interrupted { resumable: true },
        Error::Device {
            device: "cuda".into(),
            reason: "this build has no CUDA support".into(),
            hint: hint(),
        },
        Error::Project { path: "elo.yaml".into(), problem: "unknown key".into(), hint: hint() },
        Error::Data {
            path: "ko.jsonl".into(),
            line: Some(7),
            problem: "it has no field `text`".into(),
            hint: hint(),
        },
        Error::Backend {
            stage: "pretrain",
            problem: "it ended with exit status 1".into(),
            log: "work/02-pretrain/log.txt".into(),
            tail: vec!["loading".into(), "out of memory".into()],
            hint: hint(),
        },
        Error::Usage { problem: "no model was given".into(), hint: hint() },
        Error::NotFetched { path: "blobs/0f".into(), hole: 8..4096 },
        Error::Hub {
            what: "org/name: model.safetensors".into(),
            kind: HubFailure::Corrupt,
            problem: "its SHA-256 is not the one that the Hub lists".into(),
            hint: hint(),
        },
        Error::Importance {
            tensor: "t".into(),
            file: "fisher.safetensors".into(),
            element: 17,
            value: f64::NAN,
        },
    ]
}

/// The place of a variant in [`one_of_each`].
fn position(error: &Error) -> usize {
    match error {
        Error::Io { .. } => 0,
        Error::NoSpace { .. } => 1,
        Error::Header { .. } => 2,
        Error::Index { .. } => 3,
        Error::Json { .. } => 4,
        Error::NotACheckpoint { .. } => 5,
        Error::PickleOnly { .. } => 6,
        Error::NotRegular { .. } => 7,
        Error::Config { .. } => 8,
        Error::Selector { .. } => 9,
        Error::Mismatch { .. } => 10,
        Error::Vocabulary { .. } => 11,
        Error::Unsupported { .. } => 12,
        Error::OutputExists { .. } => 13,
        Error::OutputIsInput { .. } => 14,
        Error::Locked { .. } => 15,
        Error::CannotResume { .. } => 16,
        Error::SourceChanged { .. } => 17,
        Error::NonFinite { .. } => 18,
        Error::Verification { .. } => 19,
        Error::Plan { .. } => 20,
        Error::UnfinishedInPlace { .. } => 21,
        Error::Interrupted { .. } => 22,
        Error::Device { .. } => 23,
        Error::Project { .. } => 24,
        Error::Data { .. } => 25,
        Error::Backend { .. } => 26,
        Error::Usage { .. } => 27,
        Error::NotFetched { .. } => 28,
        Error::Hub { .. } => 29,
        Error::Importance { .. } => 30,
    }
}

#[test]
fn every_error_reads_well() {
    let errors = one_of_each();
    let mut page = String::new();
    for (i, error) in errors.iter().enumerate() {
        assert_eq!(position(error), i);
        let message = error.to_string();
        assert!(!message.ends_with('.') && !message.contains('\u{1b}'), "{message}");
        writeln!(page, "[{}] {message}", error.exit_code()).unwrap();
        if let Some(hint) = error.hint() {
            writeln!(page, "    hint: {hint}").unwrap();
        }
    }
    insta::assert_snapshot!(page);
}

#[test]
fn hostile_text_is_escaped_and_cut() {
    assert_eq!(printable("a\nb\u{1b}[0m"), "a\\nb\\u{1b}[0m");
    assert_eq!(printable("\u{202e}"), "\\u{202e}");
    let long = "x".repeat(65_536);
    assert!(printable(&long).len() < 400);
}
