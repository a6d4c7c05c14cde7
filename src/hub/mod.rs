//! Models on the Hugging Face Hub: read by ranges, fetched whole, published.
//!
//! A model is named `org/name[@revision]` ([`ModelId`]). Nothing that the Hub sends is trusted: paths are checked before they
//! become files, hashes are hashes before they become names, sizes and ranges are exactly what was asked for, whole files have
//! the SHA-256 (or git's SHA-1, for small files) that the Hub lists, or they get no name. The token goes to the Hub's own origin only.

mod cache;
mod hash;
mod http;
mod id;
mod listing;
mod lock;
mod pull;
pub mod push;
mod range;
mod remote;
mod settings;
mod target;
mod token;
mod transfer;

pub use http::Http;
pub use id::{ModelId, is_commit};
pub use listing::{Hash, Listing, RemoteFile, commit_of, list};
pub use pull::{Into, Pull, Pulled, Selection};
pub use remote::{Hub, Need, Traffic, View};
pub use settings::Settings;
pub use token::Token;

/// Whoever watches a fetch. It is called by the thread that asked for it.
pub trait Watch {
    /// So many bytes of so many have arrived.
    fn progress(&self, done: u64, total: u64);
    /// Something worth knowing.
    fn note(&self, text: &str);
}

/// Nobody watches.
struct Quiet;

impl Watch for Quiet {
    fn progress(&self, _done: u64, _total: u64) {}
    fn note(&self, _text: &str) {}
}

#[cfg(test)]
mod tests;
