//! Quantised checkpoints as operands: what the formats' own tools make of the codes, in merges, vectors and casts.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lora::{make_adapter, values};
use crate::support::checkpoint::{Raw, Tensor, config, read_raw, write_sharded};
use crate::support::fixture;
use crate::support::process::elo;

/// Every format, made by `tests/peers/make_quantised.py`.
const FORMATS: [&str; 7] =
    ["fp8-block", "fp8-scales", "int8", "int4", "int4-zero", "int8-packed", "mxfp4"];

fn quantised(name: &str) -> PathBuf {
    fixture("quantised").join(name)
}

fn contents(root: &Path) -> Vec<(String, String, Vec<u64>, Vec<u8>)> {
    let raw: Raw = read_raw(root);
    raw.into_iter().map(|(name, (dtype, shape, bytes, _))| (name, dtype, shape, bytes)).collect()
}

#[test]
fn codes_become_what_their_own_tools_make_of_them() {
    let dir = TempDir::new().unwrap();
    for name in FORMATS {
        let wanted = quantised(&format!("{name}-values"));
        for (i, more) in ["", "--io read --tile 64KiB -j3"].iter().enumerate() {
            let out = dir.path().join(format!("{name}{i}"));
            let run = elo(&format!("cast --no-sync {more}")).arg(quantised(name));
            run.args(&["--dtype", "bf16"]).with("--out", &out).ok();
            assert!(contents(&out) == contents(&wanted), "{name} {more}");
            let told = config(&out);
            assert_eq!(told, config(&wanted), "{name}");
            assert!(told.get("quantization_config").is_none());
        }
    }
}

/// Small tiles start and end anywhere: rows, blocks and words of codes are cut.
#[test]
fn values_do_not_depend_on_where_tiles_end() {
    let dir = TempDir::new().unwrap();
    // 600 x 300 codes in f32 are ten tiles of 64 KiB.
    let count = 600 * 300;
    let codes: Vec<u8> = (0..count).map(|n| u8::try_from(n * 7 % 251 % 127).unwrap()).collect();
    let scale = |n: usize| 0.5 + f32::from(u16::try_from(n).unwrap()) / 8.0;
    let scales: Vec<u8> = (0..15).flat_map(|n| scale(n).to_le_bytes()).collect();
    let name = "model.layers.0.mlp.up_proj.weight";
    let root = dir.path().join("codes");
    let tensors = [
        Tensor::new(name, "F8_E4M3", &[600, 300], codes.clone()),
        Tensor::new(&format!("{name}_scale_inv"), "F32", &[5, 3], scales),
    ];
    write_sharded(&root, &tensors, 1);
    let settings = json!({"model_type": "llama", "num_hidden_layers": 1, "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}});
    fs::write(root.join("config.json"), settings.to_string()).unwrap();
    let out = dir.path().join("out");
    elo("cast --no-sync --tile 64KiB")
        .arg(&root)
        .args(&["--dtype", "f32"])
        .with("--out", &out)
        .ok();
    let expected: Vec<u8> = (0..count)
        .flat_map(|n| {
            let code = float8::F8E4M3::from_bits(codes[n]).to_f32();
            (code * scale(n / 300 / 128 * 3 + n % 300 / 128)).to_le_bytes()
        })
        .collect();
    assert!(read_raw(&out)[name].2 == expected);
}

#[test]
fn merges_and_vectors_compute_on_values() {
    let dir = TempDir::new().unwrap();
    for name in ["fp8-block", "int4-zero", "mxfp4"] {
        let (codes, plain) = (quantised(name), quantised(&format!("{name}-values")));
        // In f32 the values of the codes are not rounded before the arithmetic, so the models differ by that rounding.
        let wide = dir.path().join(format!("{name}-wide"));
        elo("cast --no-sync --dtype f32").arg(&codes).with("--out", &wide).ok();
        let merge = |model: &Path, out: &str| {
            let of = |model: &Path| format!("{{model: {{path: '{}'}}}}", model.display());
            let yaml = format!(
                "merge_method: slerp\nbase_model: {}\nmodels: [{{model: {}}}, {{model: {}}}]\nparameters: {{t: 0.25}}\nout_dtype: bfloat16\n",
                of(model),
                of(model),
                of(&plain)
            );
            let (file, out) = (
                dir.path().join(format!("{name}-{out}.yml")),
                dir.path().join(format!("{name}-{out}")),
            );
            fs::write(&file, yaml).unwrap();
            elo("merge --no-sync").arg(&file).with("--out", &out).ok();
            out
        };
        let (a, b) = (merge(&codes, "coded"), merge(&wide, "plain"));
        assert!(contents(&a) == contents(&b), "{name}");
        assert!(config(&a).get("quantization_config").is_none());
        let vector = |inst: &Path, into: &Path, out: &str| {
            let out = dir.path().join(format!("{name}-{out}"));
            let run = elo("chat-vector --no-sync --dtype bf16").with("--inst", inst);
            run.with("--base", &plain).with("--into", into).with("--out", &out).ok();
            out
        };
        let (a, b) = (vector(&codes, &codes, "vector"), vector(&wide, &wide, "vector-wide"));
        assert!(contents(&a) == contents(&b), "{name}");
        assert!(config(&a).get("quantization_config").is_none());
    }
}

#[test]
fn copies_keep_codes_and_scales_together() {
    let dir = TempDir::new().unwrap();
    for name in FORMATS {
        let codes = quantised(name);
        let file = dir.path().join(format!("{name}.yml"));
        let yaml = format!(
            "merge_method: passthrough\nmodels: [{{model: {{model: {{path: '{}'}}}}}}]\n",
            codes.display()
        );
        fs::write(&file, yaml).unwrap();
        let out = dir.path().join(name);
        elo("merge --no-sync").arg(&file).with("--out", &out).ok();
        assert!(contents(&out) == contents(&codes), "{name}");
        assert!(config(&out).get("quantization_config").is_some());
        // Nothing of it is asked for: the codes stay.
        let cast = dir.path().join(format!("{name}-cast"));
        let run = elo("cast --no-sync --include *norm* --dtype f32").arg(&codes);
        run.with("--out", &cast).ok();
        assert!(config(&cast).get("quantization_config").is_some());
        let others = |root: &Path| -> Vec<_> {
            contents(root).into_iter().filter(|tensor| !tensor.0.contains("norm")).collect()
        };
        assert!(others(&codes) == others(&cast), "{name}");
    }
}

#[test]
fn adapters_are_applied_to_values() {
    let dir = TempDir::new().unwrap();
    let adapter = dir.path().join("adapter");
    let module = "model.layers.0.mlp.up_proj";
    let made = make_adapter(&adapter, &[(module, [150, 140])], 4, 9);
    let (wide, out) = (dir.path().join("wide"), dir.path().join("out"));
    elo("cast --no-sync --dtype f32").arg(quantised("fp8-block")).with("--out", &wide).ok();
    let run = elo("lora apply --no-sync --dtype f32").with("--into", quantised("fp8-block"));
    run.with("--adapter", &adapter).with("--out", &out).ok();
    let (found, own) = (read_raw(&out), read_raw(&wide));
    let name = format!("{module}.weight");
    let expected = made.on(module, &values("F32", &own[&name].2), 1.0);
    for (found, wanted) in values("F32", &found[&name].2).into_iter().zip(expected) {
        #[expect(clippy::cast_possible_truncation, reason = "the rounding that is meant")]
        let wanted = wanted as f32;
        assert_eq!(found.to_bits(), f64::from(wanted).to_bits());
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_its_reason() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("model");
    let name = "model.layers.0.mlp.up_proj.weight";
    let refused = |tensors: &[Tensor], method: &Value, words: &[&str]| {
        let _old = fs::remove_dir_all(&root);
        write_sharded(&root, tensors, 1);
        let settings =
            json!({"model_type": "llama", "num_hidden_layers": 1, "quantization_config": method});
        fs::write(root.join("config.json"), settings.to_string()).unwrap();
        let out = dir.path().join("out");
        let run = elo("cast --no-sync --dtype bf16").arg(&root).with("--out", &out).run();
        run.expect(3, words);
        assert!(!out.exists());
    };
    let codes = |dtype: &str, shape: &[u64], width: u64| {
        let count: u64 = shape.iter().product();
        Tensor::new(name, dtype, shape, vec![0; usize::try_from(count * width).unwrap()])
    };
    let scale = |end: &str, shape: &[u64]| {
        let count: u64 = shape.iter().product();
        Tensor::new(
            &format!("{name}{end}"),
            "F32",
            shape,
            vec![0; usize::try_from(count * 4).unwrap()],
        )
    };
    let fp8 = json!({"quant_method": "fp8", "weight_block_size": [4, 4]});
    refused(&[codes("F8_E4M3", &[8, 8], 1)], &fp8, &["weight_scale_inv", "missing"]);
    refused(
        &[codes("F8_E4M3", &[8, 8], 1), scale("_scale_inv", &[3, 2])],
        &fp8,
        &["scales of shape [3, 2] instead of [2, 2]"],
    );
    let plain = [codes("BF16", &[8, 8], 2)];
    refused(&plain, &json!({"quant_method": "awq"}), &["awq", "only fp8"]);
    refused(
        &plain,
        &json!({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}),
        &["nvfp4-pack-quantized"],
    );
    refused(
        &plain,
        &json!({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}),
        &["sparse-24-bitmask"],
    );
    // Half of a model cannot be quantised.
    let two =
        |n: u64| format!("model.layers.0.mlp.{}_proj.weight", if n == 0 { "up" } else { "down" });
    let mut tensors = Vec::new();
    for n in 0..2 {
        tensors.push(Tensor::new(&two(n), "F8_E4M3", &[4, 4], vec![0; 16]));
        tensors.push(Tensor::new(&format!("{}_scale_inv", two(n)), "F32", &[1, 1], vec![0; 4]));
    }
    let _old = fs::remove_dir_all(&root);
    write_sharded(&root, &tensors, 1);
    let settings =
        json!({"model_type": "llama", "num_hidden_layers": 1, "quantization_config": fp8});
    fs::write(root.join("config.json"), settings.to_string()).unwrap();
    let run = elo("cast --no-sync --dtype bf16 --include *up_proj*").arg(&root);
    run.with("--out", dir.path().join("half")).run().expect(3, &["only some of its codes"]);
}
