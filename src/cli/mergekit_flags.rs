//! Flags of `mergekit-yaml` on our command line: what stands for each here.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// A flag of mergekit 0.1.5 and what to do instead.
const FLAGS: &[(&[&str], &str)] = &[
    (
        &["--cuda"],
        "`--device cuda` computes on GPUs; `auto`, the default, takes them where they are faster",
    ),
    (&["--gpu-rich", "--multi-gpu"], "`--device cuda` takes all GPUs"),
    (
        &["--read-to-gpu"],
        "leave it out: tensors are streamed through GPUs tile by tile (`--device cuda`)",
    ),
    (
        &[
            "--low-cpu-memory",
            "--lazy-unpickle",
            "--clone-tensors",
            "--async-write",
            "--write-threads",
        ],
        "leave it out: models are streamed in bounded memory, which `--memory` makes smaller",
    ),
    (&["--out-shard-size"], "`--shard-size 5GB` lays the shards out anew"),
    (&["--num-threads"], "`--threads N`, or `-j N`"),
    (
        &["--copy-tokenizer"],
        "leave it out: tokenizer and all other files of the base model are copied",
    ),
    (
        &["--no-copy-tokenizer"],
        "leave it out: delete the files afterwards, if they must not be there",
    ),
    (&["--allow-crimes"], "leave it out: families are not mixed, and what differs is told"),
    (&["--trust-remote-code"], "leave it out: no code of a model is ever run"),
    (
        &["--unsafe-truncate-embeddings"],
        "`--truncate-embeddings` keeps the rows that all models have",
    ),
    (&["--no-write-model-card"], "`--no-model-card` leaves it out"),
    (
        &["--write-model-card"],
        "leave it out: a model card is written unless `--no-model-card` is given",
    ),
    (&["--safe-serialization"], "leave it out: results are safetensors, always"),
    (&["--no-safe-serialization"], "leave it out: results are safetensors, always"),
    (
        &["--lora-merge-cache", "--lora-merge-dtype"],
        "leave it out: adapters (`MODEL+ADAPTER`) are applied while the model is read",
    ),
    (&["--transformers-cache"], "leave it out: models are opened where they lie"),
];

/// The same refusal, with our flag for one of mergekit's.
pub(super) fn explain(mut refusal: clap::Error, arguments: &[OsString]) -> clap::Error {
    let merges = arguments.iter().skip(1).take(2).any(|word| word == "merge" || word == "moe");
    if refusal.kind() != ErrorKind::UnknownArgument || !merges {
        return refusal;
    }
    let Some(ContextValue::String(found)) = refusal.get(ContextKind::InvalidArg) else {
        return refusal;
    };
    let word = found.split(['=', ' ']).next().unwrap_or_default();
    let Some(advice) = advice(word) else { return refusal };
    refusal.remove(ContextKind::SuggestedArg);
    let advice = StyledStr::from(format!("mergekit's; {advice}"));
    refusal.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice]));
    refusal
}

/// What stands for a flag, or for the directory that mergekit takes as its second argument.
fn advice(word: &str) -> Option<String> {
    if !word.starts_with('-') {
        return Some(format!("the result goes to `--out {word}`"));
    }
    let on = |flag: &str| flag == word || word.strip_prefix("--no-") == flag.strip_prefix("--");
    let exact = FLAGS.iter().find(|(flags, _)| flags.contains(&word));
    let either = || FLAGS.iter().find(|(flags, _)| flags.iter().any(|flag| on(flag)));
    exact.or_else(either).map(|(_, advice)| (*advice).to_owned())
}

#[cfg(test)]
mod tests {
    use super::advice;

    #[test]
    fn flags_of_mergekit_have_an_answer() {
        for (word, said) in [
            ("--cuda", "--device cuda"),
            ("--no-cuda", "--device cuda"),
            ("--out-shard-size", "--shard-size"),
            ("--allow-crimes", "not mixed"),
            ("--no-allow-crimes", "not mixed"),
            ("--no-write-model-card", "leaves it out"),
            ("merged", "--out merged"),
        ] {
            assert!(advice(word).is_some_and(|text| text.contains(said)), "{word}");
        }
        assert_eq!(advice("--colour"), None);
    }
}
