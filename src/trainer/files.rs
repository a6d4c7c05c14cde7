//! Writing files that are whole or absent: into a directory beside the target, flushed, then renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};

/// A directory in the making. Dropped before [`Draft::publish`], it is removed.
pub(super) struct Draft {
    dir: PathBuf,
    target: PathBuf,
}

impl Draft {
    /// Begins a directory that will appear at `target`. What an earlier run left half-made is removed.
    pub(super) fn begin(target: &Path) -> Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let dir = parent(target).join(format!(".{name}.unfinished"));
        if dir.exists() {
            fs::remove_dir_all(&dir).at("remove", &dir)?;
        }
        fs::create_dir_all(&dir).at("create", &dir)?;
        Ok(Self { dir, target: target.to_owned() })
    }

    /// Writes a file of the directory through `fill`, and flushes it.
    pub(super) fn write(
        &self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> Result<()> {
        let path = self.dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).at("create", parent)?;
        }
        let file = File::create_new(&path).at("create", &path)?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        fill(&mut writer).at("write", &path)?;
        let file = writer.into_inner().map_err(std::io::IntoInnerError::into_error);
        file.at("write", &path)?.sync_all().at("flush", &path)
    }

    /// Lets the directory appear.
    pub(super) fn publish(self) -> Result<()> {
        let flush = |dir: &Path| File::open(dir).and_then(|d| d.sync_all()).at("flush", dir);
        flush(&self.dir)?;
        if self.target.exists() {
            return Err(Error::OutputExists { path: self.target.clone() });
        }
        fs::rename(&self.dir, &self.target).at("rename", &self.target)?;
        flush(&parent(&self.target))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After publishing there is nothing under this name. A failure leaves what the next run removes.
        drop(fs::remove_dir_all(&self.dir));
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("made");
        let draft = Draft::begin(&target).unwrap();
        draft.write("sub/a", |w| w.write_all(b"1")).unwrap();
        drop(draft);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "dropped drafts leave nothing");
        let draft = Draft::begin(&target).unwrap();
        draft.write("sub/a", |w| w.write_all(b"1")).unwrap();
        assert!(!target.exists());
        draft.publish().unwrap();
        assert_eq!(fs::read(target.join("sub/a")).unwrap(), b"1");
        let again = Draft::begin(&target).unwrap().publish();
        assert!(matches!(again, Err(Error::OutputExists { .. })));
    }
}
