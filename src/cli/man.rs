//! `man`: manual pages.

use std::fs::create_dir_all;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use super::failure::Failure;
use super::session::Session;
use crate::error::IoContext as _;

/// Print the manual page, or write one for every command
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery man | man -l -
  elo-surgery man --out ~/.local/share/man/man1")]
pub(super) struct Man {
    /// Write the pages of all commands to this directory
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints or writes the pages.
pub(super) fn run(arguments: &Man, session: &Session) -> Result<(), Failure> {
    let command = super::Cli::command();
    if let Some(dir) = &arguments.out {
        create_dir_all(dir).at("create", dir)?;
        clap_mangen::generate_to(command, dir).at("write to", dir)?;
        session.say(&format!("wrote the manual pages to `{}`", dir.display()));
        return Ok(());
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).at("write", "the manual page")?;
    session.print(&String::from_utf8_lossy(&page))
}
