//! A plan in the making: collects sources, tensors and sidecars, then lays them out like the checkpoint it derives from.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, Place, Recipe, SidecarFile, Stretch};
use crate::error::Result;
use crate::format::{Dtype, Identity, Index, Operation, Shape, shard_file_name, split_by_size};
use crate::plan::{
    Blend, Codes, LowRank, Numerics, Operand, Output, PLAN_VERSION, Part, Plan, Shard, Sidecar,
    SidecarContent, Slice, Source, SourceId, Term,
};

/// Everything of a plan but its shards, and where each tensor comes from.
pub(super) struct Draft {
    plan: Plan,
    ids: HashMap<PathBuf, SourceId>,
    /// For each tensor, the shard of the base checkpoint it belongs to.
    homes: Vec<usize>,
}

/// How the output's files derive from a checkpoint.
pub(super) struct Derived<'a> {
    /// The checkpoint whose layout, config and sidecars the output keeps.
    pub(super) base: &'a Checkpoint,
    /// Its role, for sources.
    pub(super) role: &'static str,
    /// The output's config, if the base has one.
    pub(super) config: Option<Map<String, Value>>,
    /// Files that travel along.
    pub(super) sidecars: &'a [SidecarFile],
    /// Data bytes of a shard, to lay the output out anew.
    pub(super) shard_size: Option<u64>,
    /// Metadata to add to every header.
    pub(super) metadata: BTreeMap<String, String>,
}

impl<'a> Derived<'a> {
    /// Same config, sidecars and layout as `base`.
    pub(super) fn from(base: &'a Checkpoint, role: &'static str) -> Self {
        Self {
            base,
            role,
            config: base.config().cloned(),
            sidecars: base.sidecars(),
            shard_size: None,
            metadata: BTreeMap::new(),
        }
    }
}

impl Draft {
    pub(super) fn new(verb: &str, parameters: &Value) -> Self {
        let parameters = parameters.as_object().cloned().unwrap_or_default();
        let plan = Plan {
            version: PLAN_VERSION,
            operation: Operation { verb: verb.to_owned(), parameters },
            sources: Vec::new(),
            tensors: Vec::new(),
            shards: Vec::new(),
            sidecars: Vec::new(),
            numerics: Numerics::Precise,
            parents: Vec::new(),
            layer_map: None,
            notes: Vec::new(),
        };
        Self { plan, ids: HashMap::new(), homes: Vec::new() }
    }

    /// The plan so far, for fields that only some operations set.
    pub(super) fn plan(&mut self) -> &mut Plan {
        &mut self.plan
    }

    /// Names a model the output descends from.
    pub(super) fn parent(&mut self, role: &str, checkpoint: &Checkpoint) {
        self.plan.parents.push(checkpoint.as_parent(role));
        self.plan.parents.extend(checkpoint.adapters().iter().cloned());
        let doubts = checkpoint.warnings().iter();
        self.plan.notes.extend(doubts.map(|w| format!("{}: {w}", checkpoint.name())));
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.plan.notes.push(note.into());
    }

    fn source(&mut self, role: &str, path: &std::path::Path, identity: Identity) -> SourceId {
        if let Some(id) = self.ids.get(path) {
            return *id;
        }
        // Millions of source files would exhaust memory long before the id.
        let id = SourceId(u32::try_from(self.plan.sources.len()).unwrap_or(u32::MAX));
        let (role, path) = (role.to_owned(), path.to_owned());
        self.plan.sources.push(Source { role, path: path.clone(), identity });
        self.ids.insert(path, id);
        id
    }

    /// The bytes of a stretch as a slice of the plan. Of checkpoints as they lie on disk only.
    pub(super) fn slice(&mut self, role: &str, stretch: &Stretch<'_>) -> Slice {
        debug_assert!(stretch.recipe.is_none(), "values of a recipe are not the bytes");
        Slice {
            source: self.source(role, &stretch.shard.path, stretch.shard.identity),
            bytes: stretch.bytes.clone(),
            dtype: stretch.dtype.clone(),
            shape: stretch.shape.clone(),
        }
    }

    /// Stretches as slices.
    pub(super) fn slices(&mut self, role: &str, stretches: &[Stretch<'_>]) -> Vec<Slice> {
        stretches.iter().map(|stretch| self.slice(role, stretch)).collect()
    }

    /// The values of a stretch.
    pub(super) fn operand(&mut self, role: &str, stretch: &Stretch<'_>) -> Operand {
        match stretch.recipe {
            None => self.slice(role, stretch).into(),
            Some(recipe) => self.made(role, recipe, stretch),
        }
    }

    /// The values of stretches.
    pub(super) fn operands(&mut self, role: &str, stretches: &[Stretch<'_>]) -> Vec<Operand> {
        stretches.iter().map(|stretch| self.operand(role, stretch)).collect()
    }

    fn made(&mut self, role: &str, recipe: &Recipe, stretch: &Stretch<'_>) -> Operand {
        let (first, shape) = (stretch.first, stretch.shape.clone());
        let mut slice = self.placed(role, &recipe.stored);
        let codes = recipe.codes.as_ref().map(|codes| {
            let zeros = codes.zeros.as_ref().map(|zeros| self.placed(role, zeros));
            let (scales, whole) = (self.placed(role, &codes.scales), codes.whole.clone());
            Box::new(Codes {
                coding: codes.coding,
                whole,
                scales,
                zeros,
                first,
                shape: shape.clone(),
            })
        });
        if codes.is_none() {
            let width = slice.dtype.bytes().unwrap_or(1);
            let start = slice.bytes.start + first * width;
            slice.bytes = start..start + shape.elements().unwrap_or(0) * width;
            slice.shape = shape;
        }
        let mut adapters = Vec::new();
        for product in &recipe.products {
            let down = self.placed("adapter", &product.down);
            let up = self.placed("adapter", &product.up);
            let (scale, transposed) = (product.scale, product.transposed);
            adapters.push(LowRank { down, up, scale, transposed, first });
        }
        Operand { slice, codes, adapters, gather: None, mean: None }
    }

    fn placed(&mut self, role: &str, place: &Place) -> Slice {
        Slice {
            source: self.source(role, &place.path, place.identity),
            bytes: place.bytes.clone(),
            dtype: place.dtype.clone(),
            shape: place.shape.clone(),
        }
    }

    /// Adds a tensor that belongs to shard `home` of the base.
    pub(super) fn push(
        &mut self,
        home: usize,
        name: &str,
        dtype: Dtype,
        shape: Shape,
        parts: Vec<Part>,
    ) {
        self.plan.tensors.push(Output { name: name.to_owned(), dtype, shape, parts });
        self.homes.push(home);
    }

    /// Lays the output out and adds its config, index and sidecars.
    pub(super) fn finish(mut self, derived: &Derived<'_>) -> Result<Plan> {
        self.plan.shards = match derived.shard_size {
            Some(limit) => self.relaid(derived, limit),
            None => self.kept_layout(derived),
        };
        for shard in &mut self.plan.shards {
            shard.metadata.extend(derived.metadata.clone());
        }
        self.add_config(derived);
        self.add_index(derived.base);
        for SidecarFile { file, path, size } in derived.sidecars {
            let content = SidecarContent::Copy { path: path.clone(), size: *size };
            self.plan.sidecars.push(Sidecar { file: file.clone(), content });
        }
        self.plan.validate()?;
        Ok(self.plan)
    }

    fn relaid(&self, derived: &Derived<'_>, limit: u64) -> Vec<Shard> {
        let sizes: Vec<u64> = self.plan.tensors.iter().map(Output::byte_len).collect();
        let cuts = split_by_size(&sizes, limit);
        let count = cuts.len();
        let mut metadata =
            derived.base.shards().first().map(|s| s.header.metadata.clone()).unwrap_or_default();
        metadata.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
        let shard = |(i, range): (usize, std::ops::Range<usize>)| Shard {
            file: shard_file_name(i, count),
            metadata: metadata.clone(),
            tensors: range.collect(),
            template: None,
            template_header: None,
        };
        cuts.into_iter().enumerate().map(shard).collect()
    }

    fn kept_layout(&mut self, derived: &Derived<'_>) -> Vec<Shard> {
        let base = derived.base.shards();
        let mut homes = vec![Vec::new(); base.len()];
        for (tensor, home) in self.homes.iter().enumerate() {
            homes[*home].push(tensor);
        }
        let mut used: Vec<usize> = (0..base.len()).filter(|i| !homes[*i].is_empty()).collect();
        if used.is_empty() {
            used.push(0);
        }
        let all = used.len() == base.len() && !derived.base.is_single_file();
        let count = used.len();
        let mut shards = Vec::new();
        for (i, home) in used.into_iter().enumerate() {
            let Some(shard) = base.get(home) else {
                continue;
            };
            let tensors = std::mem::take(&mut homes[home]);
            // The same tensors again: the header may be the same bytes, and blocks may be shared.
            let same = tensors.len() == shard.header.tensors.len();
            let header = || String::from_utf8(shard.raw_header[8..].to_vec()).ok();
            shards.push(Shard {
                file: if all { shard.file.clone() } else { shard_file_name(i, count) },
                metadata: shard.header.metadata.clone(),
                tensors,
                template: same.then(|| self.source(derived.role, &shard.path, shard.identity)),
                template_header: same.then(header).flatten(),
            });
        }
        shards
    }

    fn add_config(&mut self, derived: &Derived<'_>) {
        let Some(config) = &derived.config else {
            self.note(format!("`{}` has no config.json: the output has none", derived.base.name()));
            return;
        };
        let path = derived.base.config_path();
        let size = std::fs::metadata(&path).map_or(0, |m| m.len());
        let same = derived.base.config() == Some(config) && !derived.base.has_changed_config();
        let content = if same && size > 0 {
            SidecarContent::Copy { path, size }
        } else {
            SidecarContent::Text(pretty(config))
        };
        self.plan.sidecars.push(Sidecar { file: "config.json".to_owned(), content });
    }

    /// Writes an index where there is more than one shard; an index that says the same is copied.
    fn add_index(&mut self, base: &Checkpoint) {
        if self.plan.shards.len() < 2 {
            return;
        }
        let mut index = Index::default();
        let mut total = (0, 0);
        for shard in &self.plan.shards {
            for &tensor in &shard.tensors {
                let output = &self.plan.tensors[tensor];
                index.weight_map.insert(output.name.clone(), shard.file.clone());
                total.0 += output.byte_len();
                total.1 += output.shape.elements().unwrap_or(0);
            }
        }
        (index.total_size, index.total_parameters) = (Some(total.0), Some(total.1));
        let mut file = "model.safetensors.index.json".to_owned();
        let mut content = None;
        if let Some((path, old)) = base.index() {
            let same_size = old.total_size.is_none_or(|size| size == total.0);
            let size = std::fs::metadata(path).map_or(0, |m| m.len());
            if old.weight_map == index.weight_map && same_size && size > 0 {
                file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                content = Some(SidecarContent::Copy { path: path.to_owned(), size });
            }
        }
        let text = || SidecarContent::Text(String::from_utf8(index.to_bytes()).unwrap_or_default());
        self.plan.sidecars.push(Sidecar { file, content: content.unwrap_or_else(text) });
    }
}

/// JSON as the Hub's tools write it: two spaces, a final newline.
fn pretty(config: &Map<String, Value>) -> String {
    let mut text = serde_json::to_string_pretty(config).unwrap_or_default();
    text.push('\n');
    text
}

/// A part that copies, or converts where the dtypes differ.
pub(super) fn as_dtype(operand: impl Into<Operand>, dtype: &Dtype) -> Part {
    let operand = operand.into();
    if operand.is_plain() && operand.slice.dtype == *dtype {
        return Part::Copy(operand.slice);
    }
    let terms = vec![Term::new(operand, 1.0)];
    Part::Blend(Box::new(Blend::sum(None, terms, 1.0)))
}
