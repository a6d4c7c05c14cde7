//! Sizes as people write and read them.

/// Reads `5GB`, `500MB` (decimal), `1GiB` (binary), `1.5GB`, or plain bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
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
    match u64::try_from(bytes) {
        Ok(0) => Err("it must be more than 0".into()),
        Ok(bytes) => Ok(bytes),
        Err(_) => Err("it does not fit 64 bits".into()),
    }
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

/// `141.1 GB`, `5.2 MB`, `812 B`: decimal, as disks and shard sizes are counted.
#[expect(clippy::cast_precision_loss, reason = "three or four digits are shown")]
pub(super) fn size(bytes: u64) -> String {
    let value = bytes as f64;
    // A step early, so that rounding never shows `1000.0 MB`.
    match bytes {
        n if n < 1000 => format!("{n} B"),
        n if n < 999_950 => format!("{:.1} kB", value / 1e3),
        n if n < 999_950_000 => format!("{:.1} MB", value / 1e6),
        n if n < 999_995_000_000 => format!("{:.2} GB", value / 1e9),
        _ => format!("{:.2} TB", value / 1e12),
    }
}

/// `1 shard`, `30 shards`.
pub(super) fn counted(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
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
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "GB", "-1", "0", "5XB", "1..2GB", "1.2.3", "99999999999TB", ".5GB", "1e9"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(999_999), "1.0 MB");
        assert_eq!(size(141_107_412_992), "141.11 GB");
        assert_eq!(counted(1, "shard"), "1 shard");
        assert_eq!(counted(0, "shard"), "0 shards");
    }
}
