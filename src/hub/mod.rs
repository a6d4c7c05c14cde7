//! Models on the Hugging Face Hub: read by ranges, fetched whole, published.
//!
//! A model is named `org/name[@revision]` ([`ModelId`]). Nothing that the Hub sends is trusted: paths are checked before they
//! become files, hashes are hashes before they become names, sizes and ranges are exactly what was asked for, whole files have
//! the SHA-256 (or git's SHA-1, for small files) that the Hub lists, or they get no name. The token goes to the Hub's own origin only.

mod http;
mod id;
mod listing;
mod settings;
mod token;

pub use http::Http;
pub use id::{ModelId, is_commit};
pub use listing::{Hash, Listing, RemoteFile, commit_of, list};
pub use settings::Settings;
pub use token::Token;
