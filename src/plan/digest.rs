//! The identity of a plan: equal digests make equal outputs from equal sources.

use super::Plan;

pub(super) fn digest(plan: &Plan) -> String {
    let mut portable = plan.clone();
    for source in &mut portable.sources {
        source.identity.dev = 0;
        source.identity.ino = 0;
        source.identity.mtime_ns = 0;
        source.path = source.path.file_name().map(Into::into).unwrap_or_default();
    }
    for sidecar in &mut portable.sidecars {
        if let super::SidecarContent::Copy { path, .. } = &mut sidecar.content {
            *path = path.file_name().map(Into::into).unwrap_or_default();
        }
    }
    for parent in &mut portable.parents {
        parent.model.clear();
    }
    // Serialising a tree of plain data to memory cannot fail; an empty digest would match nothing.
    let json = serde_json::to_vec(&portable).unwrap_or_default();
    blake3::hash(&json).to_hex().to_string()
}
