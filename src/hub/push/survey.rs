//! What the Hub has where something is to be published. Looking changes nothing.

use serde_json::Value;

use super::super::http::{Call, Http};
use super::super::id::{ModelId, is_commit};
use super::super::listing::{Listing, api, commit_of, list};
use super::Target;
use super::account::cannot_offline;
use crate::error::{Error, HubFailure, Result};

/// What there is.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Whether the repository exists, and whether it is private.
    pub repository: Option<Visibility>,
    /// Whether the branch exists.
    pub branch: bool,
    /// The head of the branch; of `main`, from where it will start, if the branch does not exist. None in a repository without commits.
    pub head: Option<Listing>,
    /// The name that the Hub has the repository under now, if it was renamed.
    pub renamed: Option<ModelId>,
}

/// Who sees a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody.
    Public,
    /// Its members.
    Private,
}

/// Fails if the network must not be used.
///
/// # Errors
/// [`Error::Hub`] of kind `Offline`.
pub fn refuse_offline(http: &Http, target: &Target) -> Result<()> {
    if http.settings().offline { Err(cannot_offline(target.id.repo())) } else { Ok(()) }
}

/// Looks at the target.
///
/// # Errors
/// What the Hub refuses; a private publication to a repository that everybody sees.
pub fn survey(http: &Http, target: &Target) -> Result<Survey> {
    refuse_offline(http, target)?;
    let what = target.id.repo();
    let url = http.url(api(&target.id));
    let (info, redirected) = match http.send(&Call::get(url.clone(), what)) {
        Ok(answer) => {
            let redirected = answer.url().path() != url.path();
            (answer.json(what)?, redirected)
        }
        Err(Error::Hub { kind: HubFailure::Missing, .. }) => {
            return Ok(Survey { repository: None, branch: false, head: None, renamed: None });
        }
        Err(error) => return Err(error),
    };
    // Redirects are followed for reading; what writes goes to the new name.
    let name = info.get("id").and_then(Value::as_str).and_then(ModelId::parse);
    let renamed =
        name.filter(|name| redirected && name.revision().is_none() && *name.repo() != *what);
    let id = renamed.as_ref().map_or_else(|| target.at_branch(), |name| name.at(target.branch()));
    let what = id.repo();
    let private = info.get("private").and_then(Value::as_bool) == Some(true);
    let visibility = if private { Visibility::Private } else { Visibility::Public };
    if target.private && !private {
        return Err(Error::Hub {
            what: what.to_owned(),
            kind: HubFailure::Refused,
            problem: "the repository exists and everybody can see it, but `--private` was asked for".into(),
            hint: "make it private in its settings on the Hub, or choose another repository, or leave out `--private`"
                .into(),
        });
    }
    let repository = Some(visibility);
    let main =
        info.get("sha").and_then(Value::as_str).filter(|sha| is_commit(sha)).map(str::to_owned);
    let (head, branch) = match commit_of(http, &id) {
        Ok(head) => (Some(head), true),
        Err(Error::Hub { kind: HubFailure::Missing, .. }) => (main, false),
        Err(error) => return Err(error),
    };
    let head = head.map(|head| list(http, &id, &head)).transpose()?;
    Ok(Survey { repository, branch, head, renamed })
}
