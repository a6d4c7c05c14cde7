//! The command line: one file a command, each arguments -> request -> library call -> rendering.
//!
//! stdout is data, stderr is talk; only `session` writes to either. Errors of the library are rendered with the
//! flag or the line of `elo.yaml` they come from. What a command does is decided in `ops`, `engine` and `audit`.

mod apply;
mod arguments;
mod backend;
#[cfg(feature = "hub")]
mod card_facts;
mod cast;
mod chat_vector;
mod clean;
mod completions;
mod device;
mod diff;
mod expand;
mod experts;
mod extract;
mod failure;
#[cfg_attr(not(feature = "hub"), path = "no_hub.rs")]
mod hub;
mod init;
mod inject;
mod inspect;
mod layers;
mod live;
mod lora;
mod man;
mod merge;
mod merge_stages;
mod mergekit_flags;
mod moe;
mod plan;
mod process;
mod progress;
mod project;
mod pull;
#[cfg(feature = "hub")]
mod push;
mod questions;
mod reshard;
mod run;
mod session;
#[cfg(feature = "hub")]
mod streaming;
mod summary;
mod surgery;
mod transplant;
mod units;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgAction, Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};

use failure::Failure;
use session::Session;
use surgery::Surgical;

/// Checkpoint surgery for large language models, without loading them.
#[derive(Debug, Parser)]
#[command(
    name = "elo-surgery",
    bin_name = "elo-surgery",
    version,
    max_term_width = 100,
    propagate_version = false,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Layers count from 1. Results appear whole or not at all; an interrupted command continues when it is run again.\n\n\
                  `elo-surgery COMMAND --help` shows a command's options and examples."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Print one JSON object on stdout, and progress and errors as JSON lines on stderr
    #[arg(long, global = true)]
    json: bool,
    /// Say more about decisions
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Say nothing but errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// When to use colour
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true
    )]
    #[arg(help = "Use colour: auto, always or never")]
    color: ColorChoice,
    /// Use no network: models of the Hub are taken from the cache, or refused
    #[arg(long, global = true)]
    offline: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Extract(Box<extract::Extract>),
    Inject(Box<inject::Inject>),
    ChatVector(Box<chat_vector::ChatVector>),
    Merge(Box<merge::Merge>),
    Layers(Box<layers::Layers>),
    Expand(Box<expand::Expand>),
    Experts(Box<experts::Experts>),
    Moe(Box<moe::Moe>),
    Lora(lora::Lora),
    Transplant(Box<transplant::Transplant>),
    Reshard(Box<reshard::Reshard>),
    Cast(Box<cast::Cast>),
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Diff(diff::Diff),
    Pull(pull::Pull),
    #[cfg(feature = "hub")]
    Push(Box<push::Push>),
    Plan(plan::Plan),
    Apply(apply::Apply),
    Init(init::Init),
    Run(run::Run),
    /// Train the detached layers of the project: stage `pretrain`
    Pretrain(run::One),
    /// Fine-tune the model after its layers are back: stage `align`
    Align(run::One),
    /// Fine-tune on chats: stage `sft`
    Sft(run::One),
    /// Measure and draw what the project has made: stage `evaluate`
    Evaluate(run::One),
    Status(run::Status),
    Report(run::Report),
    Render(run::Render),
    Backend(backend::Backend),
    #[command(name = "__backend", hide = true)]
    Builtin(backend::Builtin),
    #[command(name = "__guard", hide = true)]
    Guard(backend::Guarded),
    Clean(clean::Clean),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Runs the program on its arguments and gives its exit status.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let json = arguments.iter().any(|a| a == "--json");
    process::prepare(json);
    let parsed = command(&arguments)
        .try_get_matches_from(&arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(refusal) => {
            return failure::refuse(&mergekit_flags::explain(refusal, &arguments), json);
        }
    };
    let Global { json, verbose, quiet, color, offline } = cli.global;
    let session = Session::new(color, json, verbose, quiet, offline);
    let outcome = process::guarded(|| dispatch(&cli.command, &session));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => session.fail(&failure),
    }
}

fn dispatch(command: &Command, session: &Session) -> Result<(), Failure> {
    match command {
        Command::Extract(verb) => verb.run(session),
        Command::Inject(verb) => inject::run(verb, session),
        Command::ChatVector(verb) => verb.run(session),
        Command::Merge(verb) => verb.run(session),
        Command::Layers(verb) => verb.run(session),
        Command::Expand(verb) => verb.run(session),
        Command::Experts(verb) => verb.run(session),
        Command::Moe(verb) => verb.run(session),
        Command::Lora(verb) => verb.run(session),
        Command::Transplant(verb) => verb.run(session),
        Command::Reshard(verb) => verb.run(session),
        Command::Cast(verb) => verb.run(session),
        Command::Inspect(verb) => inspect::run(verb, session),
        Command::Verify(verb) => verify::run(verb, session),
        Command::Diff(verb) => diff::run(verb, session),
        Command::Pull(verb) => pull::run(verb, session),
        Command::Plan(verb) => plan::run(verb, session),
        Command::Apply(verb) => verb.run(session),
        #[cfg(feature = "hub")]
        Command::Push(verb) => push::run(verb, session),
        Command::Init(verb) => init::run(verb, session),
        Command::Run(verb) => run::run(verb, session),
        Command::Pretrain(verb) => run::one("pretrain", verb, session),
        Command::Align(verb) => run::one("align", verb, session),
        Command::Sft(verb) => run::one("sft", verb, session),
        Command::Evaluate(verb) => run::one("evaluate", verb, session),
        Command::Status(verb) => run::status(verb, session),
        Command::Report(verb) => run::report(verb, session),
        Command::Render(verb) => run::render(verb, session),
        Command::Backend(verb) => backend::run(verb, session),
        Command::Builtin(verb) => backend::builtin(verb, session),
        Command::Guard(verb) => backend::guard(verb),
        Command::Clean(verb) => clean::run(verb, session),
        Command::Completions(verb) => completions::run(verb, session),
        Command::Man(verb) => man::run(verb, session),
    }
}

/// The parser. Help is printed while parsing, so `--color` must be known before.
fn command(arguments: &[OsString]) -> clap::Command {
    let mut asked = None;
    for (i, argument) in arguments.iter().enumerate() {
        let argument = argument.to_string_lossy();
        if argument == "--color" {
            asked = arguments.get(i + 1).map(|value| value.to_string_lossy().into_owned());
        } else if let Some(value) = argument.strip_prefix("--color=") {
            asked = Some(value.to_owned());
        }
    }
    let choice = asked.and_then(|value| value.parse().ok());
    Cli::command().color(choice.unwrap_or(ColorChoice::Auto))
}
