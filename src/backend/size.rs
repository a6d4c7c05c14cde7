//! Numbers of bytes as people write them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A number of bytes: `1073741824`, `1GB`, `1GiB`, `500MB`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// With a unit.
    Text(String),
}

impl Size {
    /// Its bytes. The error says how sizes are written.
    pub fn bytes(&self) -> Result<u64, String> {
        match self {
            Self::Bytes(bytes) => Ok(*bytes),
            Self::Text(text) => read(text),
        }
    }
}

/// Reads `5GB`, `500MB` (decimal), `1GiB` (binary), `1.5GB`, or plain bytes; never 0.
pub fn parse_size(text: &str) -> Result<u64, String> {
    match read(text)? {
        0 => Err("it must be more than 0".into()),
        bytes => Ok(bytes),
    }
}

fn read(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor: u128 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000 * 1000,
        "gb" => 1000 * 1000 * 1000,
        "tb" => 1000 * 1000 * 1000 * 1000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err("sizes look like `5GB`, `500MB`, `1GiB` or a number of bytes".into()),
    };
    let bytes = scaled(number, factor).ok_or("sizes look like `5GB`, `500MB`, `1GiB`")?;
    u64::try_from(bytes).map_err(|_| "it does not fit 64 bits".into())
}

/// A decimal number times a factor, exactly, rounded down.
fn scaled(number: &str, factor: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || whole.len() > 20 || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let mut bytes = whole.parse::<u128>().ok()?.checked_mul(factor)?;
    if !fraction.is_empty() {
        let denominator = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        bytes += fraction.parse::<u128>().ok()? * factor / denominator;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("5GB", 5_000_000_000),
            ("500mb", 500_000_000),
            ("1GiB", 1 << 30),
            ("1.5 GB", 1_500_000_000),
            ("4096", 4096),
            ("0.5KiB", 512),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(Size::Text(text.into()).bytes(), Ok(bytes), "{text}");
        }
        assert_eq!(Size::Text("0MB".into()).bytes(), Ok(0));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "GB", "-1", "0", "5XB", "1..2GB", "1.2.3", "99999999999TB", ".5GB", "1e9"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
