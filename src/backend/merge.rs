//! Merging adapters after training: a script that runs the training command it is given, then the merge.

use std::ffi::OsString;
use std::path::Path;

/// Name of the script beside the spec.
pub(super) const SCRIPT: &str = "train-and-merge.sh";

/// Arguments that start the script; the training command follows.
pub(super) fn wrapper(stage: &Path) -> [OsString; 2] {
    ["sh".into(), stage.join(SCRIPT).into_os_string()]
}

/// The script. SIGTERM goes on to the training command; adapters are merged only after it has exited with 0.
pub(super) fn script(merge: &[&str]) -> String {
    let merge: Vec<String> = merge.iter().map(|word| quoted(word)).collect();
    format!(
        r#"#!/bin/sh
# Usage: sh {SCRIPT} TRAINING COMMAND. Trains, then merges the adapters into the weights.
"$@" &
child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM INT
wait "$child"
status=$?
# A signal ends `wait`, not the training.
while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
done
[ "$status" -eq 0 ] || exit "$status"
exec {}
"#,
        merge.join(" ")
    )
}

fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./=".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
