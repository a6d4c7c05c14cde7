//! How a hostile checkpoint is described, built and judged.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::process::{Elo, Outcome, elo};
use crate::support::tree::{differences, tree};

/// Text that stands outside the checkpoint and must never be seen in an output.
pub(super) const SECRET: &str = "ELO-SENTINEL-OUTSIDE";
pub(super) const S1: &str = "model-00001-of-00002.safetensors";
pub(super) const S2: &str = "model-00002-of-00002.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
pub(super) const HEAD: &str = "lm_head.weight";
pub(super) const Q0: &str = "model.layers.0.self_attn.q_proj.weight";

/// Deterministic small finite values in BF16, F16 and F32.
pub(super) fn data(len: u64, seed: u32) -> Vec<u8> {
    let mut x = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < len {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend([(x >> 8).to_le_bytes()[0], 0x3c | (x >> 24).to_le_bytes()[0] & 1]);
    }
    bytes.truncate(usize::try_from(len).unwrap());
    bytes
}

fn bits(dtype: &str) -> u64 {
    match dtype {
        "F64" | "I64" | "U64" | "C64" => 64,
        "F32" | "I32" | "U32" => 32,
        "BF16" | "F16" | "I16" | "U16" => 16,
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        _ => 8,
    }
}

/// A well-formed file that cases then break.
#[derive(Clone, Debug)]
pub(super) struct St {
    pub(super) header: Map<String, Value>,
    pub(super) body: Vec<u8>,
}

pub(super) type Spec = (String, &'static str, Vec<u64>);

impl St {
    pub(super) fn new(tensors: &[Spec]) -> Self {
        let mut st = Self { header: Map::new(), body: Vec::new() };
        st.header.insert("__metadata__".into(), json!({"format": "pt"}));
        for (i, (name, dtype, shape)) in tensors.iter().enumerate() {
            let len = (shape.iter().product::<u64>() * bits(dtype)).div_ceil(8);
            let start = st.body.len();
            st.body.extend(data(len, u32::try_from(i).unwrap() + 1));
            st.header.insert(
                name.clone(),
                json!({"dtype": dtype, "shape": shape, "data_offsets": [start, st.body.len()]}),
            );
        }
        st
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        file(Value::Object(self.header.clone()).to_string().as_bytes(), &self.body)
    }

    /// The same file with a lie in the length field.
    pub(super) fn with_length(&self, length: u64) -> Vec<u8> {
        let mut bytes = self.bytes();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    pub(super) fn put(mut self, name: &str, at: usize, raw: &[u8]) -> Self {
        let start = self.header[name]["data_offsets"][0].as_u64().unwrap();
        let start = usize::try_from(start).unwrap() + at;
        self.body[start..start + raw.len()].copy_from_slice(raw);
        self
    }

    /// The same shard without one tensor.
    pub(super) fn without(&self, name: &str) -> Self {
        let rest: Vec<Spec> = self.specs().into_iter().filter(|(n, ..)| n != name).collect();
        Self::new(&rest)
    }

    pub(super) fn specs(&self) -> Vec<Spec> {
        self.header
            .iter()
            .filter(|(name, _)| *name != "__metadata__")
            .map(|(name, e)| {
                let shape = e["shape"].as_array().unwrap();
                let shape = shape.iter().map(|d| d.as_u64().unwrap()).collect();
                (name.clone(), "BF16", shape)
            })
            .collect()
    }
}

/// Length, header padded to 8, data.
pub(super) fn file(header: &[u8], body: &[u8]) -> Vec<u8> {
    let mut header = header.to_vec();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(body);
    bytes
}

pub(super) fn spec(name: &str, dtype: &'static str, shape: &[u64]) -> Spec {
    (name.to_owned(), dtype, shape.to_vec())
}

/// The tensors of a llama with these layers.
pub(super) fn llama(layers: u64, dtype: &'static str, vocabulary: u64) -> Vec<Spec> {
    let (d, ff) = (8, 16);
    let mut all = vec![spec("model.embed_tokens.weight", dtype, &[vocabulary, d])];
    for i in 0..layers {
        let mut add = |name: &str, shape: &[u64]| {
            all.push(spec(&format!("model.layers.{i}.{name}.weight"), dtype, shape));
        };
        add("input_layernorm", &[d]);
        for q in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{q}_proj"), &[d, d]);
        }
        add("post_attention_layernorm", &[d]);
        add("mlp.gate_proj", &[ff, d]);
        add("mlp.up_proj", &[ff, d]);
        add("mlp.down_proj", &[d, ff]);
    }
    all.push(spec("model.norm.weight", dtype, &[d]));
    all.push(spec(HEAD, dtype, &[vocabulary, d]));
    all
}

pub(super) fn config(layers: u64, vocabulary: u64) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": vocabulary,
        "torch_dtype": "bfloat16", "tie_word_embeddings": false, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    })
}

/// A good checkpoint of two shards, to be broken.
#[derive(Clone, Debug)]
pub(super) struct Sharded {
    pub(super) first: St,
    pub(super) second: St,
    pub(super) index: Value,
    pub(super) config: Value,
}

impl Sharded {
    pub(super) fn new(layers: u64, vocabulary: u64) -> Self {
        Self::of(&llama(layers, "BF16", vocabulary), config(layers, vocabulary))
    }

    pub(super) fn of(tensors: &[Spec], config: Value) -> Self {
        let (a, b) = tensors.split_at(tensors.len() / 2);
        let (first, second) = (St::new(a), St::new(b));
        let mut map = Map::new();
        map.extend(a.iter().map(|(n, ..)| (n.clone(), json!(S1))));
        map.extend(b.iter().map(|(n, ..)| (n.clone(), json!(S2))));
        let total = first.body.len() + second.body.len();
        Self {
            first,
            second,
            index: json!({"metadata": {"total_size": total}, "weight_map": map}),
            config,
        }
    }

    pub(super) fn map(mut self, tensor: &str, shard: &str) -> Self {
        self.index["weight_map"][tensor] = json!(shard);
        self
    }

    pub(super) fn files(&self) -> Files {
        vec![
            (S1.into(), self.first.bytes()),
            (S2.into(), self.second.bytes()),
            (INDEX.into(), self.index.to_string().into_bytes()),
            ("config.json".into(), self.config.to_string().into_bytes()),
        ]
    }
}

pub(super) type Files = Vec<(String, Vec<u8>)>;

/// Puts another content under a name, or takes the file away.
pub(super) fn replace(mut files: Files, name: &str, content: Option<Vec<u8>>) -> Files {
    files.retain(|(n, _)| n != name);
    files.extend(content.map(|c| (name.to_owned(), c)));
    files
}

/// What is done with a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Inspect,
    InspectJson,
    Verify,
    Extract,
    ChatVector,
}

pub(super) const ALL: [Op; 5] =
    [Op::Inspect, Op::InspectJson, Op::Verify, Op::Extract, Op::ChatVector];

/// How it must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// Refused, in the words of the case.
    Error,
    /// Accepted, with the words of the case.
    Warning,
    /// Accepted.
    Ok,
    /// Either; but no crash, hang, leak or leftover.
    Any,
}

type Special = Box<dyn Fn(&Path)>;

/// A hostile or odd checkpoint and what must become of it.
pub(super) struct Case {
    pub(super) name: String,
    files: Files,
    special: Vec<Special>,
    path: String,
    second: Option<String>,
    expected: Expected,
    ops: Vec<Op>,
    exceptions: Vec<(Op, Expected)>,
    mention: Vec<Vec<String>>,
    sentinel: Option<&'static str>,
    forbid: Vec<&'static str>,
    flags: Vec<&'static str>,
    any_status: bool,
}

impl Case {
    /// A directory.
    pub(super) fn new(name: &str, files: Files, expected: Expected) -> Self {
        Self {
            name: name.to_owned(),
            files,
            special: Vec::new(),
            path: ".".to_owned(),
            second: None,
            expected,
            ops: ALL.to_vec(),
            exceptions: Vec::new(),
            mention: Vec::new(),
            sentinel: None,
            forbid: Vec::new(),
            flags: Vec::new(),
            any_status: false,
        }
    }

    /// A single file, refused by its name.
    pub(super) fn file(name: &str, raw: Vec<u8>) -> Self {
        let file = format!("{name}.safetensors");
        let mut case = Self::new(name, vec![(file.clone(), raw)], Expected::Error);
        case.path.clone_from(&file);
        case.mention(&[&file])
    }

    /// At least one of these words must be said.
    pub(super) fn mention(mut self, words: &[&str]) -> Self {
        self.mention.push(words.iter().map(|w| (*w).to_owned()).collect());
        self
    }

    pub(super) fn expect(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }

    pub(super) fn only(mut self, ops: &[Op]) -> Self {
        self.ops = ops.to_vec();
        self
    }

    pub(super) fn except(mut self, op: Op, expected: Expected) -> Self {
        self.exceptions.push((op, expected));
        self
    }

    pub(super) fn sentinel(mut self, text: &'static str) -> Self {
        self.sentinel = Some(text);
        self
    }

    pub(super) fn forbid(mut self, file: &'static str) -> Self {
        self.forbid.push(file);
        self
    }

    pub(super) fn flag(mut self, flag: &'static str) -> Self {
        self.flags.push(flag);
        self
    }

    /// The status may also be 1: the system, or an unfinished change, refuses.
    pub(super) fn any_status(mut self) -> Self {
        self.any_status = true;
        self
    }

    pub(super) fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    pub(super) fn second(mut self, path: &str) -> Self {
        self.second = Some(path.to_owned());
        self
    }

    /// Makes links, FIFOs and folders after the files.
    pub(super) fn special(mut self, make: impl Fn(&Path) + 'static) -> Self {
        self.special.push(Box::new(make));
        self
    }

    fn write(&self, root: &Path) {
        let outside = root.join("_outside");
        fs::create_dir_all(&outside).unwrap();
        let secret = St::new(&[spec(HEAD, "BF16", &[12, 8])]);
        let secret = secret.put(HEAD, 0, &SECRET.repeat(9).as_bytes()[..180]);
        fs::write(outside.join("secret.safetensors"), secret.bytes()).unwrap();
        fs::write(outside.join("secret.txt"), SECRET).unwrap();
        let home = root.join("case");
        fs::create_dir_all(&home).unwrap();
        for (name, content) in &self.files {
            let path = home.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        for make in &self.special {
            make(&home);
        }
    }

    fn command(&self, op: Op, root: &Path) -> Elo {
        let path = root.join("case").join(&self.path);
        let path = path.components().collect::<std::path::PathBuf>();
        let second = self.second.as_ref().map_or(path.clone(), |s| root.join("case").join(s));
        let run = match op {
            Op::Inspect => elo("inspect").arg(&path),
            Op::InspectJson => elo("inspect --json").arg(&path),
            Op::Verify => elo("verify").arg(&path),
            Op::Extract => elo("extract --layers 1 --no-sync --out o").arg(&path),
            Op::ChatVector => elo("chat-vector --no-sync --out o")
                .with("--inst", second)
                .with("--base", &path)
                .with("--into", &path),
        };
        run.args(&self.flags)
            .after("ulimit -v 1500000")
            .within(&root.join("work"))
            .patience(Duration::from_secs(15))
    }

    /// Runs every operation; one line for each that does not end as it must.
    pub(super) fn judge(&self) -> Vec<String> {
        let temp = TempDir::new().unwrap();
        let root = temp.path();
        self.write(root);
        let before = tree(root);
        let mut bad = Vec::new();
        for &op in &self.ops {
            let work = root.join("work");
            fs::create_dir_all(&work).unwrap();
            let outcome = self.command(op, root).run();
            let verdict = self.verdict(op, &outcome, &work, &root.join("case"));
            fs::remove_dir_all(&work).unwrap();
            if let Some(verdict) = verdict {
                bad.push(format!("{} {op:?}: {verdict}{outcome}", self.name));
            }
        }
        for changed in differences(&before, &tree(root)) {
            bad.push(format!("{}: SOURCE CHANGED {changed}", self.name));
        }
        bad
    }

    fn expected(&self, op: Op) -> Expected {
        let exception = self.exceptions.iter().find(|(o, _)| *o == op);
        exception.map_or(self.expected, |(_, expected)| *expected)
    }

    pub(super) fn verdict(
        &self,
        op: Op,
        outcome: &Outcome,
        work: &Path,
        home: &Path,
    ) -> Option<String> {
        let expected = self.expected(op);
        let text = outcome.text();
        let low = text.to_lowercase();
        if outcome.status.is_none() {
            return Some("HANG".into());
        }
        if let Some(signal) = outcome.signal() {
            return Some(format!("SIGNAL {signal}"));
        }
        if outcome.panicked() {
            return Some("PANIC".into());
        }
        if let Some(bad) = text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
            return Some(format!("CONTROL CHARACTER {bad:?} in the output"));
        }
        let work_files = tree(work);
        if let Some(secret) = self.sentinel {
            let hit = work_files.keys().any(|f| {
                let bytes = fs::read(work.join(f)).unwrap_or_default();
                bytes.windows(secret.len()).any(|w| w == secret.as_bytes())
            });
            if hit || text.contains(secret) {
                return Some("LEAK".into());
            }
        }
        if let Some(file) =
            self.forbid.iter().find(|f| work.join(f).exists() || home.join(f).exists())
        {
            return Some(format!("WROTE {file}"));
        }
        let code = outcome.code().unwrap_or(-1);
        let expected_status = [2, 3, 7].contains(&code) || (self.any_status && code == 1);
        match expected {
            Expected::Error if code == 0 => return Some("ACCEPTED".into()),
            Expected::Error if !expected_status => {
                return Some(format!("EXIT STATUS {code} for bad input"));
            }
            Expected::Ok | Expected::Warning if code != 0 => return Some("REJECTED GOOD".into()),
            _ => {}
        }
        let left: Vec<_> = fs::read_dir(work).unwrap().map(|e| e.unwrap().file_name()).collect();
        let allowed = if code == 0 { vec!["o"] } else { vec![] };
        if left.iter().any(|name| !allowed.iter().any(|a| name == *a)) {
            return Some(format!("LEFTOVER {left:?}"));
        }
        if matches!(expected, Expected::Error | Expected::Warning) {
            let missing =
                |group: &&Vec<String>| !group.iter().any(|w| low.contains(&w.to_lowercase()));
            if let Some(group) = self.mention.iter().find(missing) {
                return Some(format!("UNCLEAR: none of {group:?} is said"));
            }
        }
        if code != 0 && text.len() > 8192 {
            return Some(format!("UNCLEAR: {} bytes of message", text.len()));
        }
        None
    }
}

/// Judges all cases and fails with everything that is wrong.
pub(super) fn judge(cases: &[Case]) {
    let mut bad = Vec::new();
    for case in cases {
        bad.extend(case.judge());
    }
    let mut report = String::new();
    for line in &bad {
        let _infallible = writeln!(report, "{line}\n");
    }
    assert!(bad.is_empty(), "{} verdicts over {} cases:\n{report}", bad.len(), cases.len());
}
