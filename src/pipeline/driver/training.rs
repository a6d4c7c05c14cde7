//! A stage that trains: from a spec to a model that has been checked.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checks;
use super::surgery::{carry_out, speak_like};
use super::witness::{Eyes, Witness};
use crate::backend::protocol::{Destinations, Event, Outcome, Spec, Status, StepEvent, exit};
use crate::backend::{
    Backend, BackendSettings, Ended, Supervised, Watch, end_left_over, log_tail, supervise,
};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, IoContext as _, Result};
use crate::ops::{Inject, inject};
use crate::pipeline::record::StageRecord;
use crate::pipeline::store::write_json;

/// Silence of a backend that is worth a word.
const STALL: Duration = Duration::from_mins(30);
/// Lines of a failing backend's log that are shown.
const SHOWN: usize = 20;

/// What training a stage needs.
pub(super) struct Training<'a> {
    pub(super) backend: &'a Backend,
    pub(super) settings: &'a BackendSettings,
    pub(super) guard: &'a [OsString],
    pub(super) dir: &'a Path,
    pub(super) spec: &'a Spec,
    pub(super) input: &'a Checkpoint,
    /// The model whose tokenizer and chat template the result gets.
    pub(super) speech: Option<&'a Checkpoint>,
    pub(super) trust: bool,
    pub(super) sync: bool,
    pub(super) witness: &'a dyn Witness,
}

impl Training<'_> {
    /// Trains, adopts and checks. The stage's model is there afterwards.
    pub(super) fn run(&self, record: &mut StageRecord) -> Result<()> {
        let spec_path = self.prepare()?;
        if let Some(outcome) = self.finished() {
            match self.take(&outcome, record) {
                // Not the model's fault: it is still good.
                Err(error) if error.is_resumable() => return Err(error),
                Err(error) => {
                    let why = error.to_string().replace("\n  ", ": ");
                    self.witness
                        .note(&format!("an earlier result is refused, training again: {why}"));
                }
                Ok(()) => return Ok(()),
            }
        }
        let mut attempts = 0;
        let outcome = loop {
            match self.attempt(&spec_path, record) {
                Ok(outcome) => break outcome,
                Err(Error::Interrupted { resumable: true })
                    if attempts < self.settings.retries && !self.witness.stop() =>
                {
                    attempts += 1;
                    self.witness
                        .note(&format!("the backend was interrupted: attempt {}", attempts + 1));
                }
                Err(error) => return Err(error),
            }
        };
        self.take(&outcome, record)
    }

    /// Makes the stage's model from what the backend says it made.
    fn take(&self, outcome: &Outcome, record: &mut StageRecord) -> Result<()> {
        record.steps = Some(outcome.steps);
        record.steps_total = Some(outcome.steps_total);
        record.tokens = outcome.tokens.or(record.tokens);
        record.final_loss = outcome.final_loss.or(record.final_loss);
        record.versions.clone_from(&outcome.versions);
        self.adopt(outcome, record)
    }

    fn prepare(&self) -> Result<PathBuf> {
        fs::create_dir_all(&self.spec.out.work).at("create", &self.spec.out.work)?;
        if end_left_over(&self.pid_file()) {
            self.witness.note("a backend that an earlier run had left was ended");
        }
        let spec_path = self.dir.join("spec.json");
        write_json(&spec_path, self.spec)?;
        std::path::absolute(&spec_path).at("find", &spec_path)
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("backend.pid")
    }

    /// What an earlier attempt has finished, if it has.
    fn finished(&self) -> Option<Outcome> {
        // A result that cannot be read is none: the stage is trained.
        let outcome = self.backend.outcome(self.spec).ok()??;
        (is_complete(&outcome) && self.trained(&outcome).is_dir()).then_some(outcome)
    }

    /// The model that the result names: a relative path is the backend's, which runs in the stage's directory.
    fn trained(&self, outcome: &Outcome) -> PathBuf {
        outcome.model.as_ref().map_or_else(|| self.spec.out.model.clone(), |m| self.dir.join(m))
    }

    /// What an earlier attempt left as its result must not be taken for this one's. Checkpoints stay.
    fn clear(&self) -> Result<()> {
        let Destinations { result, model, .. } = &self.spec.out;
        for stale in [result, model] {
            let removed = match fs::symlink_metadata(stale) {
                Err(_) => continue,
                Ok(meta) if meta.is_dir() => fs::remove_dir_all(stale),
                Ok(_) => fs::remove_file(stale),
            };
            removed.at("remove", stale)?;
        }
        Ok(())
    }

    fn attempt(&self, spec_path: &Path, record: &mut StageRecord) -> Result<Outcome> {
        self.clear()?;
        self.backend.check(spec_path, self.spec, self.settings)?;
        let launch = self.backend.launch(spec_path, self.spec, self.settings)?;
        record.command = launch.program.iter().map(|a| a.to_string_lossy().into_owned()).collect();
        let log = self.dir.join("log.txt");
        let mut guard = self.guard.to_vec();
        let pid_file = std::path::absolute(self.pid_file()).at("find", self.dir)?;
        guard.extend(["--pid-file".into(), pid_file.into(), "--".into()]);
        let mut follower =
            Follower { witness: self.witness, record, first: None, last: None, error: None };
        let ended = supervise(
            Supervised {
                launch: &launch,
                guard: &guard,
                events: &self.spec.out.events,
                native: self.backend.events(self.spec),
                log: &log,
                grace: Duration::from_secs(self.settings.grace_seconds),
                stall: STALL,
            },
            &mut follower,
        )?;
        let said = follower.finish();
        let outcome = self.backend.outcome(self.spec);
        let judged = self.judge(ended, outcome, said.as_deref(), &log);
        if matches!(judged, Err(Error::Backend { .. })) && self.spec.out.result.is_file() {
            // It is kept for people; the next run must not believe it.
            let refused = self.spec.out.result.with_extension("refused.json");
            fs::rename(&self.spec.out.result, &refused).at("rename", &refused)?;
        }
        judged
    }

    /// Exit status 0 is not success: the result file says complete, the steps are all there, and the status agrees.
    fn judge(
        &self,
        ended: Ended,
        outcome: Result<Option<Outcome>>,
        said: Option<&str>,
        log: &Path,
    ) -> Result<Outcome> {
        let fail = |problem: String, hint: &str| Error::Backend {
            stage: self.spec.stage.as_str(),
            problem: said.map_or(problem.clone(), |said| format!("{problem}: {said}")),
            log: log.to_owned(),
            tail: log_tail(log, SHOWN),
            hint: hint.to_owned(),
        };
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => return Err(fail(format!("its result cannot be read: {error}"), "")),
        };
        let interrupted = ended.code == exit::INTERRUPTED
            || outcome.as_ref().is_some_and(|o| o.status == Status::Interrupted);
        match (ended.code, outcome) {
            (0, Some(outcome)) if is_complete(&outcome) => {
                let trained = self.trained(&outcome);
                if trained.is_dir() {
                    return Ok(outcome);
                }
                let problem = format!("it says complete, but `{}` is not there", trained.display());
                Err(fail(problem, "the result file must name the directory of the model"))
            }
            _ if ended.stopped || (interrupted && matches!(ended.code, 0 | exit::INTERRUPTED)) => {
                Err(Error::Interrupted { resumable: true })
            }
            (0, Some(outcome)) => Err(fail(
                format!(
                    "it ended with exit status 0 after step {} of {}",
                    outcome.steps, outcome.steps_total
                ),
                "run again to continue from its newest checkpoint",
            )),
            (0, None) => Err(fail(
                "it ended with exit status 0 and no result".to_owned(),
                "exit status 0 is not success: the backend must write the result file last",
            )),
            (exit::CONFIG, _) => Err(fail(
                "it refuses its configuration (exit status 64)".to_owned(),
                "correct what it names in elo.yaml; `elo-surgery render` shows the native configuration",
            )),
            (exit::DATA, _) => Err(fail(
                "it refuses the data (exit status 65)".to_owned(),
                "correct what it names",
            )),
            (exit::MISSING, _) => Err(fail(
                "a dependency or a device is missing (exit status 69)".to_owned(),
                "`elo-surgery backend check` tells more",
            )),
            (137, _) => Err(fail(
                "it was killed (signal 9)".to_owned(),
                "most likely the system ran out of memory: `elo-surgery plan` shows the need; lower `batch` or `sequence_length`, or use `align.method: layers`. Run again to continue",
            )),
            (code, _) if code > 128 => Err(fail(
                format!("it was ended by signal {}", code - 128),
                "run again to continue from its newest checkpoint",
            )),
            (code, _) => Err(fail(
                format!("it ended with exit status {code}"),
                "the log has the whole story; run again to continue from its newest checkpoint",
            )),
        }
    }

    /// Makes the stage's model: the input's names, dtypes, files and configuration with the trained values.
    fn adopt(&self, outcome: &Outcome, record: &mut StageRecord) -> Result<()> {
        // A record of ours in it was copied from the input and says nothing about this model.
        let trained = Checkpoint::open(self.trained(outcome))?.without_provenance();
        let mut verdict = checks::structure(self.input, &trained);
        self.refuse(&verdict)?;
        let mut plan = inject(&trained, self.input, &Inject { all: true, ..Inject::default() })?;
        if let Some(speech) = self.speech {
            speak_like(&mut plan, speech);
        }
        let candidate = self.dir.join("candidate");
        carry_out(&plan, &candidate, self.sync, &Eyes::on(self.witness, "taking over"))?;
        if self.trust {
            record.notes.push("the values were not checked (--trust-backend)".to_owned());
        } else {
            let eyes = Eyes::on(self.witness, "checking");
            let model = Checkpoint::open(&candidate)?;
            let values = checks::values(self.input, &model, &self.spec.trainable.tensors, &eyes)?;
            self.refuse(&values)?;
            verdict.checks.extend(values.checks);
        }
        for doubt in verdict.checks.iter().filter(|check| !check.ok) {
            self.witness.note(&format!("doubt: {}: {}", doubt.what, doubt.detail));
        }
        record.checks = verdict.checks;
        let model = self.dir.join("model");
        if model.exists() {
            fs::remove_dir_all(&model).at("remove", &model)?;
        }
        fs::rename(&candidate, &model).at("rename", &candidate)
    }

    fn refuse(&self, verdict: &checks::Verdict) -> Result<()> {
        if verdict.problems.is_empty() {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: format!("what the backend made in `{}` is not to be trusted", self.dir.display()),
            problems: verdict.problems.clone(),
            hint: "nothing was taken over; correct the backend's configuration and run again: the stage is trained again".into(),
        })
    }
}

fn is_complete(outcome: &Outcome) -> bool {
    outcome.status == Status::Complete && outcome.steps >= outcome.steps_total
}

/// Passes a backend's words on and keeps the figures.
struct Follower<'a> {
    witness: &'a dyn Witness,
    record: &'a mut StageRecord,
    first: Option<f64>,
    last: Option<StepEvent>,
    error: Option<String>,
}

impl Follower<'_> {
    /// Writes the figures down; what went wrong in the backend's own words.
    fn finish(self) -> Option<String> {
        if let Some(step) = self.last {
            self.record.steps = Some(step.step);
            self.record.tokens = step.tokens.or(self.record.tokens);
            self.record.tokens_per_second = step.tok_s.or(self.record.tokens_per_second);
            self.record.final_loss = step.loss.or(self.record.final_loss);
        }
        self.record.first_loss = self.record.first_loss.or(self.first);
        self.error
    }
}

impl Watch for Follower<'_> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Start { steps_total, .. } => {
                self.record.steps_total = steps_total.or(self.record.steps_total);
            }
            Event::Step(step) => {
                self.first = self.first.or(step.loss);
                self.last = Some(step.clone());
            }
            Event::Warn { msg } => self.witness.note(&crate::error::printable(msg)),
            Event::Error { msg, .. } => self.error = Some(crate::error::printable(msg)),
            _ => {}
        }
        self.witness.event(event);
    }

    fn stop(&self) -> bool {
        self.witness.stop()
    }

    fn note(&mut self, note: &str) {
        self.witness.note(note);
    }
}

/// Names of a list, for keys.
pub(super) fn joined(names: &[String]) -> String {
    names
        .iter()
        .map(String::as_str)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
        .join(",")
}
