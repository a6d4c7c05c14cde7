//! Models on the Hub: the real program against a Hub on this machine that goes wrong on demand.

mod expected;
#[allow(dead_code, reason = "the program `fake_hub` uses more of it")]
mod fake;
mod many;
mod offline;
mod own;
#[cfg(feature = "trainer")]
mod project;
mod publication;
mod publish;
mod pull;
mod push;
mod scene;
mod scripts;
mod secrets;
mod streaming;
mod tls;
mod together;
mod view;
