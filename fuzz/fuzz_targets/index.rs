//! Any bytes as a `model.safetensors.index.json`: no panic, and no path that leads out of the directory.

#![no_main]

use std::path::{Component, Path};

use elo_surgery::format::Index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(index) = Index::parse(data) else { return };
    for shard in index.shards() {
        let path = Path::new(shard);
        assert!(path.components().all(|c| matches!(c, Component::Normal(_))), "{shard:?} escapes");
        assert!(Path::new("/root/model").join(path).starts_with("/root/model"), "{shard:?} escapes");
        assert!(!shard.contains('\0') && shard.ends_with(".safetensors"), "{shard:?} is no shard");
    }
    let again = Index::parse(&index.to_bytes()).expect("a written index reads back");
    assert_eq!(again.weight_map, index.weight_map);
    assert_eq!(again.total_size, Some(index.total_size.unwrap_or_default()));
});
