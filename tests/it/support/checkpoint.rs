//! Checkpoints for tests: written here byte by byte, read with the `safetensors` crate, so that neither way shares code
//! with what is tested.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::random::Random;

/// dtype, shape and SHA-256 of the bytes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) sha256: String,
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(bytes) {
        let _infallible = write!(hex, "{byte:02x}");
    }
    hex
}

/// Name to dtype, shape, bytes and file.
pub(crate) type Raw = BTreeMap<String, (String, Vec<u64>, Vec<u8>, String)>;

/// Every tensor of a checkpoint: name to bytes, dtype, shape and the file it is in.
pub(crate) fn read_raw(root: &Path) -> Raw {
    let mut found = BTreeMap::new();
    let mut files: Vec<_> = fs::read_dir(root)
        .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    for path in files {
        let bytes = fs::read(&path).unwrap();
        let parsed = SafeTensors::deserialize(&bytes)
            .unwrap_or_else(|e| panic!("the safetensors crate refuses {}: {e}", path.display()));
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        for (name, view) in parsed.tensors() {
            let shape = view.shape().iter().map(|d| *d as u64).collect();
            let dtype = view.dtype().to_string();
            let old =
                found.insert(name.clone(), (dtype, shape, view.data().to_vec(), file.clone()));
            assert!(old.is_none(), "`{name}` is in two shards of {}", root.display());
        }
    }
    found
}

/// Reads a checkpoint and checks that its index, if it has one, agrees with its shards.
pub(crate) fn read(root: &Path) -> BTreeMap<String, Content> {
    let raw = read_raw(root);
    check_index(root, &raw);
    raw.into_iter()
        .map(|(name, (dtype, shape, bytes, _))| {
            let sha256 = sha256(&bytes);
            (name, Content { dtype, shape, sha256 })
        })
        .collect()
}

fn check_index(root: &Path, raw: &Raw) {
    let files: std::collections::BTreeSet<&str> = raw.values().map(|t| t.3.as_str()).collect();
    let path = root.join("model.safetensors.index.json");
    if !path.exists() {
        assert!(files.len() <= 1, "{} shards without an index in {}", files.len(), root.display());
        return;
    }
    let index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let says: BTreeMap<&str, &str> = index["weight_map"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, file)| (name.as_str(), file.as_str().unwrap()))
        .collect();
    let has: BTreeMap<&str, &str> = raw.iter().map(|(n, t)| (n.as_str(), t.3.as_str())).collect();
    assert_eq!(says, has, "the index of {} disagrees with its shards", root.display());
    let total: usize = raw.values().map(|t| t.2.len()).sum();
    assert_eq!(
        index["metadata"]["total_size"].as_u64(),
        Some(total as u64),
        "total_size of {}",
        path.display()
    );
}

/// `config.json` of a checkpoint.
pub(crate) fn config(root: &Path) -> Value {
    serde_json::from_slice(&fs::read(root.join("config.json")).unwrap()).unwrap()
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn new(name: &str, dtype: &str, shape: &[u64], bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), dtype: dtype.to_owned(), shape: shape.to_vec(), bytes }
    }
}

/// A shard: length, header, data.
pub(crate) fn shard_bytes(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut data = Vec::new();
    for tensor in tensors {
        let start = data.len();
        data.extend_from_slice(&tensor.bytes);
        header.insert(
            tensor.name.clone(),
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]}),
        );
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&json);
    bytes.extend_from_slice(&data);
    bytes
}

/// A llama-like model made from a seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    pub(crate) layers: u64,
    pub(crate) hidden: u64,
    pub(crate) intermediate: u64,
    pub(crate) vocabulary: u64,
    pub(crate) shards: usize,
    /// Another seed, other weights of the same structure.
    pub(crate) seed: u64,
}

impl Model {
    /// Small enough for hundreds of runs: 4 layers, 2 shards, about 60 kB.
    pub(crate) fn tiny(seed: u64) -> Self {
        Self { layers: 4, hidden: 32, intermediate: 64, vocabulary: 96, shards: 2, seed }
    }

    /// About 40 MB in 12 shards: long enough to be killed in the middle.
    pub(crate) fn medium(seed: u64) -> Self {
        Self { layers: 12, hidden: 384, intermediate: 768, vocabulary: 4096, shards: 12, seed }
    }

    /// Names and shapes in file order.
    fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let (h, i, v) = (self.hidden, self.intermediate, self.vocabulary);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![v, h])];
        for layer in 0..self.layers {
            let shapes: [(&str, Vec<u64>); 9] = [
                ("input_layernorm", vec![h]),
                ("self_attn.q_proj", vec![h, h]),
                ("self_attn.k_proj", vec![h / 2, h]),
                ("self_attn.v_proj", vec![h / 2, h]),
                ("self_attn.o_proj", vec![h, h]),
                ("post_attention_layernorm", vec![h]),
                ("mlp.gate_proj", vec![i, h]),
                ("mlp.up_proj", vec![i, h]),
                ("mlp.down_proj", vec![h, i]),
            ];
            for (name, shape) in shapes {
                all.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        all.push(("model.norm.weight".to_owned(), vec![h]));
        all.push(("lm_head.weight".to_owned(), vec![v, h]));
        all
    }

    pub(crate) fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "model_type": "llama",
            "num_attention_heads": 4,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocabulary,
        })
    }

    /// Writes the checkpoint: shards of about the same size, index, config, a sidecar.
    pub(crate) fn write(&self, root: &Path) {
        fs::create_dir_all(root).unwrap();
        let mut random = Random::new(self.seed);
        let tensors: Vec<Tensor> = self
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let count: u64 = shape.iter().product();
                let bytes = random.bf16_weights(usize::try_from(count).unwrap());
                Tensor::new(&name, "BF16", &shape, bytes)
            })
            .collect();
        write_sharded(root, &tensors, self.shards);
        let config = serde_json::to_string_pretty(&self.config()).unwrap();
        fs::write(root.join("config.json"), config).unwrap();
        fs::write(root.join("tokenizer.json"), format!("{{\"seed\": {}}}", self.seed)).unwrap();
    }

    /// Writes it under `parent` and hands back the path.
    pub(crate) fn at(&self, parent: &Path, name: &str) -> std::path::PathBuf {
        let path = parent.join(name);
        self.write(&path);
        path
    }
}

/// Writes tensors as shards of about equal size with an index (one shard: without).
pub(crate) fn write_sharded(root: &Path, tensors: &[Tensor], shards: usize) {
    fs::create_dir_all(root).unwrap();
    if shards == 1 {
        fs::write(root.join("model.safetensors"), shard_bytes(tensors)).unwrap();
        return;
    }
    let total: usize = tensors.iter().map(|t| t.bytes.len()).sum();
    let mut groups: Vec<Vec<Tensor>> = vec![Vec::new(); shards];
    let mut before = 0;
    for tensor in tensors {
        groups[(before * shards / total.max(1)).min(shards - 1)].push(tensor.clone());
        before += tensor.bytes.len();
    }
    groups.retain(|g| !g.is_empty());
    let count = groups.len();
    let mut weight_map = serde_json::Map::new();
    for (i, group) in groups.iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        for tensor in group {
            weight_map.insert(tensor.name.clone(), json!(file));
        }
        fs::write(root.join(file), shard_bytes(group)).unwrap();
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    let text = serde_json::to_string_pretty(&index).unwrap();
    fs::write(root.join("model.safetensors.index.json"), text).unwrap();
}
