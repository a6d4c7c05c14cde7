//! `run` and its single stages: the whole method from one project file.

use std::env;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde_json::json;

use super::failure::Failure;
use super::live::Live;
use super::process;
use super::session::Session;
use crate::backend::BackendChoice;
use crate::backend::protocol::Event;
use crate::error::{Error, IoContext as _};
use crate::pipeline::driver::{Decision, Driver, Intent, Options, Witness};
use crate::pipeline::project::{Loaded, Project};
use crate::pipeline::record::StageRecord;
use crate::pipeline::report;

/// Run the project: extract, pretrain, inject, align, chat-vector, sft, evaluate
///
/// Only what changed is done again, and what was interrupted goes on. Every stage is checked before the next one starts.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery run --dry-run
  elo-surgery run
  elo-surgery run --from align --until sft")]
pub(super) struct Run {
    /// Begin with this stage; earlier ones are taken as they are
    #[arg(long, value_name = "STAGE")]
    from: Option<String>,
    /// End with this stage
    #[arg(long, value_name = "STAGE")]
    until: Option<String>,
    #[command(flatten)]
    how: How,
}

/// How stages are run.
#[derive(Clone, Debug, Args)]
pub(super) struct How {
    /// Show what would be done and why, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Do the stages again although they are up to date
    #[arg(long)]
    force: bool,
    /// Leave out the controls of the project
    #[arg(long)]
    skip_controls: bool,
    /// What trains, instead of the project's choice
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Do not read every value of a trained model to check it
    #[arg(long)]
    trust_backend: bool,
    /// Do not flush models to the disk: safe against kill -9, not against power loss
    #[arg(long)]
    no_sync: bool,
}

/// Run one stage of the project
#[derive(Debug, Args)]
pub(super) struct One {
    #[command(flatten)]
    how: How,
}

pub(super) fn run(arguments: &Run, session: &Session) -> Result<(), Failure> {
    drive(arguments.from.clone(), arguments.until.clone(), &arguments.how, session)
}

/// Runs a single stage.
pub(super) fn one(stage: &str, arguments: &One, session: &Session) -> Result<(), Failure> {
    let stage = Some(stage.to_owned());
    drive(stage.clone(), stage, &arguments.how, session)
}

/// The project of the working directory.
pub(super) fn project(backend: Option<&String>) -> Result<Loaded, Failure> {
    let Some(mut loaded) = Project::find()? else {
        return Err(Failure::usage(
            "there is no `elo.yaml` here or above",
            "`elo-surgery init` makes a project",
        ));
    };
    let mut settings = loaded.project.backend.settings();
    if let Some(name) = backend {
        settings.name.clone_from(name);
    } else if settings.name.contains('/') {
        // Like every path of the file, relative to it.
        settings.name = loaded.path(settings.name.as_ref()).to_string_lossy().into_owned();
    }
    if settings != loaded.project.backend.settings() {
        loaded.project.backend = BackendChoice::Settings(Box::new(settings));
    }
    Ok(loaded)
}

/// Options of the driver with this program as the guard of backends.
pub(super) fn options() -> Result<Options, Failure> {
    let program = env::current_exe().at("find", "/proc/self/exe")?;
    let driver = std::process::id().to_string();
    let guard: Vec<OsString> =
        vec![program.into(), "__guard".into(), "--driver".into(), driver.into()];
    Ok(Options { guard, ..Options::default() })
}

fn drive(
    from: Option<String>,
    until: Option<String>,
    how: &How,
    session: &Session,
) -> Result<(), Failure> {
    let mut loaded = project(how.backend.as_ref())?;
    for warning in &loaded.warnings {
        session.warn(warning);
    }
    session.hub.settle(&mut loaded, !how.dry_run, session)?;
    let options = Options {
        from,
        until,
        skip_controls: how.skip_controls,
        force: how.force,
        trust_backend: how.trust_backend,
        sync: !how.no_sync,
        ..options()?
    };
    let view = View::new(session);
    if how.dry_run {
        let intents = Driver::look(&loaded, &options, &view)?.preview()?;
        return show(&intents, session);
    }
    let mut driver = Driver::open(&loaded, &options, &view)?;
    let outcome = driver.run();
    view.live.finish();
    let report = driver.report();
    if let Err(error) = outcome {
        return Err(error.into());
    }
    let report = report?;
    if session.json {
        return session.print_json(driver.record());
    }
    session.print(&report::table(
        driver.record(),
        &report::Options { colour: session.has_colour() },
    ))?;
    session.print(&report::before_after(driver.record()))?;
    if let Some(publish) = driver.publish_script()? {
        session.say(&format!("to publish: `sh {}`", publish.display()));
    }
    session.say(&format!("report: {}", report.display()));
    Ok(())
}

fn show(intents: &[Intent], session: &Session) -> Result<(), Failure> {
    if session.json {
        return session.print_json(&json!({ "command": "run", "stages": intents }));
    }
    let width = intents.iter().map(|intent| intent.stage.len()).max().unwrap_or(0);
    for Intent { stage, decision } in intents {
        let text = match decision {
            Decision::UpToDate => "up to date".to_owned(),
            Decision::Run { why } => format!("would run: {why}"),
            Decision::Resume { why } => format!("would go on: {why}"),
            Decision::After { stage } => format!("depends on `{stage}`"),
        };
        session.print(&format!("{stage:width$}  {text}\n"))?;
    }
    Ok(())
}

/// Show where each stage of the project stands
#[derive(Debug, Args)]
pub(super) struct Status {}

pub(super) fn status(_arguments: &Status, session: &Session) -> Result<(), Failure> {
    let mut loaded = project(None)?;
    session.hub.settle(&mut loaded, false, session)?;
    let options = options()?;
    let view = View::new(session);
    let driver = Driver::look(&loaded, &options, &view)?;
    let record = driver.current()?;
    if session.json {
        return session.print_json(&record);
    }
    session.print(&report::table(&record, &report::Options { colour: session.has_colour() }))?;
    session.print(&report::before_after(&record))
}

/// What the project's training stages will need, before they start.
pub(super) fn outlook(session: &Session) -> Result<(), Failure> {
    let mut loaded = project(None)?;
    session.hub.settle(&mut loaded, false, session)?;
    let options = options()?;
    let view = View::new(session);
    let outlook = Driver::look(&loaded, &options, &view)?.outlook()?;
    if session.json {
        return session.print_json(&json!({ "command": "plan", "outlook": outlook }));
    }
    session.print(&outlook.render())
}

/// Write the HTML report of what has been done
#[derive(Debug, Args)]
pub(super) struct Report {}

pub(super) fn report(_arguments: &Report, session: &Session) -> Result<(), Failure> {
    let loaded = project(None)?;
    let options = options()?;
    let view = View::new(session);
    let driver = Driver::look(&loaded, &options, &view)?;
    let path = driver.report()?;
    session.print(&format!("{}\n", path.display()))
}

/// Write the native configuration of a training stage and start nothing
///
/// For `axolotl`, `llama-factory` and `trl`: the files to read, edit and run by hand.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  elo-surgery render --stage pretrain
  elo-surgery render --stage align --backend axolotl --print")]
pub(super) struct Render {
    /// The stage; all that train without it
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// What trains, instead of the project's choice
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Print the files instead of writing them
    #[arg(long)]
    print: bool,
}

pub(super) fn render(arguments: &Render, session: &Session) -> Result<(), Failure> {
    let mut loaded = project(arguments.backend.as_ref())?;
    session.hub.settle(&mut loaded, false, session)?;
    let options = options()?;
    let view = View::new(session);
    let mut driver = Driver::look(&loaded, &options, &view)?;
    let rendered = driver.render(arguments.stage.as_deref())?;
    let mut written = Vec::new();
    for stage in &rendered {
        for file in &stage.files {
            let path = stage.dir.join(&file.name);
            if arguments.print {
                session.print(&format!("# {}\n{}\n", path.display(), file.content))?;
            } else {
                std::fs::create_dir_all(&stage.dir).at("create", &stage.dir)?;
                std::fs::write(&path, &file.content).at("write", &path)?;
                written.push(path.to_string_lossy().into_owned());
            }
        }
        for note in &stage.notes {
            session.note(&format!("{}: {note}", stage.name));
        }
        if !arguments.print {
            session.say(&format!("{}: {}", stage.name, stage.command.join(" ")));
        }
    }
    if session.json {
        return session.print_json(&json!({ "command": "render", "files": written }));
    }
    for path in &written {
        session.print(&format!("{path}\n"))?;
    }
    if rendered.is_empty() {
        return Err(Error::Usage {
            problem: "no such training stage".into(),
            hint: "`--stage pretrain`, `align` or `sft`".into(),
        }
        .into());
    }
    Ok(())
}

/// The live view, and the user's wish to stop.
struct View<'a> {
    live: Live<'a>,
    session: &'a Session,
    cancelled: Arc<AtomicBool>,
}

impl<'a> View<'a> {
    fn new(session: &'a Session) -> Self {
        Self { live: Live::new(session), session, cancelled: process::cancellation() }
    }
}

impl Witness for View<'_> {
    fn stage(&self, name: &str, index: usize, of: usize) {
        self.live.stage(name, index, of);
    }

    fn event(&self, event: &Event) {
        self.live.event(event);
    }

    fn progress(&self, what: &str, done: u64, total: u64) {
        self.live.bytes(what, done, total);
    }

    fn note(&self, note: &str) {
        self.live.note(note);
    }

    fn done(&self, record: &StageRecord, redone: bool) {
        if redone {
            self.live.done(&record.name, record.seconds, &outcome(record));
        } else {
            self.session.detail(&format!("{}: up to date", record.name));
        }
    }

    fn stop(&self) -> bool {
        process::is_cancelled(&self.cancelled)
    }
}

/// `loss 2.940 -> 2.330  9 checks` of a stage that trained; what was measured of any.
fn outcome(record: &StageRecord) -> String {
    let mut parts = Vec::new();
    if let (Some(first), Some(last)) = (record.first_loss, record.final_loss) {
        parts.push(format!("loss {first:.3} -> {last:.3}"));
    }
    let measured = record.measured.iter();
    parts.extend(measured.map(|m| format!("ppl {} {:.2}", m.slice, m.perplexity)));
    parts.join("  ")
}
