//! The tree's import rules (see `docs/architecture.md`): producers and executors meet only in the plan.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which modules each module may import. `error` is free to all and imports what it names.
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    BTreeMap::from([
        ("format", vec![]),
        ("checkpoint", vec!["format"]),
        ("plan", vec!["format"]),
        ("ops", vec!["plan", "checkpoint", "format"]),
        ("engine", vec!["plan", "format"]),
        ("audit", vec!["engine", "plan", "checkpoint", "format"]),
        ("lowrank", vec!["engine", "plan", "checkpoint", "format"]),
        ("trainer", vec!["checkpoint", "format"]),
        ("hub", vec!["checkpoint", "format"]),
        ("backend", vec!["trainer", "checkpoint", "format"]),
        ("pipeline", vec!["backend", "audit", "ops", "engine", "plan", "checkpoint", "format"]),
        (
            "cli",
            vec![
                "pipeline",
                "hub",
                "backend",
                "trainer",
                "audit",
                "lowrank",
                "ops",
                "engine",
                "plan",
                "checkpoint",
                "format",
            ],
        ),
        ("main", vec!["cli"]),
    ])
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Modules that a source text names through `crate::` or `elo_surgery::`.
fn imports(text: &str) -> Vec<String> {
    let code: String =
        text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for root in ["crate::", "elo_surgery::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            let names: Vec<&str> = if let Some(group) = rest.strip_prefix('{') {
                // Top level names of `crate::{a::b, c}`.
                let mut depth = 0_i32;
                let end = group.char_indices().find(|(_, c)| {
                    depth += match c {
                        '{' => 1,
                        '}' => -1,
                        _ => 0,
                    };
                    depth < 0
                });
                let inner = &group[..end.map_or(group.len(), |(i, _)| i)];
                inner.split(',').map(str::trim).collect()
            } else {
                vec![rest]
            };
            for name in names {
                let ident: String =
                    name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if ident.starts_with(char::is_lowercase) {
                    found.push(ident);
                }
            }
        }
    }
    found
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed = allowed();
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 10, "the walk found the tree");
    let mut broken = Vec::new();
    for file in &files {
        let relative = file.strip_prefix(&src).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if matches!(module, "lib" | "error") {
            continue;
        }
        let may = allowed.get(module).unwrap_or_else(|| panic!("`{module}` is not in the table"));
        for import in imports(&fs::read_to_string(file).unwrap()) {
            let free =
                import == "error" || import == module || !allowed.contains_key(import.as_str());
            if !free && !may.contains(&import.as_str()) {
                broken.push(format!("{} imports {import}", relative.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_check_sees_forbidden_imports() {
    let text =
        "use crate::{ops::x, error::{Error, Result}};\nlet y = crate::cli::z();\n// crate::plan\n";
    assert_eq!(imports(text), ["ops", "error", "cli"]);
}
