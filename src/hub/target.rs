//! A file on its way: where its bytes come from, what they must be, and how it gets its name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use reqwest::Url;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::{beside, clear_remains, link, remove};
use super::hash::{blob, hex};
use super::http::{Http, corrupt};
use super::listing::Hash;
use crate::error::{Error, IoContext, Result, printable};
use crate::format::{Fetched, Ranges, free_bytes, record_of};

/// A file of the Hub that is partly here, or will be.
#[derive(Debug)]
pub(super) struct Target {
    /// For errors: `org/name: model.safetensors`.
    pub(super) what: String,
    /// Its address on the Hub.
    pub(super) url: Url,
    /// The commit in that address.
    pub(super) commit: String,
    pub(super) size: u64,
    pub(super) hash: Hash,
    /// Where its bytes gather.
    pub(super) partial: PathBuf,
    /// Its name once it is whole and verified.
    pub(super) whole: PathBuf,
    /// Where a link from `partial` leads that stays for those who know the file by that name.
    pub(super) forward: Option<PathBuf>,
    /// The kept list that says all this, to be forgotten when it proves wrong.
    pub(super) list: PathBuf,
    source: Mutex<Option<Source>>,
    /// The entity tag that the bytes had at each host.
    tags: Mutex<BTreeMap<String, String>>,
}

/// What of a file that is wanted is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// Something is missing.
    Lacking,
    /// All of the file is here and wanted, but it lacks the check that gives it its name.
    Unnamed,
    /// Nothing is left to do.
    Here,
}

/// Where the Hub led the last request to. Such addresses are signed and expire.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) url: Url,
    /// The strong entity tag that the bytes had there.
    pub(super) tag: Option<String>,
}

impl Target {
    pub(super) fn new(
        what: String,
        url: Url,
        commit: &str,
        (size, hash): (u64, Hash),
        (partial, whole, forward): (PathBuf, PathBuf, Option<PathBuf>),
        list: PathBuf,
    ) -> Self {
        let (commit, source, tags) = (commit.to_owned(), Mutex::new(None), Mutex::default());
        Self { what, url, commit, size, hash, partial, whole, forward, list, source, tags }
    }

    /// Where to ask: where the last answer came from, else the Hub.
    pub(super) fn source(&self) -> Option<Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps where the bytes are.
    pub(super) fn set_source(&self, source: Source) {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
    }

    /// Forgets where the bytes are no longer, unless somebody has found a newer address meanwhile.
    pub(super) fn forget(&self, gone: &Source) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        source.take_if(|source| source.url == gone.url);
    }

    /// Fails if a host now has other bytes than before. What has arrived is thrown away then: nobody can tell which are right.
    pub(super) fn check_tag(&self, url: &Url, tag: &str) -> Result<()> {
        let mut tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            tags.entry(url.origin().ascii_serialization()).or_insert_with(|| tag.to_owned());
        if known == tag {
            return Ok(());
        }
        let (known, tag) = (printable(known), printable(tag));
        self.discard()?;
        Err(corrupt(
            &self.what,
            format!("it changed while it was fetched: it was `{known}`, now it is `{tag}`"),
        ))
    }

    fn discard(&self) -> Result<()> {
        remove(&self.partial)?;
        remove(&record_of(&self.partial))
    }

    /// Forgets the list that this comes from: the next run asks the Hub again.
    pub(super) fn distrust(&self) {
        // What cannot be removed is asked for by hand soon enough.
        let _ = remove(&self.list);
    }

    /// Whether the whole file has its name. In a cache its name says what it is; elsewhere its bytes must.
    pub(super) fn is_whole(&self, http: &Http) -> Result<bool> {
        let sized = fs::symlink_metadata(&self.whole)
            .is_ok_and(|meta| meta.is_file() && meta.len() == self.size);
        if !sized || self.forward.is_some() {
            return Ok(sized);
        }
        Ok(digest(&self.whole, self.size, &self.hash, http)? == self.hash.hex())
    }

    /// Whether a file gathers bytes that is not whole yet, or that a reader may have open.
    pub(super) fn has_partial(&self) -> bool {
        let gathers = fs::symlink_metadata(&self.partial);
        gathers.is_ok_and(|meta| meta.is_file() && meta.len() == self.size)
            && record_of(&self.partial).exists()
    }

    /// What of `ranges` is here. Nobody else is waited for.
    pub(super) fn stand(&self, ranges: &Ranges, http: &Http) -> Result<Stand> {
        // A partly fetched file beside a whole one, which somebody else brought, may be open: it is completed.
        let partly = if self.has_partial() { Fetched::of(&self.partial)? } else { None };
        let Some(fetched) = partly else {
            return Ok(if self.is_whole(http)? { Stand::Here } else { Stand::Lacking });
        };
        let lacks = ranges.iter().any(|range| !fetched.missing(range).is_empty());
        let all = ranges.missing(&(0..self.size)).is_empty();
        Ok(if lacks {
            Stand::Lacking
        } else if all {
            Stand::Unnamed
        } else {
            Stand::Here
        })
    }

    /// The partly fetched file, made if it is not there.
    pub(super) fn open(&self) -> Result<Fetched> {
        if let Some(folder) = self.partial.parent() {
            fs::create_dir_all(folder).at("create", folder)?;
        }
        clear_remains(&self.partial, self.size)?;
        Fetched::create(&self.partial, self.size)
    }

    /// Verifies the file, every byte of which is here, and gives it its name. A file that is wrong is thrown away.
    pub(super) fn finish(&self, http: &Http) -> Result<()> {
        let found = self.digest(http)?;
        if found != self.hash.hex() {
            self.discard()?;
            let kind = match self.hash {
                Hash::Sha256(_) => "SHA-256",
                Hash::Git(_) => "git SHA-1",
            };
            let problem = format!(
                "it is not the file that the Hub lists: its {kind} is {found}, not {}",
                self.hash.hex()
            );
            return Err(corrupt(&self.what, problem));
        }
        let data = File::open(&self.partial).at("open", &self.partial)?;
        data.sync_all().at("flush", &self.partial)?;
        if let Some(folder) = self.whole.parent() {
            fs::create_dir_all(folder).at("create", folder)?;
            self.rename()?;
            File::open(folder).and_then(|folder| folder.sync_all()).at("flush", folder)?;
        }
        remove(&record_of(&self.partial))
    }

    /// Moves the file to its name. Who knows it by the other one finds it there at any moment, where there are hard links.
    fn rename(&self) -> Result<()> {
        let moved = |from: &Path| fs::rename(from, &self.whole).at("rename", &self.whole);
        let Some(forward) = &self.forward else { return moved(&self.partial) };
        let second = beside(&self.partial);
        remove(&second)?;
        if fs::hard_link(&self.partial, &second).is_ok() {
            moved(&second)?;
            // Of two names of one file both stay.
            remove(&second)?;
        } else {
            moved(&self.partial)?;
        }
        link(&self.partial, forward)
    }

    fn digest(&self, http: &Http) -> Result<String> {
        digest(&self.partial, self.size, &self.hash, http)
    }
}

/// The hash of a file, of the kind that `like` is. Mirrors that keep files by their plain SHA-1 list that instead of git's.
pub(super) fn digest(path: &Path, size: u64, like: &Hash, http: &Http) -> Result<String> {
    let mut file = File::open(path).at("open", path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut feed = |take: &mut dyn FnMut(&[u8])| -> Result<()> {
        loop {
            http.check_cancelled()?;
            http.heart().beat();
            match file.read(&mut buffer).at("read", path)? {
                0 => return Ok(()),
                n => take(buffer.get(..n).unwrap_or_default()),
            }
        }
    };
    Ok(match like {
        Hash::Sha256(_) => {
            let mut hasher = Sha256::new();
            feed(&mut |bytes| hasher.update(bytes))?;
            hex(&hasher.finalize())
        }
        Hash::Git(listed) => {
            let (mut git, mut plain) = (blob(size), Sha1::new());
            feed(&mut |bytes| {
                git.update(bytes);
                plain.update(bytes);
            })?;
            let plain = hex(&plain.finalize());
            if plain == *listed { plain } else { hex(&git.finalize()) }
        }
    })
}

/// Fails if there is no room for `needed` more bytes.
pub(super) fn check_space(path: &Path, needed: u64) -> Result<()> {
    let free = free_bytes(path);
    if needed > free {
        return Err(Error::NoSpace { path: path.to_owned(), needed, free });
    }
    Ok(())
}
