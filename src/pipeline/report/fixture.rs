//! A made-up record for tests: the figures of a run on a small model, one seed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::json;

use crate::pipeline::record::{
    Check, DataFacts, Measured, ModelFacts, Record, Score, StageRecord, State,
};

fn measured(slice: &str, perplexity: f64) -> Measured {
    let loss = perplexity.ln();
    // A character of the target language has three bytes.
    let bytes = if slice.ends_with("ko") { 2.4 } else { 1.0 };
    let bits_per_byte = loss / std::f64::consts::LN_2 / bytes;
    Measured { slice: slice.into(), loss, perplexity, bits_per_byte, tokens: 40_960 }
}

fn both(target: f64, english: f64) -> Vec<Measured> {
    vec![measured("en", english), measured("ko", target)]
}

fn check(what: &str, detail: &str) -> Check {
    Check { what: what.into(), ok: true, detail: detail.into() }
}

fn stage(name: &str, seconds: f64, measured: Vec<Measured>) -> StageRecord {
    StageRecord {
        name: name.into(),
        key: "5f0c3b7e9a1d".into(),
        state: State::Done,
        started: 1_790_000_000,
        seconds,
        attempts: 1,
        output: Some(format!("{name}/model").into()),
        digest: Some("9c1f2ab04de37755a0e2b1c4d8f6".into()),
        measured,
        ..StageRecord::default()
    }
}

fn trained(mut stage: StageRecord, steps: u64, losses: (f64, f64), rate: f64) -> StageRecord {
    let tokens = steps * 2048;
    let changes = "27 of 27 tensors, 18.4 % of their values moved by 1.63 %";
    stage.events = Some(format!("{}/events.jsonl", stage.name).into());
    stage.log = Some(format!("{}/log.txt", stage.name).into());
    stage.backend = Some("builtin 0.2.0".into());
    stage.versions = BTreeMap::from([("elo-surgery".into(), "0.2.0".into())]);
    stage.command = ["elo-surgery", "backend", "builtin", "run", "--spec", "spec.json"]
        .map(str::to_owned)
        .into();
    (stage.steps, stage.steps_total) = (Some(steps), Some(steps));
    (stage.first_loss, stage.final_loss) = (Some(losses.0), Some(losses.1));
    (stage.tokens, stage.tokens_per_second) = (Some(tokens), Some(rate));
    let is_detached = stage.name == "pretrain";
    stage.trained_parameters = Some(if is_detached { 98_560 } else { 419_328 });
    stage.checks = vec![
        check("names and shapes are those of the input", "39 tensors"),
        check("frozen tensors are unchanged", "12 tensors"),
        check("trained tensors changed", changes),
        check("every value is finite", "123,712 values"),
    ];
    stage
}

/// A run that went well, with its controls.
pub(super) fn record() -> Record {
    let scores = |kobest: f64, mmlu: f64| {
        let score = |task: &str, metric: &str, value, shots| Score {
            task: task.into(),
            metric: metric.into(),
            value,
            error: Some(0.014),
            shots: Some(shots),
        };
        vec![score("kobest_copa", "f1", kobest, 0), score("mmlu", "acc", mmlu, 5)]
    };
    let mut inject = stage("inject", 0.31, both(13.06, 10.2));
    inject.checks = vec![check("all but the chosen layers are the base's", "54 tensors")];
    let mut align = trained(stage("align", 31.0, both(10.98, 7.64)), 23, (2.45, 2.34), 1_540.0);
    align.scores = scores(0.612, 0.447);
    align.notes = vec!["the last batch was not full and was left out".into()];
    let mut vector = stage("chat-vector", 0.28, both(11.44, 8.26));
    vector.checks = vec![check("base + (instruct - base), rounded once", "75 tensors")];
    let mut sft = trained(stage("sft", 44.0, both(11.0, 7.44)), 60, (2.41, 1.93), 2_790.0);
    sft.measured.extend([measured("chat/ko", 11.17), measured("chat/en", 6.46)]);
    sft.scores = scores(0.655, 0.452);
    let mut base = stage("extract", 0.12, both(120.0, 18.3));
    base.scores = Vec::new();
    let languages = |ko: u64, en: u64| BTreeMap::from([("ko".into(), ko), ("en".into(), en)]);
    let facts = |name: &str, records, ko, en| DataFacts {
        name: name.into(),
        records,
        bytes: ko + en,
        digest: "b3a7c1d2e4f50617".into(),
        languages: languages(ko, en),
    };
    Record {
        format: 1,
        tool: "0.2.0".into(),
        project: json!({ "model": "models/tiny-llama", "seed": 42, "backend": "builtin" }),
        model: ModelFacts {
            path: "models/tiny-llama".into(),
            family: "llama".into(),
            layers: 8,
            parameters: 419_328,
            chosen: vec![1, 8],
        },
        data: vec![
            facts("pretrain", 2_210, 972_000, 108_000),
            facts("align", 240, 98_400, 12_000),
            facts("sft", 300, 64_000, 61_000),
            facts("held-out/ko", 96, 96_000, 0),
            facts("held-out/en", 90, 0, 40_000),
        ],
        baselines: BTreeMap::from([
            ("base".into(), both(12.78, 6.38)),
            ("instruct".into(), both(13.91, 6.77)),
        ]),
        baseline_scores: BTreeMap::from([("base".into(), scores(0.581, 0.461))]),
        stages: vec![
            base,
            trained(stage("pretrain", 212.0, both(10.28, 10.7)), 442, (2.94, 2.33), 4_270.0),
            inject,
            align,
            vector,
            sft,
            trained(
                stage("control/align-only/align", 30.4, both(12.48, 6.77)),
                23,
                (2.61, 2.49),
                1_560.0,
            ),
            trained(
                stage("control/full-fine-tuning/pretrain", 649.0, both(8.34, 6.89)),
                442,
                (2.71, 2.06),
                1_390.0,
            ),
        ],
    }
}

/// The events files of [`record`], with falling losses.
pub(super) fn write_events(record: &Record, out: &Path) {
    for stage in &record.stages {
        let (Some(events), Some(steps)) = (&stage.events, stage.steps) else {
            continue;
        };
        let (first, last) = (stage.first_loss.unwrap(), stage.final_loss.unwrap());
        let mut text = format!("{{\"event\":\"start\",\"steps_total\":{steps}}}\n");
        let mut wobble = 0.37_f64;
        for step in 1..=steps {
            #[expect(clippy::cast_precision_loss, reason = "a few hundred steps")]
            let place = step as f64 / steps as f64;
            wobble = (wobble * 3.9) * (1.0 - wobble);
            let loss = last + (first - last) * (-4.0 * place).exp() + 0.08 * (wobble - 0.5);
            let lr = 1e-3 * 0.5 * (1.0 + (std::f64::consts::PI * place).cos());
            let tokens = step * 2048;
            let _ = writeln!(
                text,
                "{{\"event\":\"step\",\"step\":{step},\"loss\":{loss:.4},\"lr\":{lr:.3e},\"tokens\":{tokens},\"tok_s\":1234.5}}"
            );
        }
        text.push_str("not json\n{\"event\":\"step\",\"step\":9");
        let path = out.join(events);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}
