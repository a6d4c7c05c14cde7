//! Small checkpoints for the tests of this module, written tensor by tensor.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::format::{Dtype, Header, Shape, TensorEntry};

/// A tensor to be written: name, dtype, shape, bytes.
type Written = (String, Dtype, Shape, Vec<u8>);

/// A checkpoint under construction: shards of tensors, and a config.
pub(super) struct Fixture {
    pub(super) dir: tempfile::TempDir,
    shards: Vec<Vec<Written>>,
    config: Value,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), shards: vec![Vec::new()], config: json!({}) }
    }

    /// A llama of `layers` layers, hidden size 4, vocabulary 8, f32, values from `value(tensor, element)`.
    pub(super) fn llama(layers: u64, value: impl Fn(usize, usize) -> f32) -> Self {
        let mut it = Self::new();
        let mut names = vec![("model.embed_tokens.weight".to_owned(), vec![8, 4])];
        for layer in 0..layers {
            let within = |part: &str| format!("model.layers.{layer}.{part}.weight");
            names.push((within("input_layernorm"), vec![4]));
            names.push((within("mlp.down_proj"), vec![4, 6]));
            names.push((within("self_attn.q_proj"), vec![4, 4]));
        }
        names.push(("model.norm.weight".into(), vec![4]));
        names.push(("lm_head.weight".into(), vec![8, 4]));
        for (t, (name, shape)) in names.iter().enumerate() {
            let elements: u64 = shape.iter().product();
            let values: Vec<f32> =
                (0..usize::try_from(elements).unwrap()).map(|e| value(t, e)).collect();
            it = it.f32(name, shape, &values);
        }
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "num_hidden_layers": layers, "vocab_size": 8, "tie_word_embeddings": false,
        });
        it.config(config)
    }

    pub(super) fn tensor(mut self, name: &str, dtype: Dtype, shape: &[u64], bytes: &[u8]) -> Self {
        let tensor = (name.to_owned(), dtype, Shape(shape.to_vec()), bytes.to_vec());
        self.shards.last_mut().unwrap().push(tensor);
        self
    }

    pub(super) fn f32(self, name: &str, shape: &[u64], values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, Dtype::F32, shape, &bytes)
    }

    /// What follows goes into another shard.
    pub(super) fn next_shard(mut self) -> Self {
        self.shards.push(Vec::new());
        self
    }

    pub(super) fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// Changes one tensor's bytes.
    pub(super) fn edit(mut self, name: &str, change: impl Fn(&mut Vec<u8>)) -> Self {
        for tensor in self.shards.iter_mut().flatten().filter(|t| t.0 == name) {
            change(&mut tensor.3);
        }
        self
    }

    pub(super) fn shard_name(&self, shard: usize) -> String {
        match self.shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
        }
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Writes every file; `padding` bytes more in the headers, to move the data.
    pub(super) fn write(&self, padding: u64) -> &Path {
        let mut weight_map = BTreeMap::new();
        for (s, tensors) in self.shards.iter().enumerate() {
            let mut header = Header::default();
            let mut data = Vec::new();
            for (name, dtype, shape, bytes) in tensors {
                let start = data.len() as u64;
                data.extend_from_slice(bytes);
                let range = start..data.len() as u64;
                let (name, dtype, shape) = (name.clone(), dtype.clone(), shape.clone());
                weight_map.insert(name.clone(), self.shard_name(s));
                header.tensors.push(TensorEntry { name, dtype, shape, range });
            }
            let mut bytes = header.to_bytes(1);
            let json = bytes.len() as u64 - 8 + padding;
            bytes[..8].copy_from_slice(&json.to_le_bytes());
            bytes.extend(std::iter::repeat_n(b' ', usize::try_from(padding).unwrap()));
            bytes.extend_from_slice(&data);
            fs::write(self.path(&self.shard_name(s)), bytes).unwrap();
        }
        if self.shards.len() > 1 {
            let index = json!({"metadata": {}, "weight_map": weight_map});
            fs::write(self.path("model.safetensors.index.json"), index.to_string()).unwrap();
        }
        fs::write(self.path("config.json"), self.config.to_string()).unwrap();
        self.dir.path()
    }

    pub(super) fn open(&self) -> Checkpoint {
        Checkpoint::open(self.write(0)).unwrap()
    }

    /// Opens it and keeps the directory for as long as the checkpoint.
    pub(super) fn open_kept(self) -> (Self, Checkpoint) {
        let opened = self.open();
        (self, opened)
    }
}
