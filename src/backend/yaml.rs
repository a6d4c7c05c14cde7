//! YAML as Python's readers want it: block style, strings quoted where a reader could take them for something else, and
//! floats with a point and a signed exponent (`5.0e-6`: `PyYAML` reads `5e-6` as a string).

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// A mapping as a document.
pub(super) fn document(map: &Map<String, Value>) -> String {
    let mut out = String::new();
    mapping(&mut out, map, 0, false);
    out
}

fn mapping(out: &mut String, map: &Map<String, Value>, indent: usize, inline_first: bool) {
    for (at, (key, value)) in map.iter().enumerate() {
        if at > 0 || !inline_first {
            pad(out, indent);
        }
        out.push_str(&string(key));
        out.push(':');
        nested(out, value, indent);
    }
}

fn nested(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            mapping(out, map, indent + 2, false);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            for item in items {
                pad(out, indent + 2);
                out.push('-');
                element(out, item, indent + 2);
            }
        }
        scalar => {
            out.push(' ');
            out.push_str(&plain(scalar));
            out.push('\n');
        }
    }
}

fn element(out: &mut String, item: &Value, indent: usize) {
    match item {
        Value::Object(map) if !map.is_empty() => {
            out.push(' ');
            mapping(out, map, indent + 2, true);
        }
        other => nested(out, other, indent),
    }
}

fn pad(out: &mut String, indent: usize) {
    let _ = write!(out, "{:indent$}", "");
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => float(&number.to_string()),
        Value::String(text) => string(text),
        Value::Array(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
    }
}

/// A number with a point before its exponent and a sign after it.
fn float(text: &str) -> String {
    let Some((mantissa, exponent)) = text.split_once(['e', 'E']) else { return text.to_owned() };
    let point = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
    format!("{mantissa}{point}e{sign}{exponent}")
}

/// A string, bare where no reader can take it for something else.
fn string(text: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let bare = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./+".contains(&b))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if bare { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(value: &Value) -> String {
        document(value.as_object().unwrap())
    }

    #[test]
    fn blocks_nest_and_empty_ones_stay_on_the_line() {
        let value = json!({"a": 1, "b": {"c": [1, {"d": true, "e": []}], "f": {}}, "g": null});
        insta::assert_snapshot!(render(&value), @r"
        a: 1
        b:
          c:
            - 1
            - d: true
              e: []
          f: {}
        g: null
        ");
    }

    #[test]
    fn floats_have_a_point_and_a_sign() {
        let value = json!({"lr": 5e-6, "big": 1e25, "half": 0.5, "one": 1.0});
        assert_eq!(render(&value), "lr: 5.0e-6\nbig: 1.0e+25\nhalf: 0.5\none: 1.0\n");
    }

    #[test]
    fn strings_that_look_like_something_else_are_quoted() {
        for text in ["no", "5", "1e3", "", "a: b", "^model.layers.", "- x", "한국어", "a\nb", "~"]
        {
            let value = json!({ "k": text });
            let read: Value = serde_saphyr::from_str(&render(&value)).unwrap();
            assert_eq!(read["k"], text);
        }
        assert_eq!(
            render(&json!({"path": "/project-1/a_b.jsonl"})),
            "path: /project-1/a_b.jsonl\n"
        );
    }
}
