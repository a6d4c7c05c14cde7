//! All records of some files as tokens, in memory: five bytes a token.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::record::{Lines, parse};
use super::tokenizer::{Encoded, TextTokenizer};
use crate::error::{Error, Result};
use crate::trainer::settings::LossOn;

/// Lines that are tokenised at once, at most, and their bytes.
const LINES: usize = 1 << 12;
const BYTES: usize = 16 << 20;

/// One record's place in the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::trainer) struct Document {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) is_chat: bool,
}

/// Tokens of many records, end to end.
#[derive(Clone, Debug, Default)]
pub(in crate::trainer) struct Corpus {
    pub(in crate::trainer) ids: Vec<u32>,
    /// For each token whether it is to be predicted.
    pub(in crate::trainer) trained: Vec<bool>,
    pub(in crate::trainer) documents: Vec<Document>,
    /// UTF-8 bytes of the text that is to be predicted.
    pub(in crate::trainer) bytes: u64,
}

impl Corpus {
    /// Reads and tokenises files, in order. `go_on` is asked now and then; once false the run is interrupted.
    pub(in crate::trainer) fn read(
        paths: &[PathBuf],
        tokenizer: &TextTokenizer,
        loss_on: LossOn,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let mut corpus = Self::default();
        for path in paths {
            corpus.add_file(path, tokenizer, loss_on, go_on)?;
        }
        Ok(corpus)
    }

    fn add_file(
        &mut self,
        path: &Path,
        tokenizer: &TextTokenizer,
        loss_on: LossOn,
        go_on: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut lines = Lines::open(path)?;
        let before = self.documents.len();
        loop {
            if !go_on() {
                return Err(Error::Interrupted { resumable: true });
            }
            let batch = lines.take(LINES, BYTES)?;
            if batch.is_empty() {
                break;
            }
            let encoded: Vec<Result<Encoded>> = batch
                .par_iter()
                .map(|(number, line)| {
                    parse(line).and_then(|record| tokenizer.encode(&record, loss_on)).map_err(
                        |problem| Error::Data {
                            path: path.to_owned(),
                            line: Some(*number),
                            problem,
                            hint: String::new(),
                        },
                    )
                })
                .collect();
            for encoded in encoded {
                self.push(encoded?);
            }
        }
        if self.documents.len() == before {
            let problem = "it has no records".to_owned();
            return Err(Error::Data {
                path: path.to_owned(),
                line: None,
                problem,
                hint: String::new(),
            });
        }
        Ok(())
    }

    fn push(&mut self, encoded: Encoded) {
        let (start, len) = (self.ids.len(), encoded.ids.len());
        self.documents.push(Document { start, len, is_chat: encoded.is_chat });
        self.ids.extend(encoded.ids);
        self.trained.extend(encoded.trained);
        self.bytes += encoded.bytes;
    }

    /// A digest of everything that training sees.
    pub(in crate::trainer) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (id, trained) in self.ids.iter().zip(&self.trained) {
            let [a, b, c, d] = id.to_le_bytes();
            hasher.update(&[a, b, c, d, u8::from(*trained)]);
        }
        for document in &self.documents {
            hasher.update(&(document.len as u64).to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}
