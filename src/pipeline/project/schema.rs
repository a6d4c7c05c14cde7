//! The JSON Schema of `elo.yaml`, for editors and for the check of keys.

use serde_json::{Value, json};

use super::Project;

/// The JSON Schema of a project file: every key with its description, none beside them.
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Project).to_value();
    close(&mut schema);
    schema
}

/// Groups with named keys take no others. `serde(flatten)` keeps the derive from saying so itself.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            let named = object.get("properties").is_some_and(Value::is_object);
            if named && !object.contains_key("additionalProperties") {
                object.insert("additionalProperties".into(), json!(false));
            }
            object.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}
