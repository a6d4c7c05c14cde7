//! What stands for the Hub in builds without it: ids of its models are refused by name.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::failure::Failure;
use super::session::Session;
use crate::checkpoint::Checkpoint;
use crate::pipeline::project::Loaded;
use crate::plan::Plan;

/// No Hub.
#[derive(Debug)]
pub(super) struct Access;

/// A model argument: where it is, and what it is called if that is something else.
pub(super) struct Placed {
    pub(super) path: PathBuf,
    pub(super) name: Option<String>,
}

/// Nothing is ever fetched.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outlook {}

/// Nothing ever is.
pub(super) type Traffic = Outlook;

impl Outlook {
    pub(super) fn line(self) -> String {
        match self {}
    }

    pub(super) fn json(self) -> Value {
        match self {}
    }
}

#[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as with the Hub")]
impl Access {
    pub(super) fn new(_offline: bool) -> Self {
        Self
    }

    pub(super) fn place(&self, path: &Path, _session: &Session) -> Result<Placed, Failure> {
        Ok(Placed { path: path.to_owned(), name: None })
    }

    pub(super) fn settle(
        &self,
        _loaded: &mut Loaded,
        _whole: bool,
        _session: &Session,
    ) -> Result<(), Failure> {
        Ok(())
    }

    pub(super) fn id_in(_loaded: &Loaded, _model: &Path) -> Option<()> {
        None
    }

    pub(super) fn is_remote(&self, _path: &Path) -> bool {
        false
    }

    pub(super) fn fetch_for(&self, _plan: &Plan, _session: &Session) -> Result<(), Failure> {
        Ok(())
    }

    pub(super) fn fetch_all_of(
        &self,
        _models: &[&Checkpoint],
        _session: &Session,
    ) -> Result<(), Failure> {
        Ok(())
    }

    pub(super) fn would_fetch(&self, _plan: &Plan) -> bool {
        false
    }

    pub(super) fn outlook(&self, _plan: &Plan) -> Result<Option<Outlook>, Failure> {
        Ok(None)
    }

    pub(super) fn traffic(&self) -> Option<Traffic> {
        None
    }
}
