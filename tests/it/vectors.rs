//! Chat vectors in the corners: vocabularies, ties, heads, missing and extra tensors, scales; direct and saved.

use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use crate::support::checkpoint::{Tensor, config, read_raw, write_sharded};
use crate::support::process::{Elo, elo};
use crate::support::random::Random;
use crate::support::tree::{assert_same, weights_and_config};

/// A llama of two layers to be described.
#[derive(Clone, Copy)]
struct Shape {
    seed: u64,
    vocabulary: u64,
    head: bool,
    bias: bool,
}

const PLAIN: Shape = Shape { seed: 1, vocabulary: 16, head: true, bias: false };
const WIDTH: u64 = 8;

fn write(root: &Path, shape: Shape, more: &[Tensor]) -> PathBuf {
    let mut random = Random::new(shape.seed);
    let mut tensor = |name: &str, dims: &[u64]| {
        let count = usize::try_from(dims.iter().product::<u64>()).unwrap();
        Tensor::new(name, "BF16", dims, random.bf16_weights(count))
    };
    let mut tensors = vec![tensor("model.embed_tokens.weight", &[shape.vocabulary, WIDTH])];
    for layer in 0..2 {
        let name = |end: &str| format!("model.layers.{layer}.{end}");
        tensors.push(tensor(&name("self_attn.q_proj.weight"), &[WIDTH, WIDTH]));
        tensors.push(tensor(&name("input_layernorm.weight"), &[WIDTH]));
        if shape.bias {
            tensors.push(tensor(&name("self_attn.q_proj.bias"), &[WIDTH]));
        }
    }
    tensors.push(tensor("model.norm.weight", &[WIDTH]));
    if shape.head {
        tensors.push(tensor("lm_head.weight", &[shape.vocabulary, WIDTH]));
    }
    tensors.extend_from_slice(more);
    write_sharded(root, &tensors, 2);
    let config = json!({
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": WIDTH,
        "vocab_size": shape.vocabulary, "tie_word_embeddings": !shape.head,
    });
    std::fs::write(root.join("config.json"), config.to_string()).unwrap();
    root.to_owned()
}

/// Instruct model, base and target in one folder.
struct Three {
    temp: TempDir,
}

impl Three {
    fn new(inst: Shape, base: Shape, into: Shape) -> Self {
        let three = Self { temp: TempDir::new().unwrap() };
        for (name, shape, seed) in [("inst", inst, 1), ("base", base, 2), ("into", into, 3)] {
            write(&three.path(name), Shape { seed, ..shape }, &[]);
        }
        three
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn direct(&self, flags: &str) -> Elo {
        elo(&format!("chat-vector -q --no-sync {flags}"))
            .with("--inst", self.path("inst"))
            .with("--base", self.path("base"))
            .with("--into", self.path("into"))
            .with("--out", self.path("direct"))
    }

    /// The saved form must end like the direct one: the same files, or a refusal.
    fn saved_agrees(&self, flags: &str) -> bool {
        let direct = self.direct(&format!("{flags} --overwrite")).run();
        elo("chat-vector -q --no-sync --overwrite")
            .with("--inst", self.path("inst"))
            .with("--base", self.path("base"))
            .with("--save-vector", self.path("vector"))
            .ok();
        let saved = elo(&format!("chat-vector -q --no-sync --overwrite {flags}"))
            .with("--vector", self.path("vector"))
            .with("--into", self.path("into"))
            .with("--out", self.path("saved"))
            .run();
        assert_eq!(direct.code(), saved.code(), "{flags}: {direct} {saved}");
        if direct.code() == Some(0) {
            let (direct, saved) = (self.path("direct"), self.path("saved"));
            assert_same(&weights_and_config(&saved), &weights_and_config(&direct), flags);
        }
        direct.code() == Some(0)
    }
}

#[test]
fn a_saved_vector_is_the_direct_one_for_every_vocabulary() {
    let mut made = 0;
    for (inst, base, into) in [
        (16, 16, 16),
        (20, 16, 16),
        (20, 20, 16),
        (18, 20, 16),
        (20, 18, 16),
        (16, 16, 20),
        (16, 20, 18),
    ] {
        for head in [true, false] {
            let rows = |vocabulary| Shape { vocabulary, head, ..PLAIN };
            let three = Three::new(rows(inst), rows(base), rows(into));
            for policy in ["error", "overlap", "extend", "skip"] {
                made += u32::from(three.saved_agrees(&format!("--vocab {policy} --scale 0.5")));
            }
        }
    }
    assert!(made >= 40, "{made} outputs were compared");
}

#[test]
fn a_saved_vector_is_the_direct_one_for_every_tie() {
    let mut made = 0;
    for ties in 0..8 {
        let shape = |bit: u32| Shape { head: ties >> bit & 1 == 1, ..PLAIN };
        let three = Three::new(shape(0), shape(1), shape(2));
        for flags in ["", "--untie", "--exclude *.q_proj.weight", "--skip-embeddings"] {
            made += u32::from(three.saved_agrees(flags));
        }
    }
    assert!(made >= 24, "{made} outputs were compared");
}

#[test]
fn a_tied_target_keeps_its_head_or_gets_one() {
    let three = Three::new(PLAIN, PLAIN, Shape { head: false, ..PLAIN });
    let refused = three.direct("").fails(3);
    refused.expect(3, &["lm_head.weight", "--untie", "--exclude"]);
    three.direct("--exclude lm_head.weight").ok();
    assert!(!read_raw(&three.path("direct")).contains_key("lm_head.weight"));
    three.direct("--untie --overwrite").ok();
    assert!(read_raw(&three.path("direct")).contains_key("lm_head.weight"));
    assert_eq!(config(&three.path("direct"))["tie_word_embeddings"], json!(false));
}

#[test]
fn embedding_and_head_grow_together() {
    let three = Three::new(Shape { vocabulary: 20, ..PLAIN }, PLAIN, PLAIN);
    for filter in ["--exclude lm_head.weight", "--exclude *embed_tokens*", "--include *embed*"] {
        let refused = three.direct(&format!("--vocab extend {filter}")).fails(3);
        refused.expect(3, &["20 rows", "16"]);
        assert!(!three.path("direct").exists());
    }
    three.direct("--vocab extend").ok();
    assert_eq!(config(&three.path("direct"))["vocab_size"], json!(20));
}

#[test]
fn layer_tensors_that_the_target_lacks_are_not_lost_in_silence() {
    let biased = Shape { bias: true, ..PLAIN };
    for (inst, base) in [(biased, biased), (biased, PLAIN), (PLAIN, biased)] {
        let three = Three::new(inst, base, PLAIN);
        three.direct("").fails(3).expect(3, &["model.layers.0.self_attn.q_proj.bias", "no place"]);
        three.direct("--exclude *.bias").ok();
    }
}

#[test]
fn codes_are_not_added_without_their_scales() {
    for scale in ["weight_scale_inv", "weight_scale", "scale_weight", "input_scale"] {
        for quantised in ["inst", "base", "into"] {
            let three = Three::new(PLAIN, PLAIN, PLAIN);
            let name = format!("model.layers.0.self_attn.q_proj.{scale}");
            let more = [Tensor::new(&name, "F32", &[1], 1.0_f32.to_le_bytes().to_vec())];
            std::fs::remove_dir_all(three.path(quantised)).unwrap();
            write(&three.path(quantised), PLAIN, &more);
            three.direct("").fails(3).expect(3, &["quantised", &name]);
        }
    }
}

#[test]
fn towers_that_the_vector_lacks_stay_the_targets() {
    let three = Three::new(PLAIN, PLAIN, PLAIN);
    let tower =
        Tensor::new("vision_tower.patch.weight", "BF16", &[4], vec![0x80, 0x3f, 0, 0, 0, 0, 0, 0]);
    std::fs::remove_dir_all(three.path("into")).unwrap();
    write(&three.path("into"), PLAIN, std::slice::from_ref(&tower));
    three.direct("").ok();
    assert_eq!(read_raw(&three.path("direct"))["vision_tower.patch.weight"].2, tower.bytes);
}
