//! stub
#![allow(missing_docs, clippy::all, clippy::pedantic)]
use super::record::Record;
use crate::error::Result;
use std::path::Path;
pub fn render(_: &Record, _: &Path, _: &[(String, String)]) -> Result<String> {
    todo!()
}
