//! JSON as Python's `json.dumps(ensure_ascii=False)` writes it: what chat templates expect of `tojson`.

use serde_json::Value;

/// Writes a value; with `indent`, one item a line.
pub(super) fn dumps(value: &Value, indent: Option<usize>) -> String {
    let mut out = String::new();
    write(value, indent, 0, &mut out);
    out
}

fn write(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    match value {
        Value::Array(items) if !items.is_empty() => {
            let parts = items.iter().map(|item| (None, item));
            group(('[', ']'), parts, indent, depth, out);
        }
        Value::Object(map) if !map.is_empty() => {
            let parts = map.iter().map(|(key, item)| (Some(key.as_str()), item));
            group(('{', '}'), parts, indent, depth, out);
        }
        plain => out.push_str(&plain.to_string()),
    }
}

fn group<'a>(
    (open, close): (char, char),
    parts: impl Iterator<Item = (Option<&'a str>, &'a Value)>,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) {
    let new_line = |depth: usize, out: &mut String| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    out.push(open);
    for (i, (key, item)) in parts.enumerate() {
        if i > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        new_line(depth + 1, out);
        if let Some(key) = key {
            out.push_str(&Value::from(key).to_string());
            out.push_str(": ");
        }
        write(item, indent, depth + 1, out);
    }
    new_line(depth, out);
    out.push(close);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spaces_are_those_of_python() {
        let value = json!({"a": [1, "é<"], "b": {}, "c": null});
        assert_eq!(dumps(&value, None), r#"{"a": [1, "é<"], "b": {}, "c": null}"#);
        let lines = "{\n  \"a\": [\n    1,\n    \"é<\"\n  ],\n  \"b\": {},\n  \"c\": null\n}";
        assert_eq!(dumps(&value, Some(2)), lines);
    }
}
