//! What came of a run: tables for a terminal, and one self-contained page of HTML.

mod facts;
#[cfg(test)]
mod fixture;
mod table;
mod verdict;

pub use table::{Options, before_after, summary, table};
