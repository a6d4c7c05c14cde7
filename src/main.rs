//! The `elo-surgery` program: everything is in [`elo_surgery::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    elo_surgery::cli::run(std::env::args_os())
}
