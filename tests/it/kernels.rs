//! The shipped PTX against its sources, as far as that can be told without NVRTC; `kernels/build.sh --check` compiles.

use std::fs;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

fn ptx() -> String {
    fs::read_to_string(folder().join("elo_surgery.ptx")).unwrap()
}

#[test]
fn the_ptx_is_made_from_these_sources() {
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let is_source = |path: &PathBuf| path.extension().is_some_and(|e| e == "cu" || e == "cuh");
    let mut sources: Vec<PathBuf> = entries.filter(is_source).collect();
    sources.sort();
    let mut hasher = blake3::Hasher::new();
    for source in &sources {
        hasher.update(&fs::read(source).unwrap());
    }
    let expected = format!("// blake3 of the sources: {}", hasher.finalize());
    let ptx = ptx();
    assert_eq!(ptx.lines().next(), Some(expected.as_str()), "run kernels/build.sh");
}

/// PTX 8.0 is what every driver from 525 on takes; a newer one would be refused by older drivers.
#[test]
fn every_supported_driver_and_gpu_takes_the_ptx() {
    let ptx = ptx();
    let directive = |name: &str| ptx.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    assert_eq!(directive(".version "), "8.0");
    assert_eq!(directive(".target "), "sm_70");
}

/// A fused product and sum is rounded once where the contract rounds twice; `.ftz` would lose subnormals.
#[test]
fn no_product_is_fused_and_no_subnormal_is_flushed() {
    for line in ptx().lines() {
        let instruction = line.split_whitespace().find(|word| !word.starts_with('@'));
        let instruction = instruction.unwrap_or_default();
        let is_float = [".f16", ".f32", ".f64"].iter().any(|t| instruction.ends_with(t));
        let fused = instruction.starts_with("fma.") || instruction.starts_with("mad.") && is_float;
        assert!(
            !fused && !instruction.contains(".ftz") && !instruction.contains(".approx"),
            "{line}"
        );
        let rounds =
            ["add", "sub", "mul", "div"].iter().any(|op| instruction.starts_with(op)) && is_float;
        assert!(!rounds || instruction.contains(".rn."), "{line}");
    }
}

#[test]
fn no_path_of_a_machine_is_in_the_ptx() {
    let ptx = ptx();
    for trace in [".file", ".loc", "/home", "/tmp", "/root"] {
        assert!(!ptx.contains(trace), "{trace}");
    }
}
