//! `completions`: a completion script for a shell.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::failure::Failure;
use super::session::Session;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery completions bash > ~/.local/share/bash-completion/completions/elo-surgery
  elo-surgery completions zsh > ~/.zfunc/_elo-surgery
  elo-surgery completions fish > ~/.config/fish/completions/elo-surgery.fish")]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub(super) fn run(arguments: &Completions, session: &Session) -> Result<(), Failure> {
    let mut script = Vec::new();
    let mut command = super::Cli::command();
    clap_complete::generate(arguments.shell, &mut command, "elo-surgery", &mut script);
    session.print(&String::from_utf8_lossy(&script))
}
