//! The pieces that a tokenizer's algorithm splits the text of a foreign token into.

use super::texts::Spelling;
use crate::checkpoint::Vocabulary;
use crate::error::Result;

/// Splits text by the algorithm alone: normalisers and pre-tokenizers, which would add a space or cut, are left out.
pub(super) struct Splitter {
    #[cfg(feature = "trainer")]
    tokenizer: tokenizers::Tokenizer,
    #[cfg(feature = "trainer")]
    unknown: Option<u32>,
    spelling: Spelling,
}

impl Splitter {
    /// For a tokenizer. `name` is what messages call the model.
    ///
    /// # Errors
    /// A tokenizer that the library does not read, or a build without it.
    #[cfg(feature = "trainer")]
    pub(super) fn new(vocabulary: &Vocabulary, name: &str) -> Result<Self> {
        use tokenizers::Model as _;

        let json = serde_json::to_vec(vocabulary.json()).unwrap_or_default();
        let read = tokenizers::Tokenizer::from_bytes(&json);
        let tokenizer = read.map_err(|e| crate::error::Error::Unsupported {
            what: format!("the tokenizer of `{name}`"),
            reason: e.to_string(),
            hint: "choose another method: `mean`, `nearest` and `omp` need no pieces".into(),
        })?;
        let unknown = match tokenizer.get_model() {
            tokenizers::ModelWrapper::BPE(bpe) => {
                bpe.unk_token.as_deref().and_then(|t| bpe.token_to_id(t))
            }
            tokenizers::ModelWrapper::WordPiece(words) => words.token_to_id(&words.unk_token),
            tokenizers::ModelWrapper::WordLevel(words) => words.token_to_id(&words.unk_token),
            tokenizers::ModelWrapper::Unigram(_) => tokenizer.token_to_id("<unk>"),
        };
        Ok(Self { tokenizer, unknown, spelling: Spelling::of(vocabulary) })
    }

    /// A build without the library cannot split.
    #[cfg(not(feature = "trainer"))]
    pub(super) fn new(_: &Vocabulary, name: &str) -> Result<Self> {
        Err(crate::error::Error::Unsupported {
            what: format!("splitting text as `{name}` does"),
            reason: "this build has no tokenizers: it lacks the feature `trainer`".into(),
            hint: "choose another method: `mean`, `nearest` and `omp` need no pieces".into(),
        })
    }

    /// The ids of the pieces, unknown ones left out.
    pub(super) fn split(&self, meaning: &[u8]) -> Vec<u64> {
        #[cfg(feature = "trainer")]
        {
            use tokenizers::Model as _;

            let text = self.spelling.spell(meaning);
            let pieces = text.and_then(|text| self.tokenizer.get_model().tokenize(&text).ok());
            let pieces = pieces.unwrap_or_default().into_iter().map(|piece| piece.id);
            pieces.filter(|id| Some(*id) != self.unknown).map(u64::from).collect()
        }
        #[cfg(not(feature = "trainer"))]
        {
            let _ = (self.spelling, meaning);
            Vec::new()
        }
    }
}
