//! Chats in the spellings that data sets have, as messages.

use serde_json::{Map, Value};

use super::record::Message;
use crate::error::printable;

/// Pairs of keys of question and answer.
const PAIRS: [(&str, &str); 5] = [
    ("instruction", "output"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("instruction", "response"),
];

/// A record as messages. The error says what is wrong with it.
pub(super) fn messages(record: &Value, field: Option<&str>) -> Result<Vec<Message>, String> {
    let Value::Object(object) = record else {
        return Err(format!("it is {}, not an object", word(record)));
    };
    if let Some(field) = field {
        let value = object.get(field).ok_or_else(|| missing(field, object))?;
        return turns(value, object).map_err(|e| format!("`{}`: {e}", printable(field)));
    }
    for key in ["messages", "conversations", "conversation"] {
        if let Some(value) = object.get(key).filter(|value| !value.is_null()) {
            return turns(value, object).map_err(|e| format!("`{key}`: {e}"));
        }
    }
    match PAIRS.iter().find(|(ask, tell)| object.contains_key(*ask) && object.contains_key(*tell)) {
        Some((ask, tell)) => pair(object, ask, tell),
        None => Err(missing("messages", object)),
    }
}

/// A missing field, and what there is instead.
pub(super) fn missing(field: &str, object: &Map<String, Value>) -> String {
    missing_among(field, object.keys().map(String::as_str))
}

/// The same over names.
pub(super) fn missing_among<'a>(field: &str, keys: impl Iterator<Item = &'a str>) -> String {
    let keys: Vec<String> = keys.take(8).map(|key| format!("`{}`", printable(key))).collect();
    let field = printable(field);
    if keys.is_empty() {
        format!("it has no field `{field}`: it is empty")
    } else {
        format!("it has no field `{field}`; it has {}", keys.join(", "))
    }
}

fn pair(object: &Map<String, Value>, ask: &str, tell: &str) -> Result<Vec<Message>, String> {
    let text = |key: &str| match object.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(value) => content(value).map_err(|e| format!("`{key}`: {e}")),
    };
    let (mut question, answer) = (text(ask)?, text(tell)?);
    if ask == "instruction" {
        let input = text("input")?;
        if !input.trim().is_empty() {
            question = format!("{question}\n\n{input}");
        }
    }
    let system = text("system")?;
    let turn = |role: &str, content: String| Message { role: role.into(), content };
    let mut messages = Vec::new();
    if !system.trim().is_empty() {
        messages.push(turn("system", system));
    }
    messages.push(turn("user", question));
    messages.push(turn("assistant", answer));
    sound(messages)
}

fn turns(value: &Value, object: &Map<String, Value>) -> Result<Vec<Message>, String> {
    let Value::Array(items) = value else {
        return Err(format!("it is {}, not a list of messages", word(value)));
    };
    let mut messages = Vec::with_capacity(items.len() + 1);
    // ShareGPT files have the system prompt beside the conversation.
    if let Some(Value::String(system)) = object.get("system")
        && !system.trim().is_empty()
    {
        messages.push(Message { role: "system".into(), content: system.clone() });
    }
    for (i, item) in items.iter().enumerate() {
        messages.push(turn(item).map_err(|e| format!("message {}: {e}", i + 1))?);
    }
    sound(messages)
}

fn turn(item: &Value) -> Result<Message, String> {
    let Value::Object(object) = item else {
        return Err(format!("it is {}, not an object", word(item)));
    };
    let get = |keys: [&str; 2]| {
        keys.iter().find_map(|key| object.get(*key)).ok_or_else(|| missing(keys[0], object))
    };
    let said_by = get(["role", "from"])?;
    let Value::String(name) = said_by else {
        return Err(format!("its role is {}, not text", word(said_by)));
    };
    let calls = object.get("tool_calls").is_some_and(|calls| match calls {
        Value::Array(calls) => !calls.is_empty(),
        other => !other.is_null(),
    });
    if calls {
        return Err("it has `tool_calls`, which would be lost".into());
    }
    let content = content(get(["content", "value"])?)?;
    Ok(Message { role: role(name)?.into(), content })
}

/// Text, or parts that are all text.
fn content(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let mut text = String::new();
            for part in parts {
                match part.get("text") {
                    Some(Value::String(piece))
                        if part.get("type").is_none_or(|kind| kind == "text") =>
                    {
                        text.push_str(piece);
                    }
                    _ => return Err("its content has a part that is not text".into()),
                }
            }
            Ok(text)
        }
        other => Err(format!("its content is {}, not text", word(other))),
    }
}

fn role(name: &str) -> Result<&'static str, String> {
    match name.to_ascii_lowercase().as_str() {
        "user" | "human" => Ok("user"),
        "assistant" | "gpt" | "chatgpt" | "model" | "bot" => Ok("assistant"),
        "system" | "developer" => Ok("system"),
        "tool" | "function" | "observation" | "function_response" => Ok("tool"),
        _ => Err(format!("its role `{}` is not known", printable(name))),
    }
}

/// Something to learn from: an answer after something that it answers.
fn sound(messages: Vec<Message>) -> Result<Vec<Message>, String> {
    let says =
        |role: &str| messages.iter().position(|m| m.role == role && !m.content.trim().is_empty());
    if messages.iter().all(|m| m.content.trim().is_empty()) {
        // Empty, not wrong: the caller counts it.
        return Ok(Vec::new());
    }
    match (says("user"), says("assistant")) {
        (_, None) => Err("nothing in it is said by the assistant".into()),
        (None, _) => Err("nothing in it is said by the user".into()),
        (Some(_), Some(_)) => Ok(messages),
    }
}

/// What a value is, in words.
pub(super) fn word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(record: &Value) -> String {
        let messages = messages(record, None).unwrap();
        let turns: Vec<String> =
            messages.iter().map(|m| format!("{}:{}", &m.role[..1], m.content)).collect();
        turns.join("|")
    }

    #[test]
    fn spellings() {
        for (record, expected) in [
            (
                json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "x": 1}]}),
                "u:a|a:b",
            ),
            (
                json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
                "u:a|a:b",
            ),
            (
                json!({"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "ChatGPT", "value": "b"}]}),
                "s:s|u:a|a:b",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "model", "content": "b"}]}),
                "u:a|a:b",
            ),
            (json!({"instruction": "a", "input": "i", "output": "b"}), "u:a\n\ni|a:b"),
            (json!({"instruction": "a", "input": "", "output": "b"}), "u:a|a:b"),
            (json!({"prompt": "a", "completion": "b"}), "u:a|a:b"),
            (json!({"messages": []}), ""),
        ] {
            assert_eq!(told(&record), expected, "{record}");
        }
        let record =
            json!({"chat": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]});
        assert_eq!(messages(&record, Some("chat")).unwrap().len(), 2);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (record, expected) in [
            (json!([1]), "it is a list, not an object"),
            (json!({}), "it has no field `messages`: it is empty"),
            (json!({"a": 1}), "it has no field `messages`; it has `a`"),
            (json!({"messages": "x"}), "`messages`: it is text, not a list of messages"),
            (
                json!({"messages": [{"role": "alien", "content": "a"}]}),
                "`messages`: message 1: its role `alien` is not known",
            ),
            (
                json!({"messages": [{"role": "user"}]}),
                "`messages`: message 1: it has no field `content`; it has `role`",
            ),
            (
                json!({"messages": [{"role": "user", "content": null}]}),
                "`messages`: message 1: its content is null, not text",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "`messages`: message 1: its content has a part that is not text",
            ),
            (
                json!({"messages": [{"role": "user", "content": "a"}]}),
                "`messages`: nothing in it is said by the assistant",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": "a"}]}),
                "`messages`: nothing in it is said by the user",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}),
                "`messages`: message 1: it has `tool_calls`, which would be lost",
            ),
        ] {
            assert_eq!(messages(&record, None).unwrap_err(), expected, "{record}");
        }
    }
}
