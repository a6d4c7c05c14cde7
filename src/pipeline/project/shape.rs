//! The check of a file's shape against the schema: every key and every type, at every depth, with line and key path.

use serde_json::{Map, Value};

use super::yaml::{Kind, Node};
use crate::error::nearest;
use crate::error::printable;

/// Something wrong at a place.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) line: Option<u64>,
    pub(super) what: String,
    pub(super) hint: String,
}

/// A walk over a file.
pub(super) struct Walk<'a> {
    schema: &'a Value,
    /// What was found wrong.
    pub(super) problems: Vec<Problem>,
    /// Where every value stands: `align.learning_rate`, `data.sft.sources[0].path`.
    pub(super) lines: Vec<(String, u64)>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(schema: &'a Value) -> Self {
        Self { schema, problems: Vec::new(), lines: Vec::new() }
    }

    /// Checks a whole document and gives its value, keys without a value left out.
    pub(super) fn document(&mut self, node: &Node) -> Value {
        self.value(node, self.schema, "")
    }

    fn value(&mut self, node: &Node, schema: &'a Value, path: &str) -> Value {
        let (schema, name) = self.resolve(schema);
        let alternatives = schema.get("anyOf").or_else(|| schema.get("oneOf"));
        if let Some(alternatives) = alternatives.and_then(Value::as_array) {
            return self.alternatives(node, alternatives, name, path);
        }
        if !fits(node, schema) {
            self.mistyped(node, schema, name, path);
            return Value::Null;
        }
        match &node.kind {
            Kind::Map(entries) => self.group(node, entries, schema, path),
            Kind::List(items) => {
                let item = schema.get("items");
                let mut list = Vec::new();
                for (i, node) in items.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    self.lines.push((path.clone(), node.line));
                    list.push(match item {
                        Some(schema) => self.value(node, schema, &path),
                        None => node.to_value(),
                    });
                }
                Value::Array(list)
            }
            Kind::Integer(number) => {
                self.bounds(node, *number, schema, path);
                node.to_value()
            }
            Kind::Float(number) if !number.is_finite() => {
                self.problem(node.line, format!("`{path}` is not a finite number"), "");
                Value::Null
            }
            Kind::Text(text) => {
                self.word(node, text, schema, path);
                node.to_value()
            }
            _ => node.to_value(),
        }
    }

    /// Follows references and the wrapping of optional values.
    fn resolve(&self, mut schema: &'a Value) -> (&'a Value, Option<&'a str>) {
        let mut name = None;
        for _ in 0..16 {
            if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
                let key = target.rsplit('/').next().unwrap_or_default();
                name = Some(key);
                schema = self.schema.get("$defs").and_then(|d| d.get(key)).unwrap_or(schema);
                continue;
            }
            let inner = schema.get("anyOf").and_then(Value::as_array).and_then(|choices| {
                let is_null = |c: &&Value| c.get("type").and_then(Value::as_str) == Some("null");
                let (null, other): (Vec<&Value>, Vec<&Value>) = choices.iter().partition(is_null);
                (null.len() == 1 && other.len() == 1).then(|| other[0])
            });
            match inner {
                Some(inner) => schema = inner,
                None => break,
            }
        }
        (schema, name)
    }

    fn alternatives(
        &mut self,
        node: &Node,
        alternatives: &'a [Value],
        name: Option<&str>,
        path: &str,
    ) -> Value {
        let words: Vec<&str> =
            alternatives.iter().filter_map(|a| a.get("const")?.as_str()).collect();
        if words.len() == alternatives.len() {
            match &node.kind {
                Kind::Text(text) if words.contains(&text.as_str()) => return node.to_value(),
                Kind::Text(text) => self.unknown_word(node.line, text, &words, path),
                other => {
                    let hint = format!("it is one of {}", listed(words.iter().copied()));
                    let what = format!("`{path}` is {}, not a word", other.word());
                    self.problem(node.line, what, &hint);
                }
            }
            return Value::Null;
        }
        let fitting = alternatives.iter().find(|alternative| {
            let (schema, _) = self.resolve(alternative);
            fits(node, schema)
        });
        match fitting {
            // An item of the wrong kind inside is told as the whole: `layers: [1.5]`.
            Some(schema) if name == Some("Layers") => {
                let before = self.problems.len();
                let value = self.value(node, schema, path);
                if self.problems.len() > before {
                    self.problems.truncate(before);
                    self.mistyped(node, schema, name, path);
                }
                value
            }
            Some(schema) => self.value(node, schema, path),
            None => {
                self.mistyped(node, &alternatives[0], name, path);
                Value::Null
            }
        }
    }

    fn group(
        &mut self,
        node: &Node,
        entries: &[(String, u64, Node)],
        schema: &'a Value,
        path: &str,
    ) -> Value {
        let known = schema.get("properties").and_then(Value::as_object);
        let free = schema.get("additionalProperties").filter(|free| **free != Value::Bool(false));
        let mut group = Map::new();
        for (key, line, value) in entries {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            self.lines.push((path.clone(), *line));
            match (known.and_then(|known| known.get(key)), free) {
                // A key without a value is a key not set.
                (Some(_), _) if matches!(value.kind, Kind::Null) => {}
                (Some(schema), _) => {
                    group.insert(key.clone(), self.value(value, schema, &path));
                }
                (None, Some(Value::Object(_))) => {
                    let schema = schema.get("additionalProperties").unwrap_or(&Value::Null);
                    group.insert(key.clone(), self.value(value, schema, &path));
                }
                (None, Some(_)) => {
                    group.insert(key.clone(), value.to_value());
                }
                (None, None) if known.is_none() => {
                    group.insert(key.clone(), value.to_value());
                }
                (None, None) => self.unknown_key(key, *line, known, &path),
            }
        }
        let required = schema.get("required").and_then(Value::as_array);
        for key in required.into_iter().flatten().filter_map(Value::as_str) {
            if !group.contains_key(key) {
                let what = format!("`{path}` has no `{key}`");
                self.problem(node.line, what, &format!("add `{key}: ...`"));
            }
        }
        Value::Object(group)
    }

    fn unknown_key(
        &mut self,
        key: &str,
        line: u64,
        known: Option<&'a Map<String, Value>>,
        path: &str,
    ) {
        let known = || known.into_iter().flatten().map(|(key, _)| key.as_str());
        let elsewhere = || {
            let groups = self.schema.get("properties").and_then(Value::as_object);
            let has = |(name, schema): (&'a String, &'a Value)| {
                let inner = self.resolve(schema).0.get("properties")?;
                inner.get(key).map(|_| format!("`{name}.{key}`"))
            };
            let places: Vec<String> = groups.into_iter().flatten().filter_map(has).collect();
            (!places.is_empty()).then(|| format!("there is {}", places.join(", ")))
        };
        let hint = match (nearest(key, known()), elsewhere()) {
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, Some(places)) => places,
            (None, None) => format!("the keys are {}", listed(known())),
        };
        let parent = path.strip_suffix(key).unwrap_or_default().trim_end_matches('.');
        let inside = if parent.is_empty() { String::new() } else { format!(" in `{parent}`") };
        self.problem(line, format!("there is no key `{}`{inside}", printable(key)), &hint);
    }

    /// Enumerations without descriptions.
    fn word(&mut self, node: &Node, text: &str, schema: &'a Value, path: &str) {
        if let Some(Value::Array(words)) = schema.get("enum") {
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            if !words.contains(&text) {
                self.unknown_word(node.line, text, &words, path);
            }
        }
        if text.is_empty() && schema.get("format").and_then(Value::as_str) == Some("path") {
            self.problem(node.line, format!("`{path}` is empty, not a path"), "");
        }
    }

    fn unknown_word(&mut self, line: u64, text: &str, words: &[&str], path: &str) {
        let hint = match nearest(text, words.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("it is one of {}", listed(words.iter().copied())),
        };
        self.problem(line, format!("`{path}: {}` is not known", printable(text)), &hint);
    }

    fn bounds(&mut self, node: &Node, number: i128, schema: &Value, path: &str) {
        let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
        let range = match format {
            "uint32" => (0, i128::from(u32::MAX)),
            "uint64" | "uint" => (0, i128::from(u64::MAX)),
            "int64" => (i128::from(i64::MIN), i128::from(i64::MAX)),
            _ => return,
        };
        if number < range.0 {
            self.problem(node.line, format!("`{path}: {number}` is negative"), "");
        } else if number > range.1 {
            self.problem(node.line, format!("`{path}: {number}` is too large"), "");
        }
    }

    fn mistyped(&mut self, node: &Node, schema: &Value, name: Option<&str>, path: &str) {
        let key = path.rsplit('.').next().unwrap_or_default();
        let format = schema.get("format").and_then(Value::as_str);
        let wanted = match schema.get("type") {
            Some(Value::String(one)) => one.as_str(),
            Some(Value::Array(several)) => {
                several.first().and_then(Value::as_str).unwrap_or_default()
            }
            _ => "",
        };
        let found = node.kind.word();
        let (what, hint) = match (name, format, wanted) {
            (Some("Layers"), ..) => (
                "is not a list of layers".to_owned(),
                "write `layers: 1,32`, or `layers: [1, 32]`".to_owned(),
            ),
            (Some("Size"), ..) => {
                ("is not a number of bytes".to_owned(), format!("write `{key}: 1GB`"))
            }
            (_, Some("path"), _) => {
                ("is not a path".to_owned(), format!("write `{key}: path/to/it`"))
            }
            (_, _, "string") => (
                format!("is {found}, not text"),
                if matches!(node.kind, Kind::List(_) | Kind::Map(_)) {
                    String::new()
                } else {
                    "put it in quotes".to_owned()
                },
            ),
            (_, _, "integer") => ("is not a whole number".to_owned(), String::new()),
            (_, _, "number") => (format!("is {found}, not a number"), String::new()),
            (_, _, "boolean") => (
                format!("is {found}, not `true` or `false`"),
                format!("write `{key}: true` or `{key}: false`"),
            ),
            (_, _, "array") => (format!("is {found}, not a list"), format!("write `{key}: [...]`")),
            (_, _, "object") => (format!("is {found}, not a group of keys"), String::new()),
            _ => (format!("is {found}, which it cannot be"), String::new()),
        };
        let whole = "a project is a group of keys: `model: path/to/it`";
        match path {
            "" => self.problem(node.line, format!("the file {what}"), whole),
            path => self.problem(node.line, format!("`{}` {what}", printable(path)), &hint),
        }
    }

    fn problem(&mut self, line: u64, what: String, hint: &str) {
        self.problems.push(Problem { line: Some(line), what, hint: hint.to_owned() });
    }
}

/// `` `a`, `b` ``
fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// Whether a value is of a schema's type.
fn fits(node: &Node, schema: &Value) -> bool {
    let is = |wanted: &str| {
        matches!(
            (&node.kind, wanted),
            (Kind::Null, "null")
                | (Kind::Bool(_), "boolean")
                | (Kind::Integer(_), "integer" | "number")
                | (Kind::Float(_), "number")
                | (Kind::Text(_), "string")
                | (Kind::List(_), "array")
                | (Kind::Map(_), "object")
        )
    };
    match schema.get("type") {
        Some(Value::String(one)) => is(one),
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).any(is),
        // An enumeration of words, or anything at all.
        _ => match schema.get("anyOf").or_else(|| schema.get("oneOf")) {
            Some(Value::Array(choices)) => choices.iter().any(|choice| fits(node, choice)),
            _ => true,
        },
    }
}
