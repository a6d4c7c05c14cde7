//! What came of a run: tables for a terminal, and one self-contained page of HTML.

mod axis;
mod card;
mod chart;
mod curve;
mod facts;
#[cfg(test)]
mod fixture;
mod page;
mod table;
mod verdict;
mod view;

pub use card::{CardFacts, card_facts};
pub use page::{Extra, render};
pub use table::{Options, before_after, summary, table};
