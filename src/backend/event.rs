//! Events from text: JSON lines of the protocol, and backends that tell in another form.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protocol::Event;
use crate::error::Result;

/// Progress of a backend that does not write the protocol's events, read as it appears.
pub trait NativeEvents: Send {
    /// What has happened since the last call.
    fn poll(&mut self) -> Result<Vec<Event>>;
}

/// An event from a line of the events file; `None` for a line that is none.
///
/// A derived parser of the tagged form loses fractions here: `serde_json` hands numbers of arbitrary precision on as maps
/// when it buffers. So the tag is read first.
pub fn parse(line: &str) -> Option<Event> {
    let value: Value = serde_json::from_str(line.trim()).ok()?;
    let kind = value.get("event")?.as_str()?;
    if kind == "step" {
        return Some(Event::Step(serde_json::from_value(value).ok()?));
    }
    if kind == "eval" {
        return Some(Event::Eval { step: field(&value, "step")?, loss: field(&value, "loss")? });
    }
    // No fractions in any other; a foreign field must not make the line unreadable.
    let known = ["event", "steps_total", "resumed_at", "step", "dir", "msg", "kind", "status"];
    let kept = value.as_object()?.iter().filter(|(key, _)| known.contains(&key.as_str()));
    let kept = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
    serde_json::from_value(Value::Object(kept)).ok()
}

fn field<T: DeserializeOwned>(value: &Value, name: &str) -> Option<T> {
    serde_json::from_value(value.get(name)?.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{Status, StepEvent};
    use super::*;

    #[test]
    fn fractions_exponents_and_foreign_fields_are_read() {
        let line = r#"{"t":1.5,"event":"step","step":10,"loss":2.310,"lr":5e-06,"x":[1.5]}"#;
        let step = StepEvent { step: 10, loss: Some(2.31), lr: Some(5e-6), ..StepEvent::default() };
        assert_eq!(parse(line), Some(Event::Step(step)));
        let line = r#"{"t":1.5,"event":"start","steps_total":9540}"#;
        assert_eq!(parse(line), Some(Event::Start { steps_total: Some(9540), resumed_at: None }));
        let line = r#"{"t":2.25,"event":"eval","step":3,"loss":1.25}"#;
        assert_eq!(parse(line), Some(Event::Eval { step: 3, loss: 1.25 }));
        let line = r#"{"event":"end","status":"complete","x":0.1}"#;
        assert_eq!(parse(line), Some(Event::End { status: Status::Complete }));
    }

    #[test]
    fn unknown_events_are_unknown_and_half_lines_are_none() {
        assert_eq!(parse(r#"{"event":"dance","x":1.5}"#), Some(Event::Unknown));
        assert_eq!(parse(r#"{"event":"ste"#), None);
        assert_eq!(parse("[1]"), None);
        assert!(parse(r#"{"event":"step","step":1,"loss":null}"#).is_some());
    }
}
