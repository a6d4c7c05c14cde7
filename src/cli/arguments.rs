//! Flags that several commands share, and how their values are read.

use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::failure::{Failure, Origins};
use super::units::parse_size;
use crate::checkpoint::OpenOptions;
use crate::format::{DigestAlgorithm, Dtype, Reading};
use crate::ops::TensorFilter;

/// How strictly models are opened.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Input options")]
pub(super) struct Opening {
    /// Follow links that lead out of a model's directory
    #[arg(long)]
    pub(super) follow_symlinks: bool,
    /// Pass tensors of unknown dtypes through instead of refusing the file
    #[arg(long)]
    pub(super) allow_unknown_dtypes: bool,
}

impl Opening {
    pub(super) fn options(&self) -> OpenOptions {
        OpenOptions::default()
            .follow_symlinks(self.follow_symlinks)
            .allow_unknown_dtypes(self.allow_unknown_dtypes)
    }
}

/// Lays the output out anew.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ShardSize {
    /// Lay the output out in shards of at most this size: `5GB`, `500MB`, `1GiB` [default: keep the
    /// source's shards]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) shard_size: Option<u64>,
}

/// Which tensors a command touches.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Filter {
    /// Only tensors whose whole name matches; `*` also matches dots (repeatable)
    #[arg(long, value_name = "GLOB")]
    pub(super) include: Vec<String>,
    /// Not the tensors whose whole name matches (repeatable)
    #[arg(long, value_name = "GLOB")]
    pub(super) exclude: Vec<String>,
}

impl Filter {
    pub(super) fn compile(&self, origins: &mut Origins) -> Result<TensorFilter, Failure> {
        for glob in &self.include {
            origins.flag("--include", glob);
        }
        for glob in &self.exclude {
            origins.flag("--exclude", glob);
        }
        Ok(TensorFilter::new(&self.include, &self.exclude)?)
    }
}

/// Digest of the output files.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum DigestChoice {
    #[default]
    Blake3,
    Sha256,
    None,
}

impl DigestChoice {
    pub(super) fn algorithm(self) -> Option<DigestAlgorithm> {
        match self {
            Self::Blake3 => Some(DigestAlgorithm::Blake3),
            Self::Sha256 => Some(DigestAlgorithm::Sha256),
            Self::None => None,
        }
    }
}

/// How unchanged bytes get into the output.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum LinkChoice {
    #[default]
    Auto,
    Hard,
    Never,
}

/// How sources are read.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum IoChoice {
    Mmap,
    #[default]
    Read,
}

impl From<IoChoice> for Reading {
    fn from(choice: IoChoice) -> Self {
        match choice {
            IoChoice::Mmap => Self::Mapped,
            IoChoice::Read => Self::Calls,
        }
    }
}

/// A float dtype. `Dtype` also reads any name of a safetensors header, which is not what is meant here.
pub(super) fn parse_dtype(text: &str) -> Result<Dtype, String> {
    <Dtype as FromStr>::from_str(text).map_err(|e| e.to_string())
}

/// A finite number.
pub(super) fn parse_factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor.is_finite() => Ok(factor),
        _ => Err("it is not a finite number".into()),
    }
}

/// A tile: a power of two from 64 KiB on.
pub(super) fn parse_tile(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes.is_power_of_two() && bytes >= 64 << 10 {
        Ok(bytes)
    } else {
        Err("tiles are powers of two from 64KiB on".into())
    }
}
