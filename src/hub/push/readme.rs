//! Whose README.md the repository gets. What a person wrote is never replaced unasked.

use std::io::Read as _;

use serde_json::Value;

use super::super::http::{Call, Http};
use super::super::id::ModelId;
use super::super::listing::{Listing, api, resolve};
use super::card::Origin;
use super::commit::is_same;
use super::{Folder, Target};
use crate::checkpoint::{CARD_FILE, is_sealed, license_in};
use crate::error::Result;

/// A longer card was written by a person.
const LONGEST_CARD: u64 = 1 << 20;

/// Which README.md the repository gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readme {
    /// The directory's.
    Local,
    /// One that is made from the record.
    Made,
    /// The one that it has: a person wrote it.
    Theirs,
    /// None is made, and there is none.
    Nobodys,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CardWish {
    /// A card where nobody has written one.
    #[default]
    Missing,
    /// A new card, whatever is there.
    Always,
    /// None.
    Never,
}

/// Decides. Reads the repository's README.md if it matters who wrote it.
///
/// # Errors
/// [`crate::error::Error::Hub`].
pub fn readme(
    http: &Http,
    target: &Target,
    folder: &Folder,
    head: Option<&Listing>,
    wish: CardWish,
) -> Result<Readme> {
    if wish == CardWish::Always {
        return Ok(Readme::Made);
    }
    let local = folder.file(CARD_FILE);
    let by_hand = match local {
        None => false,
        Some(file) => {
            let card = std::fs::read_to_string(&file.path).unwrap_or_default();
            !is_sealed(&card) && !folder.is_recorded(CARD_FILE)
        }
    };
    if by_hand {
        return Ok(Readme::Local);
    }
    let theirs = head.and_then(|head| Some((head, head.file(CARD_FILE)?)));
    if let Some((head, theirs)) = theirs {
        let same = local.is_some_and(|file| is_same(&file.hashes, theirs.size, &theirs.hash));
        if !same && !is_sealed(&text(http, &target.id, head, theirs.size)?) {
            return Ok(Readme::Theirs);
        }
    }
    Ok(match (local, wish) {
        (Some(_), _) => Readme::Local,
        (None, CardWish::Never) => Readme::Nobodys,
        (None, _) => Readme::Made,
    })
}

/// The repository's README.md; nothing of one that is too long for a card of ours.
fn text(http: &Http, id: &ModelId, head: &Listing, size: u64) -> Result<String> {
    if size > LONGEST_CARD {
        return Ok(String::new());
    }
    let what = format!("{}: {CARD_FILE}", id.repo());
    let answer = http.send(&Call::get(resolve(http, id, &head.commit, CARD_FILE), &what))?;
    let mut bytes = Vec::new();
    // What cannot be read counts as written by a person.
    match answer.body().take(LONGEST_CARD).read_to_end(&mut bytes) {
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(_) => Ok(String::new()),
    }
}

/// Asks the Hub for the licences of models whose cards are not here. What it does not say is left open.
pub fn find_licenses(http: &Http, origins: &mut [Origin]) {
    for origin in origins.iter_mut().filter(|origin| origin.license.is_none()).take(16) {
        if let Some(id) = origin.id.as_deref().and_then(ModelId::parse) {
            origin.license = license(http, &id);
        }
    }
}

fn license(http: &Http, id: &ModelId) -> Option<String> {
    let what = id.to_string();
    let info = http.send(&Call::get(http.url(api(id)), &what)).ok()?.json(&what).ok()?;
    let said = info.get("cardData").and_then(|card| card.get("license")).and_then(Value::as_str);
    let tags = info.get("tags").and_then(Value::as_array).into_iter().flatten();
    let tagged = tags.filter_map(Value::as_str).find_map(|tag| tag.strip_prefix("license:"));
    license_in(&format!("---\nlicense: {}\n---\n", said.or(tagged)?))
}
