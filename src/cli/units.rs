//! Sizes as people write and read them.

pub(super) use crate::backend::parse_size;

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
    fn sizes_are_shown() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(999_999), "1.0 MB");
        assert_eq!(size(141_107_412_992), "141.11 GB");
        assert_eq!(counted(1, "shard"), "1 shard");
        assert_eq!(counted(0, "shard"), "0 shards");
    }
}
