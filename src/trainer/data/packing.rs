//! Packing: pieces of documents into sequences, each document masked from the others of its sequence.
//!
//! A document longer than a sequence is cut into pieces that overlap by one token, so that every token but a
//! document's first is predicted exactly once. Shorter ones stay whole: best fit, longest first (as TRL's `bfd`).

use std::collections::BTreeMap;

use super::corpus::Corpus;
use super::shuffle::SplitMix64;
use crate::trainer::model::Batch;

/// Stream of the shuffle that decides among documents of one length; epoch `e` uses stream `e + 1`.
const PACKING_STREAM: u64 = 0;

/// A stretch of a corpus: start and length.
type Piece = (usize, usize);

/// Pieces that share a sequence.
pub(in crate::trainer) type Sequence = Vec<Piece>;

/// A corpus in sequences.
#[derive(Clone, Debug, Default)]
pub(in crate::trainer) struct Packing {
    pub(in crate::trainer) sequences: Vec<Sequence>,
    /// Chats that were longer than a sequence and left out.
    pub(in crate::trainer) dropped: u64,
    seed: u64,
}

impl Packing {
    /// Packs a corpus into sequences of at most `length` tokens. Chats are never cut: longer ones are left out.
    pub(in crate::trainer) fn new(corpus: &Corpus, length: usize, seed: u64) -> Self {
        let (mut pieces, mut dropped) = (Vec::new(), 0);
        for document in &corpus.documents {
            if document.is_chat && document.len > length {
                dropped += 1;
            } else {
                cut(document.start, document.len, length, &mut pieces);
            }
        }
        SplitMix64::new(seed, PACKING_STREAM).shuffle(&mut pieces);
        Self { sequences: best_fit(pieces, length), dropped, seed }
    }

    /// Every document for itself, in order and cut where it is too long: for evaluation.
    pub(in crate::trainer) fn in_order(corpus: &Corpus, length: usize) -> Self {
        let (mut sequences, mut filled): (Vec<Sequence>, usize) = (Vec::new(), length);
        for document in &corpus.documents {
            let mut pieces = Vec::new();
            cut(document.start, document.len, length, &mut pieces);
            for piece in pieces {
                if filled + piece.1 > length {
                    sequences.push(Vec::new());
                    filled = 0;
                }
                filled += piece.1;
                if let Some(last) = sequences.last_mut() {
                    last.push(piece);
                }
            }
        }
        Self { sequences, dropped: 0, seed: 0 }
    }

    /// The order of the sequences in an epoch, from 0.
    pub(in crate::trainer) fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.sequences.len()).collect();
        SplitMix64::new(self.seed, epoch + 1).shuffle(&mut order);
        order
    }

    /// The batch of some sequences.
    pub(in crate::trainer) fn batch(&self, corpus: &Corpus, sequences: &[usize]) -> Batch {
        let mut batch = Batch::default();
        for (start, len) in sequences.iter().flat_map(|s| &self.sequences[*s]) {
            let range = *start..start + len;
            batch.push(&corpus.ids[range.clone()], &corpus.trained[range]);
        }
        batch
    }
}

fn cut(start: usize, len: usize, length: usize, pieces: &mut Vec<Piece>) {
    let mut at = 0;
    loop {
        let size = (len - at).min(length);
        if size > 0 {
            pieces.push((start + at, size));
        }
        if at + size >= len {
            return;
        }
        at += size - 1;
    }
}

/// Each piece goes, longest first, where it leaves the least room.
fn best_fit(mut pieces: Vec<Piece>, length: usize) -> Vec<Sequence> {
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.1));
    let mut sequences: Vec<Sequence> = Vec::new();
    let mut room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for piece in pieces {
        let fitting = room.range_mut(piece.1..).next().map(|(left, open)| (*left, open.pop()));
        let (left, sequence) = match fitting {
            Some((left, Some(sequence))) => (left, sequence),
            _ => {
                sequences.push(Vec::new());
                (length, sequences.len() - 1)
            }
        };
        if room.get(&left).is_some_and(Vec::is_empty) {
            room.remove(&left);
        }
        sequences[sequence].push(piece);
        if left > piece.1 {
            room.entry(left - piece.1).or_default().push(sequence);
        }
    }
    sequences
}

#[cfg(test)]
mod tests {
    use super::super::corpus::Document;
    use super::*;

    fn corpus(lengths: &[usize], is_chat: bool) -> Corpus {
        let mut corpus = Corpus::default();
        for len in lengths {
            let start = corpus.ids.len();
            corpus.documents.push(Document { start, len: *len, is_chat });
            corpus.ids.extend((start..start + len).map(|i| i as u32));
        }
        corpus.trained = vec![true; corpus.ids.len()];
        corpus
    }

    #[test]
    fn every_token_but_each_first_is_predicted_once() {
        let lengths = [3, 8, 9, 30, 1, 0, 5, 2, 8, 15, 16];
        let corpus = corpus(&lengths, false);
        for packing in [Packing::new(&corpus, 8, 7), Packing::in_order(&corpus, 8)] {
            let mut predicted: Vec<u32> = Vec::new();
            for i in 0..packing.sequences.len() {
                let batch = packing.batch(&corpus, &[i]);
                assert!(!batch.ids.is_empty() && batch.ids.len() <= 8);
                predicted.extend(batch.targets.iter().filter(|t| **t != u32::MAX));
            }
            predicted.sort_unstable();
            let firsts: Vec<usize> = corpus.documents.iter().map(|d| d.start).collect();
            let all = (0..corpus.ids.len()).filter(|i| !firsts.contains(i)).map(|i| i as u32);
            assert_eq!(predicted, all.collect::<Vec<_>>());
        }
    }

    #[test]
    fn short_documents_stay_whole_and_fill_sequences() {
        let packing = Packing::new(&corpus(&[5, 3, 4, 4, 6, 2], false), 8, 1);
        assert_eq!(packing.sequences.len(), 3);
        assert!(packing.sequences.iter().flatten().all(|piece| piece.1 <= 6));
    }

    #[test]
    fn long_chats_are_left_out_and_counted() {
        let packing = Packing::new(&corpus(&[5, 9, 8], true), 8, 1);
        assert_eq!((packing.dropped, packing.sequences.len()), (1, 2));
    }

    #[test]
    fn orders_follow_from_seed_and_epoch() {
        let packing = Packing::new(&corpus(&[8; 20], false), 8, 1);
        assert_eq!(packing.order(1), packing.order(1));
        assert_ne!(packing.order(0), packing.order(1));
    }
}
