//! What every surgery verb has in common: from a plan to an output, a dry run, or a plan file.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use clap::Args;

use super::arguments::{DigestChoice, IoChoice, LinkChoice, parse_tile};
use super::device::{Chosen, DeviceChoice};
use super::failure::{Failure, Origins};
use super::progress::Watcher;
use super::session::Session;
#[cfg(feature = "hub")]
use super::streaming::{self, Streaming};
use super::units::{parse_size, size};
use super::{process, summary};
use crate::engine::{Execution, Link, Observer, Report, execute_on};
use crate::error::Error;
use crate::plan::{Operand, Part, Plan, Slice};

/// Smallest tile the engine takes.
const SMALLEST_TILE: u64 = 64 << 10;

/// Where the result goes and how it is made. Nothing here changes its bytes.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct How {
    /// Write the result to this directory
    #[arg(short, long, value_name = "DIR", help_heading = "Output options")]
    pub(super) out: Option<PathBuf>,
    /// Replace an existing output, in one step
    #[arg(long, help_heading = "Output options")]
    pub(super) overwrite: bool,
    /// Discard an unfinished run instead of continuing it
    #[arg(long, help_heading = "Output options")]
    pub(super) restart: bool,
    /// Show what would be done and write nothing
    #[arg(short = 'n', long, help_heading = "Output options")]
    pub(super) dry_run: bool,
    /// Digest of the output files in `elo-surgery.json`; `sha256` is the Hub's
    #[arg(long, value_enum, value_name = "NAME", default_value_t, help_heading = "Output options")]
    pub(super) digest: DigestChoice,
    /// Do not flush files to the disk: safe against kill -9, not against power loss
    #[arg(long, help_heading = "Output options")]
    pub(super) no_sync: bool,
    /// How unchanged bytes get there: reflink or copy, hard link whole files, or copy
    #[arg(long, value_enum, value_name = "HOW", default_value_t, help_heading = "Output options")]
    pub(super) link: LinkChoice,
    /// Keep values that become NaN or infinite although every input was finite
    #[arg(long, help_heading = "Output options")]
    pub(super) allow_nonfinite: bool,
    /// Compute on: `auto` (the CPU, or GPUs where they prove faster), `cpu`, `cuda` (all GPUs), `cuda:0,1`
    #[arg(long, value_name = "DEVICE", default_value_t, help_heading = "Execution options")]
    pub(super) device: DeviceChoice,
    /// Bound the memory taken on GPUs, all together, such as `2GB`
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Execution options")]
    pub(super) device_memory: Option<u64>,
    /// Bound the memory of the work in flight (threads x tile x operands), such as `2GB`
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Execution options")]
    pub(super) memory: Option<u64>,
    /// Worker threads [default: one a core]
    #[arg(
        short = 'j',
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "Execution options"
    )]
    pub(super) threads: u16,
    /// How sources are read; `mmap` saves a copy where one thread works
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        default_value_t,
        help_heading = "Execution options"
    )]
    pub(super) io: IoChoice,
    #[cfg(feature = "hub")]
    #[command(flatten)]
    pub(super) streaming: Streaming,
    /// Bytes of output worked on at once by a thread
    #[arg(long, value_name = "SIZE", value_parser = parse_tile, hide = true)]
    pub(super) tile: Option<u64>,
}

/// A plan, and what is known about where it came from and where it goes.
pub(super) struct Planned {
    pub(super) plan: Plan,
    /// The output directory, by flag, by project or by rule; none where only the user can say.
    pub(super) out: Option<PathBuf>,
    pub(super) origins: Origins,
}

/// A verb that makes a plan and carries it out.
pub(super) trait Surgical {
    /// The full form, for errors.
    const FULL_FORM: &'static str;

    /// How to carry the plan out.
    fn how(&self) -> &How;

    /// Reads headers and configs and makes the plan. Origins that are known are kept even when it fails.
    fn draft(
        &self,
        session: &Session,
        origins: &mut Origins,
    ) -> Result<(Plan, Option<PathBuf>), Failure>;

    /// The plan, or a failure that names the flag behind it.
    fn planned(&self, session: &Session) -> Result<Planned, Failure> {
        let mut origins = Origins::default();
        match self.draft(session, &mut origins) {
            Ok((plan, out)) => Ok(Planned { plan, out, origins }),
            Err(failure) => Err(origins.explain(failure)),
        }
    }

    /// Plans and carries out.
    fn run(&self, session: &Session) -> Result<(), Failure> {
        self.how().device.check(self.how().device_memory)?;
        let planned = self.planned(session)?;
        carry_out(&planned, self.how(), Self::FULL_FORM, session)
    }
}

/// Memory and threads of a run.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Budget {
    pub(super) threads: usize,
    pub(super) tile: u64,
    /// Bytes of the work in flight.
    pub(super) bytes: u64,
}

impl How {
    /// The directory that `--push` names where `--out` does not.
    #[cfg_attr(not(feature = "hub"), expect(clippy::unused_self, reason = "as with the Hub"))]
    pub(super) fn pushed_name(&self) -> Option<PathBuf> {
        #[cfg(feature = "hub")]
        return self.streaming.default_out();
        #[cfg(not(feature = "hub"))]
        None
    }

    /// Threads and tile within the bounds of `--memory`.
    ///
    /// A thread holds the output's tile, one more for its edges, and what each operand takes for a tile. Smaller tiles
    /// are tried before fewer threads: they cost less speed.
    pub(super) fn budget(&self, plan: &Plan) -> Result<Budget, Failure> {
        let cores = available_parallelism().map_or(1, usize::from);
        let mut threads = if self.threads == 0 { cores } else { self.threads.into() };
        let mut tile = self.tile.unwrap_or(self.device.tile());
        let buffers = operands(plan) + 2;
        let (factors, held) = (factors(plan), plan.held());
        let bytes = |threads: usize, tile: u64| {
            let each = tile.saturating_mul(buffers).saturating_add(factors);
            each.saturating_mul(threads as u64).saturating_add(held)
        };
        if let Some(limit) = self.memory {
            while bytes(threads, tile) > limit && tile > SMALLEST_TILE && self.tile.is_none() {
                tile /= 2;
            }
            while bytes(threads, tile) > limit && threads > 1 {
                threads -= 1;
            }
            if bytes(threads, tile) > limit {
                return Err(Failure::usage(
                    format!("{} of memory are too little for one thread", size(limit)),
                    format!("use `--memory {}B` or more", bytes(1, tile)),
                ));
            }
        }
        Ok(Budget { threads, tile, bytes: bytes(threads, tile) })
    }

    /// The engine's options.
    pub(super) fn execution(&self, out: PathBuf, budget: Budget) -> Execution {
        Execution {
            overwrite: self.overwrite,
            restart: self.restart,
            threads: budget.threads,
            tile: budget.tile,
            sync: !self.no_sync,
            digest: self.digest.algorithm(),
            link: match self.link {
                LinkChoice::Auto => Link::Auto,
                LinkChoice::Hard => Link::Hard,
                LinkChoice::Never => Link::Never,
            },
            reading: self.io.into(),
            allow_nonfinite: self.allow_nonfinite,
            ..Execution::to(out)
        }
    }
}

/// The most that the operands of any output tile take, in tiles.
fn operands(plan: &Plan) -> u64 {
    let tensors = plan.tensors.iter();
    let takes = tensors.flat_map(|tensor| {
        let own = tensor.dtype.bytes().unwrap_or(1);
        tensor.parts.iter().map(move |part| {
            let Part::Blend(blend) = part else { return u64::from(matches!(part, Part::Copy(_))) };
            let takes = |operand: &Operand| {
                let width = operand.dtype().bytes().unwrap_or(1).div_ceil(own);
                // What is made stands beside what it is made of.
                if operand.is_plain() { width } else { 2 * width }
            };
            blend.operands().map(takes).sum::<u64>()
        })
    });
    takes.max().unwrap_or(0)
}

/// The most that the low-rank factors of any part's operands take, in bytes: they are read for every tile.
fn factors(plan: &Plan) -> u64 {
    let parts = plan.tensors.iter().flat_map(|tensor| &tensor.parts);
    let takes = parts.filter_map(|part| match part {
        Part::Blend(blend) => Some(blend.operands().flat_map(|operand| &operand.adapters)),
        _ => None,
    });
    let len = |slice: &Slice| slice.bytes.end - slice.bytes.start;
    let takes = takes.map(|adapters| adapters.map(|a| len(&a.down) + len(&a.up)).sum());
    takes.max().unwrap_or(0)
}

/// Carries a plan out, or shows it.
pub(super) fn carry_out(
    planned: &Planned,
    how: &How,
    full_form: &str,
    session: &Session,
) -> Result<(), Failure> {
    let Planned { plan, out, origins } = planned;
    let Some(out) = &out.clone().or_else(|| how.pushed_name()) else {
        return Err(Failure::usage(
            "no `--out DIR` is given",
            format!("the full form: `{full_form}`"),
        ));
    };
    let budget = how.budget(plan)?;
    if how.dry_run {
        let device = how.device.foresee(plan)?;
        summary::dry_run(plan, out, how.overwrite, budget, &device, session)?;
        #[cfg(feature = "hub")]
        if let Some(line) = how.streaming.foreseen().filter(|_| !session.json) {
            session.say(&line);
        }
        return Ok(());
    }
    // What the engine would refuse is refused before anything is fetched for it.
    if !how.overwrite && is_occupied(out) && session.hub.would_fetch(plan) {
        return Err(origins.explain(Error::OutputExists { path: out.clone() }.into()));
    }
    let execution = how.execution(out.clone(), budget);
    let chosen = how.device.open(plan, how.device_memory, budget.threads)?;
    #[cfg(feature = "hub")]
    if how.streaming.repository().is_some() {
        let run = streaming::Run { plan, out, origins, chosen: &chosen, execution, session };
        return how.streaming.carry_out(run);
    }
    watch(plan, origins, session, &chosen, |watcher| {
        execute_on(chosen.device.as_ref(), plan, &execution, watcher)
    })
}

fn is_occupied(out: &Path) -> bool {
    let is_empty = |out: &Path| std::fs::read_dir(out).is_ok_and(|mut list| list.next().is_none());
    std::fs::symlink_metadata(out).is_ok() && !is_empty(out)
}

/// Watches the engine at work on a plan and tells what came of it.
pub(super) fn watch(
    plan: &Plan,
    origins: &Origins,
    session: &Session,
    chosen: &Chosen,
    work: impl FnOnce(&dyn Observer) -> Result<Report, Error>,
) -> Result<(), Failure> {
    let (report, time) = watched(plan, origins, session, chosen, work)?;
    match summary::done(plan, &report, &chosen.reason(), time, session) {
        Some(object) => session.print_json(&object),
        None => Ok(()),
    }
}

/// Watches the engine at work on a plan: what came of it, and how long it took.
pub(super) fn watched(
    plan: &Plan,
    origins: &Origins,
    session: &Session,
    chosen: &Chosen,
    work: impl FnOnce(&dyn Observer) -> Result<Report, Error>,
) -> Result<(Report, Duration), Failure> {
    session.hub.fetch_for(plan, session)?;
    let watcher = Watcher::new(session, process::cancellation());
    let started = Instant::now();
    let report = work(&watcher);
    watcher.finish();
    let report = report.map_err(|error| origins.explain(error.into()))?;
    chosen.tell(session);
    Ok((report, started.elapsed()))
}

/// Notes a flag's value where it was given.
pub(super) fn origin_of(origins: &mut Origins, flag: &str, value: Option<&impl AsRef<OsStr>>) {
    if let Some(value) = value {
        origins.flag(flag, value);
    }
}
