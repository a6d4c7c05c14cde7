//! JSON lines, and JSON arrays of records.

use std::borrow::Cow;
use std::fmt;
use std::io::BufRead;

use serde::de::{
    self, DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::Value;

use super::lines::{Lines, refuse_utf16};
use super::{Place, Take};
use crate::error::{Error, IoContext as _, Result, printable};
use crate::pipeline::data::chat;
use crate::pipeline::data::inputs::{Input, Kind};
use crate::pipeline::data::record::Record;

pub(super) fn read(input: &Input, reader: &mut impl BufRead, take: &mut Take<'_>) -> Result<()> {
    let start = reader.fill_buf().at("read", &input.path)?;
    refuse_utf16(start, &input.path)?;
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let is_array = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if is_array {
        let mark = start.len() - text.len();
        reader.consume(mark);
        return array(input, reader, take);
    }
    let mut lines = Lines::new(reader, &input.path);
    loop {
        let number = lines.number + 1;
        let go_on = match lines.next()? {
            None => return Ok(()),
            Some(Ok(line)) if line.trim().is_empty() => true,
            Some(Ok(line)) => {
                one_line(input, line, &mut |record| take(Place::Line(number), record))?
            }
            Some(Err(problem)) => take(Place::Line(number), Err(problem))?,
        };
        if !go_on {
            return Ok(());
        }
    }
}

type TakeOne<'a> = dyn FnMut(Result<Record<'_>, String>) -> Result<bool> + 'a;

fn one_line(input: &Input, line: &str, take: &mut TakeOne<'_>) -> Result<bool> {
    let field = input.field.as_deref();
    match input.kind {
        Kind::Text => {
            let seed = TextField(field.unwrap_or("text"));
            let mut json = serde_json::Deserializer::from_str(line);
            let found = seed.deserialize(&mut json).and_then(|found| json.end().map(|()| found));
            match found {
                Ok(Ok(text)) => take(Ok(Record::Text(&text))),
                Ok(Err(problem)) => take(Err(problem)),
                Err(error) => take(Err(not_json(&error))),
            }
        }
        Kind::Chat => match serde_json::from_str::<Value>(line) {
            Ok(value) => one_value(input, &value, take),
            Err(error) => take(Err(not_json(&error))),
        },
    }
}

fn one_value(input: &Input, value: &Value, take: &mut TakeOne<'_>) -> Result<bool> {
    let field = input.field.as_deref();
    match input.kind {
        Kind::Text => match text_of(value, field.unwrap_or("text")) {
            Ok(text) => take(Ok(Record::Text(text))),
            Err(problem) => take(Err(problem)),
        },
        Kind::Chat => match chat::messages(value, field) {
            Ok(messages) => take(Ok(Record::Chat(&messages))),
            Err(problem) => take(Err(problem)),
        },
    }
}

fn text_of<'a>(value: &'a Value, field: &str) -> Result<&'a str, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Object(object) => match object.get(field) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(format!("its field `{field}` is {}, not text", chat::word(other))),
            None => Err(chat::missing(field, object)),
        },
        other => Err(format!("it is {}, not an object", chat::word(other))),
    }
}

fn not_json(error: &serde_json::Error) -> String {
    let told = error.to_string();
    let told = told.split(" at line").next().unwrap_or(&told);
    format!("it is not valid JSON: {} (column {})", printable(told), error.column())
}

/// An array of any length, an element at a time.
fn array(input: &Input, reader: &mut impl BufRead, take: &mut Take<'_>) -> Result<()> {
    let mut failed = None;
    let elements = Elements { input, take, failed: &mut failed };
    let mut json = serde_json::Deserializer::from_reader(reader);
    let read = json.deserialize_seq(elements).and_then(|ended| match ended {
        Ended::Early => Ok(()),
        Ended::AtEnd => json.end(),
    });
    match (failed, read) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) if error.is_io() => {
            let source = std::io::Error::from(error);
            Err(Error::Io { action: "read", path: input.path.clone(), source })
        }
        (None, Err(error)) => Err(Error::Data {
            path: input.path.clone(),
            line: Some(error.line() as u64),
            problem: not_json(&error),
            hint: "a `.json` file is an array of records, or one record a line".into(),
        }),
    }
}

enum Ended {
    Early,
    AtEnd,
}

struct Elements<'a, 'b> {
    input: &'a Input,
    take: &'a mut Take<'b>,
    failed: &'a mut Option<Error>,
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = Ended;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Ended, A::Error> {
        let mut row = 0;
        while let Some(value) = elements.next_element::<Value>()? {
            row += 1;
            let mut take =
                |record: Result<Record<'_>, String>| (self.take)(Place::Row(row), record);
            match one_value(self.input, &value, &mut take) {
                Ok(true) => {}
                Ok(false) => return Ok(Ended::Early),
                Err(error) => {
                    *self.failed = Some(error);
                    return Err(de::Error::custom("stopped"));
                }
            }
        }
        Ok(Ended::AtEnd)
    }
}

/// The text of one field of an object; the others are passed over without being built.
struct TextField<'f>(&'f str);

impl<'de> DeserializeSeed<'de> for TextField<'_> {
    type Value = Result<Cow<'de, str>, String>;

    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TextField<'_> {
    type Value = Result<Cow<'de, str>, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        let mut keys: Vec<String> = Vec::new();
        while let Some(key) = entries.next_key::<Cow<'de, str>>()? {
            if key == self.0 {
                found = Some(entries.next_value_seed(Text)?);
            } else {
                if keys.len() < 8 {
                    keys.push(key.into_owned());
                }
                entries.next_value::<IgnoredAny>()?;
            }
        }
        Ok(match found {
            Some(Ok(text)) => Ok(text),
            Some(Err(word)) => Err(format!("its field `{}` is {word}, not text", self.0)),
            None => Err(chat::missing_among(self.0, keys.iter().map(String::as_str))),
        })
    }
}

/// Text, or what else it is.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Result<Cow<'de, str>, &'static str>;

    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Result<Cow<'de, str>, &'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Ok(Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Ok(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Err("null"))
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Err("true or false"))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Err("a number"))
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Err("a number"))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Err("a number"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Err("a list"))
    }

    // Numbers of any precision come this way, too.
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Err("a number or an object"))
    }
}
