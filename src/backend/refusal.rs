//! What a backend cannot do, said before anything is started.

use std::path::Path;

use crate::error::{Error, Result};

/// A refusal: what, why, and the way out.
pub(super) fn refused(
    what: impl Into<String>,
    reason: impl Into<String>,
    hint: impl Into<String>,
) -> Error {
    Error::Unsupported { what: what.into(), reason: reason.into(), hint: hint.into() }
}

/// A path as text for a configuration file.
pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        refused(
            format!("`{}`", path.display()),
            "the path is not UTF-8, which configuration files need",
            "move it to a path in UTF-8",
        )
    })
}
