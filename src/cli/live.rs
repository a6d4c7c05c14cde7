//! Watching a pipeline: which stage runs, how far it is, how its loss goes.
//!
//! On a terminal a bar with a small curve; elsewhere a line every few seconds; with `--json` one object for each
//! event; nothing with `--quiet`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::session::Session;
use super::units::size;
use crate::audit::{Seconds, Short};
use crate::backend::protocol::{Event, Status, StepEvent};
use crate::error::printable;

/// Least time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Least time between two JSON objects for steps.
const JSON_EVERY: Duration = Duration::from_millis(500);
/// Least time between two looks at bytes.
const BYTES_EVERY: Duration = Duration::from_millis(100);
/// Columns of the curve.
const CURVE: usize = 24;

/// Shows a run of the pipeline. Can be told from several threads.
pub(super) struct Live<'a> {
    session: &'a Session,
    state: Mutex<State>,
}

/// The stage at work.
#[derive(Default)]
struct State {
    name: String,
    place: String,
    bar: Option<ProgressBar>,
    told: Option<Instant>,
    pace: Pace,
    last: StepEvent,
    losses: Vec<f64>,
}

/// How fast steps follow one another, since this process watches.
#[derive(Default)]
struct Pace {
    total: Option<u64>,
    first: Option<(u64, Instant)>,
}

impl Pace {
    /// Time left, once two steps have been seen.
    fn left(&self, step: u64, now: Instant) -> Option<f64> {
        let (first, since) = self.first?;
        let (done, total) = (step.checked_sub(first)?, self.total?);
        let left = total.checked_sub(step)?;
        let seconds = now.duration_since(since).as_secs_f64();
        (done > 0 && left > 0).then(|| seconds / count(done) * count(left))
    }
}

impl<'a> Live<'a> {
    pub(super) fn new(session: &'a Session) -> Self {
        Self { session, state: Mutex::default() }
    }

    /// A stage begins: the `index`th of so many, from 1.
    pub(super) fn stage(&self, name: &str, index: usize, of: usize) {
        let mut state = self.state();
        state.clear();
        *state = State {
            name: printable(name),
            place: format!("{index}/{of}"),
            bar: self.session.has_bar().then(|| bar(self.session.has_colour())),
            ..State::default()
        };
        if let Some(bar) = &state.bar {
            bar.set_prefix(format!("{} {}", state.place, state.name));
            bar.tick();
        } else if self.session.json {
            self.object(&json!({ "event": "stage", "stage": name, "index": index, "of": of }));
        } else {
            self.session.say(&format!("[{}] {}", state.place, state.name));
        }
    }

    /// Something the backend tells.
    pub(super) fn event(&self, event: &Event) {
        let mut state = self.state();
        match event {
            Event::Start { steps_total, resumed_at } => {
                state.pace = Pace { total: *steps_total, first: None };
                if let Some(step) = resumed_at.filter(|step| *step > 0) {
                    let line = format!("{} goes on after step {step}", state.name);
                    self.tell(&state, &line);
                }
                self.told(&state, event);
            }
            Event::Step(step) => self.step(&mut state, step),
            Event::Warn { msg } => {
                if self.session.json {
                    self.told(&state, event);
                } else {
                    state.aside(|| self.session.warn(&printable(msg)));
                }
            }
            Event::Error { msg, .. } => {
                if self.session.json {
                    self.told(&state, event);
                } else {
                    let line = format!("{}: {}", state.name, printable(msg));
                    state.aside(|| self.session.warn(&line));
                }
            }
            Event::Eval { step, loss } => {
                let line = format!("{}  step {step}  held-out loss {loss:.3}", state.name);
                self.tell(&state, &line);
                self.told(&state, event);
            }
            Event::End { status: Status::Interrupted } => {
                self.tell(&state, &format!("{} stopped; it can go on", state.name));
                self.told(&state, event);
            }
            Event::Checkpoint { .. } | Event::End { .. } => self.told(&state, event),
            Event::Unknown => {}
        }
    }

    fn step(&self, state: &mut State, step: &StepEvent) {
        let now = Instant::now();
        state.pace.first.get_or_insert((step.step, now));
        state.losses.extend(step.loss.filter(|loss| loss.is_finite()));
        // Backends tell some figures with some steps only.
        let earlier = std::mem::take(&mut state.last);
        state.last = StepEvent {
            step: step.step,
            loss: step.loss.or(earlier.loss),
            lr: step.lr.or(earlier.lr),
            tokens: step.tokens.or(earlier.tokens),
            tok_s: step.tok_s.or(earlier.tok_s),
            grad_norm: step.grad_norm.or(earlier.grad_norm),
        };
        let left = state.pace.left(step.step, now);
        if let Some(bar) = &state.bar {
            if let Some(total) = state.pace.total {
                bar.set_length(total);
            }
            bar.set_message(message(&state.last, state.pace.total, left, &state.losses));
            bar.set_position(step.step);
            return;
        }
        let every = if self.session.json { JSON_EVERY } else { LINE_EVERY };
        let is_last = state.pace.total == Some(step.step);
        let is_due = state.told.is_none_or(|told| now.duration_since(told) >= every);
        if !is_due && !is_last {
            return;
        }
        state.told = Some(now);
        if self.session.json {
            self.told(state, &Event::Step(step.clone()));
        } else {
            self.session.say(&line(&state.name, &state.last, state.pace.total, left));
        }
    }

    /// A decision worth knowing.
    pub(super) fn note(&self, note: &str) {
        let state = self.state();
        if self.session.json {
            self.object(&json!({ "event": "note", "stage": state.name, "message": note }));
        } else {
            state.aside(|| self.session.note(&printable(note)));
        }
    }

    /// How far a long piece of work without steps is: bytes done of bytes in all.
    pub(super) fn bytes(&self, what: &str, done: u64, total: u64) {
        let mut state = self.state();
        let now = Instant::now();
        let is_due = state.told.is_none_or(|told| now.duration_since(told) >= BYTES_EVERY);
        if !is_due || !self.session.has_bar() {
            return;
        }
        state.told = Some(now);
        let prefix = format!("{} {}", state.place, state.name);
        let colour = self.session.has_colour();
        let bar = state.bar.get_or_insert_with(|| bar(colour));
        bar.set_prefix(prefix);
        bar.set_length(total.max(1));
        bar.set_position(done);
        bar.set_message(format!("{what}  {} of {}", size(done), size(total)));
    }

    /// A stage is complete; `line` says in short what came of it.
    pub(super) fn done(&self, name: &str, seconds: f64, line: &str) {
        let mut state = self.state();
        state.clear();
        if self.session.json {
            self.object(&json!({
                "event": "done", "stage": name, "seconds": seconds, "message": line
            }));
        } else {
            self.session.say(&finished(&state.place, &printable(name), seconds, line));
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.state().clear();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line beside the bar.
    fn tell(&self, state: &State, line: &str) {
        state.aside(|| self.session.say(line));
    }

    /// The backend's event, with the stage, for programs.
    fn told(&self, state: &State, event: &Event) {
        if !self.session.json {
            return;
        }
        if let Ok(Value::Object(mut object)) = serde_json::to_value(event) {
            object.insert("stage".into(), state.name.clone().into());
            self.object(&Value::Object(object));
        }
    }

    fn object(&self, object: &Value) {
        if !self.session.quiet {
            Session::event(object);
        }
    }
}

impl State {
    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Runs what writes lines while the bar is away.
    fn aside(&self, write: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

/// `pretrain  step 120/480  loss 2.310  lr 4.1e-6  463 k tok/s  2 min 05 s left`
fn line(name: &str, step: &StepEvent, total: Option<u64>, left: Option<f64>) -> String {
    let mut parts = vec![name.to_owned(), format!("step {}", fraction(step.step, total))];
    parts.extend(figures(step));
    parts.extend(left.map(|left| format!("{} left", Seconds(left))));
    parts.join("  ")
}

/// What stands right of the bar, and under it.
fn message(step: &StepEvent, total: Option<u64>, left: Option<f64>, losses: &[f64]) -> String {
    let mut first = fraction(step.step, total);
    if let Some(left) = left {
        first = format!("{first}  {} left", Seconds(left));
    }
    let mut second = figures(step);
    let curve = sparkline(losses, CURVE);
    if !curve.is_empty() {
        second.push(curve);
    }
    if second.is_empty() { first } else { format!("{first}\n  {}", second.join("  ")) }
}

/// `120/480`, or `120` where nobody knows how many there are.
fn fraction(step: u64, total: Option<u64>) -> String {
    total.map_or_else(|| step.to_string(), |total| format!("{step}/{total}"))
}

/// `loss 2.310`, `lr 4.1e-6`, `463 k tok/s`: what is known.
fn figures(step: &StepEvent) -> Vec<String> {
    let mut parts = Vec::new();
    parts.extend(step.loss.map(|loss| format!("loss {loss:.3}")));
    parts.extend(step.lr.map(|lr| format!("lr {lr:.1e}")));
    parts.extend(step.tok_s.map(|rate| format!("{} tok/s", Short(rate))));
    parts
}

/// `[2/6] pretrain done in 3 min 20 s: loss 2.94 to 2.33`
fn finished(place: &str, name: &str, seconds: f64, line: &str) -> String {
    let place = if place.is_empty() { String::new() } else { format!("[{place}] ") };
    let line = if line.is_empty() { String::new() } else { format!(": {line}") };
    format!("{place}{name} done in {}{line}", Seconds(seconds))
}

/// A curve of at most so many blocks, each the mean of its share of the values; the last one is the newest.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place from 0 to 7")]
fn sparkline(values: &[f64], columns: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let columns = columns.min(values.len());
    if columns < 2 {
        return String::new();
    }
    let means: Vec<f64> = (0..columns)
        .filter_map(|i| {
            let share = &values[i * values.len() / columns..(i + 1) * values.len() / columns];
            let mean = share.iter().sum::<f64>() / count(share.len() as u64);
            mean.is_finite().then_some(mean)
        })
        .collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let place = |mean: f64| {
        let share = if high > low { (mean - low) / (high - low) } else { 0.0 };
        BLOCKS[((share * 7.0).round() as usize).min(7)]
    };
    means.into_iter().map(place).collect()
}

#[expect(clippy::cast_precision_loss, reason = "counts of steps and values")]
fn count(count: u64) -> f64 {
    count as f64
}

fn bar(coloured: bool) -> ProgressBar {
    let template =
        if coloured { "{prefix:.bold}  {bar:24.cyan}  {msg}" } else { "{prefix}  {bar:24}  {msg}" };
    // The template is a constant; were it wrong, the plain bar would still do.
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> StepEvent {
        StepEvent {
            step: 120,
            loss: Some(2.31),
            lr: Some(4.1e-6),
            tok_s: Some(463_000.0),
            ..StepEvent::default()
        }
    }

    #[test]
    fn lines_say_what_is_known() {
        assert_eq!(
            line("pretrain", &step(), Some(480), Some(125.0)),
            "pretrain  step 120/480  loss 2.310  lr 4.1e-6  463 k tok/s  2 min 05 s left"
        );
        let bare = StepEvent { step: 3, ..StepEvent::default() };
        assert_eq!(line("align", &bare, None, None), "align  step 3");
        assert_eq!(
            finished("2/6", "align", 3.2, "loss 2.45 to 2.34"),
            "[2/6] align done in 3.2 s: loss 2.45 to 2.34"
        );
        assert_eq!(finished("", "align", 3.2, ""), "align done in 3.2 s");
    }

    #[test]
    fn the_bar_has_its_curve_on_a_second_line() {
        let text = message(&step(), Some(480), Some(60.0), &[4.0, 3.0, 2.0]);
        assert_eq!(text, "120/480  1 min 00 s left\n  loss 2.310  lr 4.1e-6  463 k tok/s  █▅▁");
    }

    #[test]
    fn curves_are_means_between_their_extremes() {
        assert_eq!(sparkline(&[], 8), "");
        assert_eq!(sparkline(&[1.0], 8), "");
        assert_eq!(sparkline(&[1.0, 1.0], 8), "▁▁");
        let falling: Vec<f64> = (0..100).map(|i| 100.0 - f64::from(i)).collect();
        assert_eq!(sparkline(&falling, 8), "█▇▆▅▄▃▂▁");
        assert_eq!(sparkline(&falling, 24).chars().count(), 24);
    }

    #[test]
    fn time_left_counts_from_the_first_step_that_was_seen() {
        let start = Instant::now();
        let pace = Pace { total: Some(480), first: Some((100, start)) };
        let left = pace.left(120, start + Duration::from_secs(10)).unwrap();
        assert!((left - 180.0).abs() < 1e-6, "{left}");
        assert!(pace.left(100, start).is_none() && pace.left(480, start).is_none());
        assert!(Pace::default().left(3, start).is_none());
    }

    #[test]
    fn a_stage_can_be_told_without_a_terminal() {
        let session = Session::new(clap::ColorChoice::Never, false, 0, true, false);
        let live = Live::new(&session);
        live.event(&Event::Step(step()));
        live.stage("pretrain", 2, 6);
        live.event(&Event::Start { steps_total: Some(480), resumed_at: Some(3) });
        live.event(&Event::Step(step()));
        live.event(&Event::Step(StepEvent {
            step: 121,
            loss: Some(f64::NAN),
            ..StepEvent::default()
        }));
        assert_eq!(live.state().losses, [2.31]);
        assert_eq!(live.state().last.lr, Some(4.1e-6));
        live.event(&Event::Warn { msg: "\u{1b}[2J".into() });
        live.note("x");
        live.done("pretrain", 3.0, "");
        live.finish();
    }
}
