//! The stages that are surgery: plans made by `ops`, carried out by the engine.

use std::fs;
use std::path::Path;

use super::witness::Eyes;
use crate::checkpoint::{Checkpoint, SidecarFile};
use crate::engine::{Execution, execute};
use crate::error::{Error, IoContext as _, Result};
use crate::ops;
use crate::pipeline::project::ChatVectorStage;
use crate::plan::{Plan, Sidecar, SidecarContent};

/// Files that say how a model reads and speaks: those of the instruct model go with what it taught.
pub(super) const SPEECH: [&str; 10] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// `base + scale * (instruct - base)` for `into`, as the project wants it, with the instruct model's tokenizer.
pub(super) fn chat_vector(
    instruct: &Checkpoint,
    base: &Checkpoint,
    into: &Checkpoint,
    stage: &ChatVectorStage,
) -> Result<Plan> {
    let request = ops::ChatVector {
        scale: stage.scale,
        skip_embeddings: stage.skip_embeddings,
        vocabulary: stage.vocab.parse().map_err(|problem| Error::Usage {
            problem: format!("`chat_vector.vocab`: {problem}"),
            hint: "choose `error`, `overlap`, `extend` or `skip`".into(),
        })?,
        ..ops::ChatVector::default()
    };
    let mut plan = ops::chat_vector(instruct, base, into, &request)?;
    speak_like(&mut plan, instruct);
    Ok(plan)
}

/// Gives the output the tokenizer and chat template of another model.
pub(super) fn speak_like(plan: &mut Plan, other: &Checkpoint) {
    let speech = |file: &str| SPEECH.contains(&file);
    let theirs: Vec<&SidecarFile> = other.sidecars().iter().filter(|s| speech(&s.file)).collect();
    if !theirs.iter().any(|sidecar| sidecar.file.starts_with("tokenizer")) {
        return;
    }
    plan.sidecars.retain(|sidecar| !speech(&sidecar.file));
    for SidecarFile { file, path, size } in theirs {
        let content = SidecarContent::Copy { path: path.clone(), size: *size };
        plan.sidecars.push(Sidecar { file: file.clone(), content });
    }
}

/// Carries a plan out into `out`, whatever is there.
pub(super) fn carry_out(plan: &Plan, out: &Path, sync: bool, eyes: &Eyes<'_>) -> Result<()> {
    if let Some(parent) = out.parent() {
        fs::create_dir_all(parent).at("create", parent)?;
    }
    let execution = Execution { overwrite: true, restart: true, sync, ..Execution::to(out) };
    execute(plan, &execution, eyes).map(drop)
}
