//! stub
#![allow(missing_docs, clippy::all, clippy::pedantic)]
use super::project::Loaded;
use crate::backend::protocol::DataFormat;
use crate::error::Result;
use std::path::Path;
pub struct Prepared {
    pub pretrain: Option<Dataset>,
    pub align: Option<Dataset>,
    pub sft: Option<Dataset>,
    pub held_out: Vec<HeldOutSlice>,
    pub key: String,
}
pub struct Dataset {
    pub file: String,
    pub format: DataFormat,
    pub records: u64,
    pub bytes: u64,
    pub digest: String,
    pub shares: Vec<Share>,
}
pub struct Share {
    pub language: String,
    pub source: String,
    pub records: u64,
    pub bytes: u64,
}
pub struct HeldOutSlice {
    pub name: String,
    pub file: String,
    pub format: DataFormat,
    pub records: u64,
    pub bytes: u64,
    pub digest: String,
}
pub trait Watch {
    fn reading(&self, file: &Path, done: u64, total: u64);
    fn stop(&self) -> bool;
    fn note(&self, _: &str);
}
pub fn prepare(_: &Loaded, _: &Path, _: &dyn Watch) -> Result<Prepared> {
    todo!()
}
pub fn current(_: &Loaded, _: &Path) -> Result<Option<Prepared>> {
    todo!()
}
