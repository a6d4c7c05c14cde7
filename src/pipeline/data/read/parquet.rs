//! Parquet: one column of text, or of chats.

use std::fs::File;

use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row, RowAccessor as _};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::{Place, Take};
use crate::error::{Error, IoContext as _, Result, printable};
use crate::pipeline::data::inputs::{Input, Kind};
use crate::pipeline::data::record::Record;
use crate::pipeline::data::{Watch, chat};

/// Columns that together are a chat, where there is no list of messages.
const CHAT_COLUMNS: [&str; 11] = [
    "messages",
    "conversations",
    "conversation",
    "system",
    "instruction",
    "input",
    "output",
    "prompt",
    "response",
    "completion",
    "question",
];

pub(super) fn read(input: &Input, watch: &dyn Watch, take: &mut Take<'_>) -> Result<()> {
    let path = &input.path;
    let wrong = |error: &ParquetError| Error::Data {
        path: path.clone(),
        line: None,
        problem: format!("it is not readable Parquet: {}", printable(&error.to_string())),
        hint: String::new(),
    };
    let file = File::open(path).at("open", path)?;
    let reader = SerializedFileReader::new(file).map_err(|e| wrong(&e))?;
    let facts = reader.metadata().file_metadata();
    let projection = projection(input, facts.schema())?;
    let total = u64::try_from(facts.num_rows()).unwrap_or(0);
    let rows = RowIter::from_file(Some(projection), &reader).map_err(|e| wrong(&e))?;
    for (row, number) in rows.zip(1_u64..) {
        if number % 256 == 1 {
            if watch.stop() {
                return Err(Error::Interrupted { resumable: true });
            }
            let done = u128::from(input.size) * u128::from(number) / u128::from(total.max(1));
            watch.reading(path, u64::try_from(done).unwrap_or(input.size), input.size);
        }
        let row = row.map_err(|e| wrong(&e))?;
        if !one(input, &row, &mut |record| take(Place::Row(number), record))? {
            break;
        }
    }
    Ok(())
}

/// The columns that are wanted.
fn projection(input: &Input, schema: &Type) -> Result<Type> {
    let names = || schema.get_fields().iter().map(|field| field.name());
    let wanted = |name: &str| match (&input.field, input.kind) {
        (Some(field), _) => name == field,
        (None, Kind::Text) => name == "text",
        (None, Kind::Chat) => CHAT_COLUMNS.contains(&name) || name == "answer",
    };
    let fields: Vec<_> =
        schema.get_fields().iter().filter(|field| wanted(field.name())).cloned().collect();
    let field = input.field.as_deref().unwrap_or(match input.kind {
        Kind::Text => "text",
        Kind::Chat => "messages",
    });
    if fields.is_empty() {
        return Err(Error::Data {
            path: input.path.clone(),
            line: None,
            problem: chat::missing_among(field, names()).replace("field", "column"),
            hint: "name the column with `field`".into(),
        });
    }
    Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(|e| Error::Data {
        path: input.path.clone(),
        line: None,
        problem: printable(&e.to_string()),
        hint: String::new(),
    })
}

fn one(
    input: &Input,
    row: &Row,
    take: &mut dyn FnMut(Result<Record<'_>, String>) -> Result<bool>,
) -> Result<bool> {
    match input.kind {
        Kind::Text => {
            if let Ok(text) = row.get_string(0) {
                return take(Ok(Record::Text(text)));
            }
            let name = input.field.as_deref().unwrap_or("text");
            match row.get_column_iter().next().map(|(_, field)| value(field)) {
                Some(Ok(Value::String(text))) => take(Ok(Record::Text(&text))),
                Some(Ok(other)) => {
                    take(Err(format!("its column `{name}` is {}, not text", chat::word(&other))))
                }
                Some(Err(problem)) => take(Err(problem)),
                None => take(Err(format!("it has no column `{name}`"))),
            }
        }
        Kind::Chat => {
            let mut object = Map::new();
            for (name, field) in row.get_column_iter() {
                match value(field) {
                    Ok(value) => object.insert(name.clone(), value),
                    Err(problem) => return take(Err(problem)),
                };
            }
            match chat::messages(&Value::Object(object), input.field.as_deref()) {
                Ok(messages) => take(Ok(Record::Chat(&messages))),
                Err(problem) => take(Err(problem)),
            }
        }
    }
}

/// Text, lists and groups as JSON; other values only as far as messages name them.
fn value(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(*b),
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(error) => return Err(super::lines::not_utf8(&error)),
        },
        Field::Group(row) => {
            let entries =
                row.get_column_iter().map(|(name, field)| Ok((name.clone(), value(field)?)));
            Value::Object(entries.collect::<Result<_, String>>()?)
        }
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(value).collect::<Result<_, String>>()?)
        }
        _ => Value::from(0),
    })
}

/// Uncompressed bytes of the wanted columns, by the file's footer.
pub(super) fn text_bytes(input: &Input) -> Option<u64> {
    let reader = SerializedFileReader::new(File::open(&input.path).ok()?).ok()?;
    let projection = projection(input, reader.metadata().file_metadata().schema()).ok()?;
    let wanted: Vec<&str> = projection.get_fields().iter().map(|field| field.name()).collect();
    let columns = reader.metadata().row_groups().iter().flat_map(RowGroupMetaData::columns);
    let is_wanted = |path: &[String]| path.first().is_some_and(|n| wanted.contains(&n.as_str()));
    let sizes = columns
        .filter(|column| is_wanted(column.column_path().parts()))
        .map(|column| u64::try_from(column.uncompressed_size()).unwrap_or(0));
    Some(sizes.sum())
}
