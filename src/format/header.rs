//! The header of a safetensors file: strict parser, deterministic writer. No I/O, no unsafe.
//!
//! Accepts what the `safetensors` crate accepts, less: names that occur twice, and headers that do
//! not start with `{`. With [`UnknownDtypes::Opaque`] it also accepts dtypes it does not know.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write};
use std::ops::Range;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Dtype, Shape};
use crate::error::printable;

/// The format's limit on the header, in bytes.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
const METADATA: &str = "__metadata__";
const MAX_DIMENSIONS: usize = 64;

/// What to do with a dtype that is not in [`Dtype::KNOWN`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownDtypes {
    /// Refuse the file. The default: its size rule cannot be checked.
    #[default]
    Refuse,
    /// Keep the tensor as opaque bytes, for copying only.
    Opaque,
}

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Shape,
    /// Its bytes, counted from the end of the header.
    pub range: Range<u64>,
}

/// A parsed header: tensors in the order of their bytes, and the file's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The `__metadata__` map.
    pub metadata: BTreeMap<String, String>,
    /// The tensors, by position in the file.
    pub tensors: Vec<TensorEntry>,
}

/// Why a byte string is not a safetensors header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderProblem {
    /// The file has fewer bytes than the length field.
    #[error(
        "too short to be safetensors: the file has {found} bytes, the header length alone takes 8"
    )]
    TooShort {
        /// Its size.
        found: u64,
    },
    /// The length field is over the limit of the format.
    #[error(
        "header length {found} is too large: the limit of the format is {MAX_HEADER_BYTES} bytes"
    )]
    TooLong {
        /// The length field.
        found: u64,
    },
    /// The header ends after the file.
    #[error("truncated: header length {header} goes past the end of the file ({file} bytes)")]
    PastEnd {
        /// The length field.
        header: u64,
        /// The file's size.
        file: u64,
    },
    /// A git-lfs pointer instead of the file.
    #[error("a git-lfs pointer, not safetensors: the real file has not been downloaded")]
    LfsPointer,
    /// An HTML page instead of the file.
    #[error("an HTML page, not a safetensors file: a failed download saved under this name")]
    HtmlPage,
    /// The header is not UTF-8.
    #[error("header is not UTF-8 (byte {at} of the header)")]
    NotUtf8 {
        /// Where, counted from the start of the header.
        at: usize,
    },
    /// The header is not a JSON object.
    #[error("header is not a JSON object: {message}")]
    NotJson {
        /// The parser's words.
        message: String,
    },
    /// `__metadata__` is not a map of strings.
    #[error("`__metadata__`: {message}")]
    Metadata {
        /// What is wrong.
        message: String,
    },
    /// One name occurs twice.
    #[error("tensor `{}` occurs twice in the header (duplicate name)", printable(name))]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A tensor's entry is malformed or its numbers do not agree.
    #[error("tensor `{}`: {problem}", printable(name))]
    Tensor {
        /// The name.
        name: String,
        /// What is wrong, with the numbers.
        problem: String,
    },
    /// The data is shorter than the header says.
    #[error(
        "truncated: tensor `{}` ends {missing} bytes past the end of the file, which is too short",
        printable(name)
    )]
    Truncated {
        /// The first tensor that is cut.
        name: String,
        /// How many bytes are missing.
        missing: u64,
    },
    /// Bytes after the last tensor.
    #[error("{extra} trailing bytes after the last tensor are not covered by the header")]
    Trailing {
        /// How many.
        extra: u64,
    },
}

impl HeaderProblem {
    pub(crate) fn hint(&self) -> String {
        let text = match self {
            Self::LfsPointer => "run `git lfs pull` in the repository, or download the file again",
            Self::HtmlPage | Self::Truncated { .. } | Self::PastEnd { .. } => {
                "download the file again and compare its size with the source's"
            }
            Self::TooShort { .. } => "the file is empty or truncated: download it again",
            Self::Tensor { problem, .. } if problem.contains("unknown dtype") => {
                "a newer format? `--allow-unknown-dtypes` copies such tensors untouched"
            }
            _ => {
                "the file is damaged or was written by a faulty tool: get it again from its source"
            }
        };
        text.to_owned()
    }
}

impl Header {
    /// Reads the length field from the first bytes of a file of `file_len` bytes.
    ///
    /// `start` is the beginning of the file, at least 8 bytes unless the file is shorter; a longer one
    /// lets git-lfs pointers and HTML pages be told apart from damage.
    pub fn length(start: &[u8], file_len: u64) -> Result<u64, HeaderProblem> {
        if start.starts_with(b"version https://git-lfs") {
            return Err(HeaderProblem::LfsPointer);
        }
        let text = start.trim_ascii_start();
        let begins = |tag: &str| {
            text.get(..tag.len()).is_some_and(|head| head.eq_ignore_ascii_case(tag.as_bytes()))
        };
        if begins("<!doctype") || begins("<html") {
            return Err(HeaderProblem::HtmlPage);
        }
        let Some(field) = start.first_chunk::<8>() else {
            return Err(HeaderProblem::TooShort { found: file_len });
        };
        let header = u64::from_le_bytes(*field);
        if header > MAX_HEADER_BYTES {
            return Err(HeaderProblem::TooLong { found: header });
        }
        if file_len - 8 < header {
            return Err(HeaderProblem::PastEnd { header, file: file_len });
        }
        Ok(header)
    }

    /// Parses the JSON part of a header and checks it against the number of data bytes that follow.
    ///
    /// `json` excludes the length field; `data_len` is the file's size less 8 and less the header.
    pub fn parse(
        json: &[u8],
        data_len: u64,
        unknown: UnknownDtypes,
    ) -> Result<Self, HeaderProblem> {
        let text = std::str::from_utf8(json)
            .map_err(|e| HeaderProblem::NotUtf8 { at: e.valid_up_to() })?;
        if !text.starts_with('{') {
            let found: String = text.chars().take(16).collect();
            return Err(HeaderProblem::NotJson {
                message: format!("it starts with `{}`", printable(&found)),
            });
        }
        let mut problem = None;
        let mut parser = serde_json::Deserializer::from_str(text);
        let parsed = RawHeader { unknown, problem: &mut problem }
            .deserialize(&mut parser)
            .and_then(|header| parser.end().map(|()| header));
        let mut header = match (problem, parsed) {
            (Some(problem), _) => return Err(problem),
            (None, Ok(header)) => header,
            (None, Err(e)) => {
                return Err(HeaderProblem::NotJson { message: printable(&e.to_string()) });
            }
        };
        let mut seen = HashSet::with_capacity(header.tensors.len());
        if let Some(twice) = header.tensors.iter().find(|t| !seen.insert(t.name.as_str())) {
            return Err(HeaderProblem::Duplicate { name: twice.name.clone() });
        }
        header.tensors.sort_by_key(|t| (t.range.start, t.range.end));
        check_coverage(&header.tensors, data_len)?;
        Ok(header)
    }

    /// Serialises the header: length field, JSON, and spaces until `8 + header` is a multiple of `align`.
    ///
    /// Metadata keys are sorted, tensors keep their order: equal headers give equal bytes.
    pub fn to_bytes(&self, align: u64) -> Vec<u8> {
        let mut json = String::from("{");
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        if !self.metadata.is_empty() {
            let pairs: Vec<String> =
                self.metadata.iter().map(|(k, v)| format!("{}:{}", quote(k), quote(v))).collect();
            json.extend(["\"", METADATA, "\":{", &pairs.join(","), "}"]);
        }
        for tensor in &self.tensors {
            if json.len() > 1 {
                json.push(',');
            }
            let dims: Vec<String> = tensor.shape.0.iter().map(u64::to_string).collect();
            let (name, dtype) = (quote(&tensor.name), quote(tensor.dtype.as_str()));
            let (start, end) = (tensor.range.start, tensor.range.end);
            // Writing to a string cannot fail.
            let _ = write!(
                json,
                "{name}:{{\"dtype\":{dtype},\"shape\":[{}],\"data_offsets\":[{start},{end}]}}",
                dims.join(","),
            );
        }
        json.push('}');
        let unpadded = 8 + json.len() as u64;
        for _ in unpadded..unpadded.next_multiple_of(align) {
            json.push(' ');
        }
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes
    }

    /// Bytes of tensor data.
    pub fn data_len(&self) -> u64 {
        self.tensors.last().map_or(0, |t| t.range.end)
    }
}

/// Tensors must tile the data without holes, overlaps or a rest.
fn check_coverage(tensors: &[TensorEntry], data_len: u64) -> Result<(), HeaderProblem> {
    let mut end = 0;
    for tensor in tensors {
        let Range { start, end: next } = tensor.range;
        if start != end {
            let problem = if start < end {
                format!(
                    "overlap: its data starts at offset {start}, the tensor before ends at {end}"
                )
            } else {
                format!("hole: {} unused bytes before its data at offset {start}", start - end)
            };
            return Err(HeaderProblem::Tensor { name: tensor.name.clone(), problem });
        }
        if next > data_len {
            let (name, missing) = (tensor.name.clone(), next - data_len);
            return Err(HeaderProblem::Truncated { name, missing });
        }
        end = next;
    }
    match data_len - end {
        0 => Ok(()),
        extra => Err(HeaderProblem::Trailing { extra }),
    }
}

/// An entry as written: every field optional, numbers as text, so that errors can quote them.
#[derive(Default)]
struct RawEntry {
    dtype: Option<String>,
    shape: Option<Vec<String>>,
    offsets: Option<Vec<String>>,
}

impl RawEntry {
    fn check(self, name: String, unknown: UnknownDtypes) -> Result<TensorEntry, HeaderProblem> {
        match self.resolve(unknown) {
            Ok((dtype, shape, range)) => Ok(TensorEntry { name, dtype, shape, range }),
            Err(problem) => Err(HeaderProblem::Tensor { name, problem }),
        }
    }

    fn resolve(self, unknown: UnknownDtypes) -> Result<(Dtype, Shape, Range<u64>), String> {
        let number = |field: &str, text: &String| {
            text.parse::<u64>().map_err(|_| {
                format!("{field} holds {}, not a whole number of 64 bits", printable(text))
            })
        };
        let dtype = Dtype::from(self.dtype.ok_or("`dtype` is missing")?);
        let shape = self.shape.ok_or("`shape` is missing")?;
        let offsets = self.offsets.ok_or("`data_offsets` is missing")?;
        if shape.len() > MAX_DIMENSIONS {
            return Err(format!(
                "shape has {} dimensions, the limit is {MAX_DIMENSIONS}",
                shape.len()
            ));
        }
        let dims = shape.iter().map(|d| number("shape", d)).collect::<Result<Vec<_>, _>>()?;
        let shape = Shape(dims);
        let [start, end] = offsets.as_slice() else {
            return Err(format!("data_offsets has {} numbers instead of 2", offsets.len()));
        };
        let range = number("data_offsets", start)?..number("data_offsets", end)?;
        if range.start > range.end {
            return Err(format!("data_offsets are reversed: [{}, {}]", range.start, range.end));
        }
        let found = range.end - range.start;
        if dtype.bits().is_none() {
            return match unknown {
                UnknownDtypes::Opaque => Ok((dtype, shape, range)),
                UnknownDtypes::Refuse => {
                    Err(format!("unknown dtype `{}`", printable(dtype.as_str())))
                }
            };
        }
        let Some(needed) = shape.byte_len(&dtype) else {
            return Err(match shape.elements() {
                Some(n) if n.checked_mul(8).is_some() => format!(
                    "shape {shape} of {dtype} does not fill whole bytes (it is not byte aligned)"
                ),
                _ => format!("shape {shape} of {dtype} is too large: its size overflows 64 bits"),
            });
        };
        if needed != found {
            return Err(format!(
                "shape {shape} of {dtype} needs {needed} bytes, data_offsets give {found}"
            ));
        }
        Ok((dtype, shape, range))
    }
}

/// Walks the top-level object in order and keeps the first typed problem beside serde's own error.
struct RawHeader<'a> {
    unknown: UnknownDtypes,
    problem: &'a mut Option<HeaderProblem>,
}

impl<'de> DeserializeSeed<'de> for RawHeader<'_> {
    type Value = Header;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RawHeader<'_> {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut has_metadata = false;
        let mut fail = |problem: HeaderProblem| {
            *self.problem = Some(problem);
            de::Error::custom("refused")
        };
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(fail(HeaderProblem::Duplicate { name }));
                }
                header.metadata = match map.next_value::<serde_json::Value>()? {
                    serde_json::Value::Null => BTreeMap::new(),
                    value => strings(value)
                        .map_err(|message| fail(HeaderProblem::Metadata { message }))?,
                };
                continue;
            }
            match map.next_value::<EntryOr>()? {
                EntryOr::Entry(entry) => match entry.check(name, self.unknown) {
                    Ok(tensor) => header.tensors.push(tensor),
                    Err(problem) => return Err(fail(problem)),
                },
                EntryOr::Problem(problem) => {
                    return Err(fail(HeaderProblem::Tensor { name, problem }));
                }
            }
        }
        Ok(header)
    }
}

fn strings(value: serde_json::Value) -> Result<BTreeMap<String, String>, String> {
    let serde_json::Value::Object(map) = value else {
        return Err("it is not an object of strings".into());
    };
    map.into_iter()
        .map(|(key, value)| match value {
            serde_json::Value::String(text) => Ok((key, text)),
            other => Err(format!(
                "the value of `{}` is {}, not a string",
                printable(&key),
                printable(&other.to_string())
            )),
        })
        .collect()
}

/// A tensor entry, or why it is none: a wrong type must not lose the tensor's name.
enum EntryOr {
    Entry(RawEntry),
    Problem(String),
}

impl<'de> de::Deserialize<'de> for EntryOr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = EntryOr;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EntryOr, A::Error> {
        let mut entry = RawEntry::default();
        let mut problem = None;
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                problem.get_or_insert(format!("`{}` occurs twice (duplicate)", printable(&key)));
            }
            match key.as_str() {
                "dtype" => match map.next_value::<serde_json::Value>()? {
                    serde_json::Value::String(text) => entry.dtype = Some(text),
                    other => {
                        problem.get_or_insert(format!(
                            "`dtype` is {}, not a string",
                            printable(&other.to_string())
                        ));
                    }
                },
                "shape" | "data_offsets" => {
                    let field = if key == "shape" { &mut entry.shape } else { &mut entry.offsets };
                    match map.next_value::<Numbers>()?.0 {
                        Ok(numbers) => *field = Some(numbers),
                        Err(message) => {
                            problem.get_or_insert(format!("{key} {message}"));
                        }
                    }
                }
                // Not `IgnoredAny`, which knows no limit of depth: the crate refuses what nests deeper than 128.
                _ => drop(map.next_value::<serde_json::Value>()?),
            }
        }
        Ok(problem.map_or(EntryOr::Entry(entry), EntryOr::Problem))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<EntryOr, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(EntryOr::Problem("its entry is an array, not an object".into()))
    }

    fn visit_str<E>(self, _: &str) -> Result<EntryOr, E> {
        Ok(EntryOr::Problem("its entry is a string, not an object".into()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<EntryOr, E> {
        Ok(EntryOr::Problem("its entry is a boolean, not an object".into()))
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<EntryOr, E> {
        Ok(EntryOr::Problem("its entry is a number, not an object".into()))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<EntryOr, E> {
        self.visit_u64(0)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<EntryOr, E> {
        self.visit_u64(0)
    }

    fn visit_unit<E>(self) -> Result<EntryOr, E> {
        Ok(EntryOr::Problem("its entry is null, not an object".into()))
    }
}

/// An array of numbers as their text, or why it is none.
struct Numbers(Result<Vec<String>, String>);

impl<'de> de::Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let serde_json::Value::Array(items) = value else {
            return Ok(Self(Err(format!("is {}, not an array", printable(&value.to_string())))));
        };
        Ok(Self(
            items
                .into_iter()
                .map(|item| match item {
                    serde_json::Value::Number(n) => Ok(n.to_string()),
                    other => Err(format!("holds {}, not a number", printable(&other.to_string()))),
                })
                .collect(),
        ))
    }
}
