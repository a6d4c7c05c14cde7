//! Who publishes, and the repository and branch it goes to: what hf-hub does for us.
//!
//! The crate is given the endpoint, the token and a client of ours: it reads nothing from the environment, follows no
//! redirect, and waits no longer than we do.

use hf_hub::{HFClient, HFClientSync, HFError, RepoTypeModel};
use reqwest::redirect::Policy;

use super::super::http::{Http, broken, causes, offline};
use super::super::id::ModelId;
use crate::error::{Error, HubFailure, Result, printable};

/// The Hub, as the owner of a token sees it.
pub(super) struct Account {
    client: HFClientSync,
    /// The user's name.
    pub(super) user: String,
}

impl Account {
    /// Asks whose token it is.
    pub(super) fn of(http: &Http, id: &ModelId) -> Result<Self> {
        let what = id.repo();
        let settings = http.settings();
        if settings.offline {
            return Err(cannot_offline(what));
        }
        let token = settings.token.as_ref().ok_or_else(|| Error::Hub {
            what: what.to_owned(),
            kind: HubFailure::Refused,
            problem: "nobody is signed in, and nothing is published without".into(),
            hint: "sign in with `hf auth login`, or set `HF_TOKEN` to a token that may write"
                .into(),
        })?;
        let made = reqwest::Client::builder()
            .redirect(Policy::none())
            .connect_timeout(settings.connect)
            .timeout(settings.silence)
            .build()
            .map_err(|error| broken(what, &format!("no client can be made: {error}")))?;
        let client = HFClient::builder()
            .endpoint(settings.endpoint.clone())
            .token(token.reveal())
            .user_agent(concat!("elo-surgery/", env!("CARGO_PKG_VERSION")))
            .client(made)
            .cache_dir(settings.cache.clone())
            .cache_enabled(false)
            .retry_max_attempts(usize::try_from(settings.retries).unwrap_or(5))
            .retry_base_delay(settings.first_wait)
            .build_sync()
            .map_err(|error| failure(what, &error))?;
        http.check_cancelled()?;
        let user = client.whoami().send().map_err(|error| failure(what, &error))?;
        Ok(Self { client, user: printable(&user.username) })
    }

    /// Makes the repository unless it is there.
    pub(super) fn create_repository(&self, id: &ModelId, private: bool) -> Result<()> {
        let request = self.client.create_repository().repo_id(id.repo()).repo_type(RepoTypeModel);
        let made = request.private(private).exist_ok(true).send();
        made.map(drop).map_err(|error| failure(id.repo(), &error))
    }

    /// Makes a branch that starts at a commit, unless it is there.
    pub(super) fn create_branch(&self, id: &ModelId, branch: &str, commit: &str) -> Result<()> {
        let (owner, name) = hf_hub::split_id(id.repo());
        let repository = self.client.model(owner, name);
        match repository.create_branch().branch(branch).revision(commit).send() {
            // Somebody else was faster; the head is looked up afterwards.
            Ok(()) | Err(HFError::Conflict { .. }) => Ok(()),
            Err(error) => Err(failure(&format!("{}@{branch}", id.repo()), &error)),
        }
    }
}

/// Publishing cannot wait for a network that must not be used.
pub(super) fn cannot_offline(what: &str) -> Error {
    match offline(what) {
        Error::Hub { what, kind, .. } => Error::Hub {
            what,
            kind,
            problem: "nothing can be published, as this run is offline".into(),
            hint: "run without `--offline` and `HF_HUB_OFFLINE`".into(),
        },
        other => other,
    }
}

/// hf-hub's failures in our words. Its own hold addresses, which are left out.
fn failure(what: &str, error: &HFError) -> Error {
    let said = |message: Option<&String>| match message {
        Some(message) if !message.is_empty() => format!(": {}", printable(message)),
        _ => String::new(),
    };
    let again = "run the same command again: nothing that was done is lost";
    let rights = "use a token that may write to it: `hf auth login`, or `HF_TOKEN`";
    let (kind, problem, hint) = match error {
        HFError::AuthRequired { context } => (
            HubFailure::Refused,
            format!("the Hub does not take the token{}", said(context.server_message.as_ref())),
            "sign in anew with `hf auth login`, or set `HF_TOKEN`".to_owned(),
        ),
        HFError::Forbidden { context } => (
            HubFailure::Refused,
            format!("the Hub does not allow it{}", said(context.server_message.as_ref())),
            rights.to_owned(),
        ),
        HFError::RepoNotFound { context, .. } => (
            HubFailure::Missing,
            format!(
                "the Hub has no such repository, or no such organization{}",
                said(context.as_ref().and_then(|context| context.server_message.as_ref()))
            ),
            format!("check the name; {rights}"),
        ),
        HFError::RateLimited { retry_after, context } => {
            let wait =
                retry_after.map(|time| format!("; it asks to wait {} seconds", time.as_secs()));
            let wait = wait.unwrap_or_default();
            (
                HubFailure::Network,
                format!("too many requests{}{wait}", said(context.server_message.as_ref())),
                again.to_owned(),
            )
        }
        HFError::Conflict { context } | HFError::Http { context } => {
            let problem = format!(
                "the Hub answered {}{}",
                context.status,
                said(context.server_message.as_ref())
            );
            (HubFailure::Network, problem, again.to_owned())
        }
        HFError::Request { source, .. } if source.is_timeout() => {
            (HubFailure::Network, "the Hub did not answer in time".to_owned(), again.to_owned())
        }
        HFError::Request { source, .. } => {
            let problem = format!("the Hub could not be reached: {}", causes(source));
            (HubFailure::Network, problem, again.to_owned())
        }
        _ => (HubFailure::Corrupt, "the Hub's answer makes no sense".to_owned(), again.to_owned()),
    };
    Error::Hub { what: what.to_owned(), kind, problem, hint }
}
