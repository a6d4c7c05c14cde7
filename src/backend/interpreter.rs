//! The Python behind a command, and the versions of what is installed for it, without importing any of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::BackendSettings;
use super::discovery::{search_path, which};
use super::external::answer;

/// Prints `name=version` for every argument that is an installed distribution.
const PROBE: &str = "import sys, importlib.metadata as m
for name in sys.argv[1:]:
    try:
        print(name + '=' + m.version(name))
    except m.PackageNotFoundError:
        pass
";

/// What is installed for a Python.
pub(super) struct Installed {
    versions: BTreeMap<String, String>,
}

impl Installed {
    /// Asks an interpreter for versions.
    pub(super) fn ask(
        python: &Path,
        packages: &[&str],
        settings: &BackendSettings,
    ) -> Result<Self, String> {
        let mut command = Command::new(python);
        command.arg("-c").arg(PROBE).args(packages).envs(&settings.env);
        let told = answer(command, Duration::from_secs(5))
            .map_err(|error| format!("could not run `{}`: {error}", python.display()))?;
        if !told.status.is_some_and(|status| status.success()) {
            return Err(format!("`{}` {}", python.display(), told.failure()));
        }
        let pairs = told.out.lines().filter_map(|line| line.split_once('='));
        Ok(Self { versions: pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect() })
    }

    /// Version of a package.
    pub(super) fn version(&self, package: &str) -> Option<&str> {
        self.versions.get(package).map(String::as_str)
    }

    /// Whether a package is there.
    pub(super) fn has(&self, package: &str) -> bool {
        self.versions.contains_key(package)
    }
}

/// The interpreter in the first lines of an installed script.
pub(super) fn of_script(script: &Path, settings: &BackendSettings) -> Option<PathBuf> {
    let mut head = vec![0; 1024];
    let read = File::open(script).ok()?.read(&mut head).ok()?;
    let text = String::from_utf8_lossy(&head[..read]).into_owned();
    let mut lines = text.lines();
    let first = lines.next()?.strip_prefix("#!")?.trim();
    if first == "/bin/sh" {
        // pip's form for long paths: '''exec' "/path/to/python" "$0" "$@"
        let rest = lines.next()?.strip_prefix("'''exec' ")?;
        let path = rest.trim_start_matches('"').split(['"', ' ']).next()?;
        return Some(PathBuf::from(path));
    }
    let mut words = first.split_whitespace();
    let program = words.next()?;
    if program.ends_with("/env") {
        return which(words.next()?, &search_path(settings));
    }
    program.contains("python").then(|| PathBuf::from(program))
}
