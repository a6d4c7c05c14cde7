//! Quantised checkpoints seen as what they stand for: the tensors of the unquantised model.
//!
//! Which tensor belongs to which follows from names and shapes; `quantization_config` says which method it is and how
//! large blocks are where shapes leave that open. Formats that are not known are refused, never guessed.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::config::{quantization, quantization_settings, remove_quantization, value_dtype};
use super::recipe::{CodesAt, Place, Recipe};
use super::{Checkpoint, ShardFile};
use crate::error::{Error, Result};
use crate::format::{Coding, Dtype, MX_BLOCK, Shape, TensorEntry};

/// Endings of tensors that quantise activations: no part of any weight.
const ACTIVATIONS: &[&str] = &[
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".output_zero_point",
    ".activation_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".prob_scale",
];

/// Endings of what lies beside the codes of `STEM.weight`.
const BESIDE: &[&str] = &["_scale_inv", "_scale", "_zero_point", "_shape"];

/// A tensor of codes with what belongs to it.
struct Found {
    name: String,
    shape: Shape,
    recipe: Recipe,
    parts: Vec<String>,
}

impl Checkpoint {
    /// The checkpoint as its values: quantised tensors under the names, with the shapes and the dtype of the unquantised model,
    /// each with its [`Recipe`]. A checkpoint that is not quantised is itself.
    ///
    /// # Errors
    /// A format that cannot be read, codes without scales, shapes that contradict each other.
    pub fn as_values(&self) -> Result<Cow<'_, Self>> {
        let Some((config, method)) = self.config().and_then(|c| Some((c, quantization(c)?))) else {
            return Ok(Cow::Borrowed(self));
        };
        let settings = quantization_settings(config).cloned().unwrap_or_default();
        if let Some(reason) = unreadable(&method, &settings) {
            return Err(Error::Unsupported {
                what: format!("`{}`", self.name()),
                reason: format!("it is quantised ({method}): {reason}"),
                hint: "use the unquantised checkpoint of the model, or save it dequantised with the tool that quantised it".into(),
            });
        }
        let dtype = value_dtype(config).unwrap_or(Dtype::BF16);
        let mut problems = Vec::new();
        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        for (_, entry) in self.names_in_file_order() {
            match self.coded(entry, &settings) {
                Ok(Some(coded)) => {
                    if coded.name != entry.name && self.tensor(&coded.name).is_some() {
                        problems
                            .push(format!("`{}` and `{}` are both there", entry.name, coded.name));
                    }
                    found.insert(entry.name.clone(), coded);
                }
                Ok(None) => {}
                Err(problem) => problems.push(format!("tensor `{}`: {problem}", entry.name)),
            }
        }
        if !problems.is_empty() {
            return Err(Error::Mismatch {
                what: format!("`{}` is quantised ({method}) and cannot be read", self.name()),
                problems,
                hint: "use the unquantised checkpoint of the model".into(),
            });
        }
        let parts: Vec<&str> =
            found.values().flat_map(|f| f.parts.iter().map(String::as_str)).collect();
        let parts: std::collections::HashSet<&str> = parts.into_iter().collect();
        let mut dropped = Vec::new();
        let mut view = self.seen_as(|_, entry| {
            if let Some(found) = found.get(&entry.name) {
                let (name, dtype, shape) = (found.name.clone(), dtype.clone(), found.shape.clone());
                return Some(TensorEntry { name, dtype, shape, range: entry.range.clone() });
            }
            if is_activation(&entry.name) {
                dropped.push(entry.name.clone());
            }
            let kept = !parts.contains(entry.name.as_str()) && !is_activation(&entry.name);
            kept.then(|| entry.clone())
        })?;
        view.structure = Some(self.structure());
        view.config = view.config.map(|mut config| {
            remove_quantization(&mut config);
            config
        });
        view.changed_config = true;
        let count = found.len();
        view.recipes.extend(found.into_values().map(|found| (found.name, found.recipe)));
        view.warnings
            .push(format!("{count} quantised tensors ({method}) are read as their values"));
        if let Some(first) = dropped.first() {
            let count = dropped.len();
            view.warnings.push(format!(
                "{count} scales of activations are left out (first: `{first}`): the result quantises no activations"
            ));
        }
        Ok(Cow::Owned(view))
    }

    /// Whether a tensor is codes that need others to mean anything.
    pub fn is_coded(&self, name: &str) -> bool {
        let settings = self.config().and_then(quantization_settings).cloned().unwrap_or_default();
        let Some((_, entry)) = self.tensor(name) else { return false };
        self.config().and_then(quantization).is_some()
            && !matches!(self.coded(entry, &settings), Ok(None))
    }

    /// What a tensor is codes for; `None` if it is none.
    fn coded(
        &self,
        entry: &TensorEntry,
        settings: &Map<String, Value>,
    ) -> Result<Option<Found>, String> {
        let name = entry.name.as_str();
        if is_activation(name) {
            return Ok(None);
        }
        if let Some(stem) = name.strip_suffix("_blocks") {
            return self.mxfp4(stem, entry).map(Some);
        }
        if let Some(stem) = name.strip_suffix("_packed") {
            return self.packed(stem, entry, settings).map(Some);
        }
        // 8-bit codes are in the place of the weight itself.
        if !(entry.dtype.is_f8() || entry.dtype == Dtype::I8) || self.is_part(name) {
            return Ok(None);
        }
        self.blocks(entry, settings).map(Some)
    }

    /// Whether a tensor belongs to the codes of another.
    fn is_part(&self, name: &str) -> bool {
        let of = |end: &&str| name.strip_suffix(*end);
        let codes = BESIDE.iter().find_map(of);
        codes.is_some_and(|codes| {
            self.tensor(codes).is_some() || self.tensor(&format!("{codes}_packed")).is_some()
        })
    }

    fn place(&self, name: &str) -> Option<Place> {
        self.tensor(name).map(|(shard, entry): (&ShardFile, &TensorEntry)| Place::of(shard, entry))
    }

    fn found(
        &self,
        (name, entry): (&str, &TensorEntry),
        (coding, whole): (Coding, Shape),
        (scales, zeros): (Place, Option<Place>),
        parts: Vec<String>,
    ) -> Result<Found, String> {
        let stored = self.place(&entry.name).ok_or("it is not there")?;
        let (own, expected, zero) = coding.shapes(&whole)?;
        let wrong = |what: &str, found: &Shape, expected: &Shape| {
            let same = found.elements() == expected.elements();
            (!same).then(|| format!("{what} of shape {found} instead of {expected}"))
        };
        let odd = wrong("codes", &stored.shape, &own)
            .or_else(|| wrong("scales", &scales.shape, &expected))
            .or_else(|| zeros.as_ref().and_then(|z| wrong("zero points", &z.shape, &zero)));
        if let Some(odd) = odd {
            return Err(odd);
        }
        if !coding.takes(&stored.dtype, &scales.dtype, zeros.as_ref().map(|z| &z.dtype)) {
            let zeros = zeros.map(|z| format!(" and {} zero points", z.dtype)).unwrap_or_default();
            return Err(format!("{} codes with {} scales{zeros}", stored.dtype, scales.dtype));
        }
        let codes = Some(CodesAt { coding, whole: whole.clone(), scales, zeros });
        let recipe = Recipe { codes, ..Recipe::plain(stored) };
        Ok(Found { name: name.to_owned(), shape: whole, recipe, parts })
    }

    /// `STEM_blocks` and `STEM_scales`: gpt-oss.
    fn mxfp4(&self, stem: &str, entry: &TensorEntry) -> Result<Found, String> {
        let beside = format!("{stem}_scales");
        let scales = self.place(&beside).ok_or_else(|| format!("its `{beside}` is missing"))?;
        let [outer @ .., columns, blocks, 16] = entry.shape.0.as_slice() else {
            return Err(format!("shape {} is not blocks of 16 bytes", entry.shape));
        };
        let rows = blocks.checked_mul(MX_BLOCK).ok_or("its size overflows 64 bits")?;
        let whole = Shape([outer, &[rows, *columns]].concat());
        self.found((stem, entry), (Coding::Mxfp4, whole), (scales, None), vec![beside])
    }

    /// `STEM.weight_packed` with `weight_scale`, `weight_shape` and perhaps `weight_zero_point`: compressed-tensors.
    fn packed(
        &self,
        name: &str,
        entry: &TensorEntry,
        settings: &Map<String, Value>,
    ) -> Result<Found, String> {
        if entry.dtype != Dtype::I32 {
            return Err(format!(
                "codes packed into {} (NVFP4 or similar) cannot be read yet",
                entry.dtype
            ));
        }
        if self.tensor(&format!("{name}_g_idx")).is_some() {
            return Err(
                "groups in the order of activations (`weight_g_idx`) cannot be read yet".into()
            );
        }
        let beside = |end: &str| format!("{name}{end}");
        let missing = |end: &str| format!("its `{name}{end}` is missing");
        let scales = self.place(&beside("_scale")).ok_or_else(|| missing("_scale"))?;
        let (shard, shape) = self.tensor(&beside("_shape")).ok_or_else(|| missing("_shape"))?;
        let dims = read_integers(shard, shape)?;
        let whole = Shape(dims);
        let [.., columns] = whole.0.as_slice() else { return Err("its shape is empty".into()) };
        let words = entry.shape.0.last().copied().unwrap_or(0);
        let given = weights_settings(settings, "num_bits");
        let fits = |bits: &u64| columns.div_ceil(32 / bits) == words;
        let bits = [4, 8].into_iter().filter(fits).find(|b| given.is_none_or(|given| given == *b));
        let bits = bits.ok_or_else(|| {
            let given = given.map(|bits| format!(" of {bits} bits")).unwrap_or_default();
            format!(
                "{words} words a row hold no {columns} codes{given}: only 4 and 8 bits can be read"
            )
        })?;
        let groups =
            groups(&scales, &whole).filter(|groups| *groups > 0).ok_or("it has no scales")?;
        let size = weights_settings(settings, "group_size").filter(|size| *size > 0);
        let size = size.filter(|size| columns.div_ceil(*size) == groups);
        let columns = size.unwrap_or_else(|| columns.div_ceil(groups));
        let mut parts = vec![beside("_scale"), beside("_shape")];
        let zeros = self.place(&beside("_zero_point"));
        parts.extend(zeros.iter().map(|_| beside("_zero_point")));
        let coding = Coding::Packed { bits, columns };
        self.found((name, entry), (coding, whole), (scales, zeros), parts)
    }

    /// 8-bit codes in the place of the weight, with `weight_scale_inv` or `weight_scale`.
    fn blocks(&self, entry: &TensorEntry, settings: &Map<String, Value>) -> Result<Found, String> {
        let name = entry.name.as_str();
        let beside = ["_scale_inv", "_scale"].map(|end| format!("{name}{end}"));
        let scale = beside.iter().find(|name| self.tensor(name).is_some());
        let scale =
            scale.ok_or_else(|| format!("its `{}` or `{}` is missing", beside[0], beside[1]))?;
        let scales = self.place(scale).ok_or("its scales are missing")?;
        let whole = entry.shape.clone();
        let [.., rows, columns] = *whole.0.as_slice() else {
            return Err(format!("codes of shape {whole} are no matrix"));
        };
        let count = scales.shape.elements().unwrap_or(0);
        let outer: u64 = whole.0[..whole.0.len() - 2].iter().product();
        let block = block_size(settings)?;
        let coding = match block.filter(|_| count != outer && count != 1) {
            Some((rows, columns)) => Coding::Blocks { rows, columns },
            None if count == outer => Coding::Blocks { rows, columns },
            None if outer > 0 && rows > 0 && count.is_multiple_of(outer * rows) && count > 0 => {
                let groups = count / (outer * rows);
                let size = weights_settings(settings, "group_size").filter(|size| *size > 0);
                let size = size.filter(|size| columns.div_ceil(*size) == groups);
                Coding::Blocks {
                    rows: 1,
                    columns: size.unwrap_or_else(|| columns.div_ceil(groups)),
                }
            }
            None => return Err(format!("scales of shape {} for values {whole}", scales.shape)),
        };
        let mut parts = vec![scale.clone()];
        let zero = format!("{name}_zero_point");
        let zeros = self.place(&zero);
        parts.extend(zeros.iter().map(|_| zero.clone()));
        self.found((name, entry), (coding, whole), (scales, zeros), parts)
    }
}

fn is_activation(name: &str) -> bool {
    ACTIVATIONS.iter().any(|end| name.ends_with(end))
}

/// Scales of a row.
fn groups(scales: &Place, whole: &Shape) -> Option<u64> {
    // The shape is what a tensor says: it may be anything.
    let outer = &whole.0[..whole.0.len().checked_sub(1)?];
    let rows = outer.iter().try_fold(1_u64, |rows, side| rows.checked_mul(*side))?;
    let count = scales.shape.elements()?;
    (rows > 0 && count.is_multiple_of(rows)).then(|| count / rows)
}

/// Why a method cannot be read; `None` if it can.
fn unreadable(method: &str, settings: &Map<String, Value>) -> Option<String> {
    match method {
        "fp8" | "fbgemm_fp8" | "mxfp4" => None,
        "compressed-tensors" => {
            let format = settings.get("format").and_then(Value::as_str).unwrap_or_default();
            let known = [
                "float-quantized",
                "naive-quantized",
                "int-quantized",
                "pack-quantized",
                "mixed-precision",
                "dense",
                "",
            ];
            let sparse = settings.get("sparsity_config").and_then(|s| s.get("format")?.as_str());
            match sparse {
                Some(sparse) if sparse != "dense" => {
                    Some(format!("its sparsity `{sparse}` cannot be read"))
                }
                _ if known.contains(&format) => None,
                _ => Some(format!("its format `{format}` cannot be read")),
            }
        }
        _ => Some(
            "of the methods, only fp8, fbgemm_fp8, mxfp4 and compressed-tensors can be read".into(),
        ),
    }
}

/// A number that all groups of a compressed-tensors config agree on.
fn weights_settings(settings: &Map<String, Value>, key: &str) -> Option<u64> {
    let groups = settings.get("config_groups")?.as_object()?.values();
    let mut values = groups.map(|group| group.get("weights")?.get(key)?.as_u64());
    let first = values.next()??;
    values.all(|value| value == Some(first)).then_some(first)
}

/// Rows and columns of a block of scales.
fn block_size(settings: &Map<String, Value>) -> Result<Option<(u64, u64)>, String> {
    let of_groups = || {
        let groups = settings.get("config_groups")?.as_object()?.values();
        let mut blocks = groups
            .filter_map(|g| g.get("weights")?.get("block_structure").filter(|b| !b.is_null()));
        let first = blocks.next()?;
        blocks.all(|block| block == first).then_some(first)
    };
    let own = settings.get("weight_block_size").filter(|size| !size.is_null());
    let Some(size) = own.or_else(of_groups) else { return Ok(None) };
    let sides: Option<Vec<u64>> =
        size.as_array().map(|s| s.iter().filter_map(Value::as_u64).collect());
    match sides.as_deref() {
        Some([rows, columns]) if *rows > 0 && *columns > 0 => Ok(Some((*rows, *columns))),
        _ => Err(format!("the block size {size} is not a pair of numbers")),
    }
}

/// The few integers of a small tensor.
fn read_integers(shard: &ShardFile, entry: &TensorEntry) -> Result<Vec<u64>, String> {
    let width = match entry.dtype {
        Dtype::I64 => 8,
        Dtype::I32 => 4,
        _ => return Err(format!("its shape is {}, not integers", entry.dtype)),
    };
    let bytes = shard.bytes(entry);
    if bytes.end - bytes.start > 64 {
        return Err("its shape has too many dimensions".into());
    }
    let mut buffer = vec![0; usize::try_from(bytes.end - bytes.start).unwrap_or(0)];
    let read = shard.source().and_then(|source| source.read_exact_at(&mut buffer, bytes.start));
    read.map_err(|e| e.to_string())?;
    let value = |chunk: &[u8]| {
        let mut word = [0; 8];
        word[..width].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    };
    Ok(buffer.chunks_exact(width).map(value).collect())
}
