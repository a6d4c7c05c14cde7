//! Models on the Hub: the real program against a Hub on this machine that goes wrong on demand.

mod fake;
mod own;
