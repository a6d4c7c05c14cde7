//! How a backend is started and stopped.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// A process to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Program and arguments.
    pub program: Vec<OsString>,
    /// Environment to add.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub directory: PathBuf,
    /// How it is told to stop.
    pub stop: Stop,
}

/// How a backend is told to write a checkpoint and end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM to the leader of its process group; launchers pass it on.
    Terminate,
    /// Touch a file, wait for a checkpoint, then SIGTERM.
    TouchThenTerminate {
        /// The file it looks for.
        file: PathBuf,
    },
}
