//! Cuts configs to some of their layers: one JSON request a line on standard input, one answer a line.
//!
//! A request is `{"config": {...}, "keep": [0, 5], "names": ["model.layers.0.mlp.up_proj.weight"]}`,
//! layers counted from 0; `names` may be left out. The answer is `{"config": {...}, "notes": [...]}`
//! or `{"error": "..."}`.

use std::io::{self, BufRead, Write};

use elo_surgery::checkpoint::{Anatomy, keep_layers};
use serde_json::{Map, Value, json};

fn main() -> io::Result<()> {
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let answer = answer(&line?).unwrap_or_else(|error| json!({ "error": error }));
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

fn answer(line: &str) -> Result<Value, String> {
    let request: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| error.to_string())?;
    let config = request.get("config").and_then(Value::as_object);
    let config = config.ok_or("`config` is missing")?;
    let list = |key: &str| request.get(key).and_then(Value::as_array).into_iter().flatten();
    let keep: Vec<u64> = list("keep").filter_map(Value::as_u64).collect();
    let names = list("names").filter_map(Value::as_str);
    let anatomy = Anatomy::resolve(Some(config), names).map_err(|error| error.to_string())?;
    let kept = keep_layers(config, &anatomy, &keep).map_err(|error| error.to_string())?;
    Ok(json!({ "config": kept.config, "notes": kept.notes }))
}
