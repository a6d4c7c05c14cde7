//! From plan to published output: checks, staging, shards, sidecars, provenance, rename.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Device;
use super::extents::Extents;
use super::journal::{Begun, Finished};
use super::observer::Observer;
use super::options::{Execution, Link, Report};
use super::run::Run;
use super::sidecar::{write_provenance, write_sidecar};
use super::simd::Simd;
use super::sink::{CARRIED, Carrier, Sink};
use super::staging::{Opened, Policy, Staging, resolved};
use super::whole;
use crate::error::{Error, IoContext, Result};
use crate::format::{FileRecord, ShardLayout, free_bytes};
use crate::plan::Plan;

/// Carries a plan out on the CPU. The output directory appears whole, or not at all.
///
/// An interrupted run is continued by calling again with the same plan; at most the shards that were at work are made
/// anew, and the result is the same bytes.
///
/// # Errors
/// Everything that [`Error`] names for outputs, sources, space and locks.
pub fn execute(plan: &Plan, options: &Execution, observer: &dyn Observer) -> Result<Report> {
    execute_on(&Simd::new(), plan, options, observer)
}

/// [`execute`] with the computing done by `device`. Every device gives the same bytes.
///
/// # Errors
/// As [`execute`].
pub fn execute_on(
    device: &dyn Device,
    plan: &Plan,
    options: &Execution,
    observer: &dyn Observer,
) -> Result<Report> {
    execute_into(device, plan, options, observer, None)
}

/// [`execute_on`], with every complete shard given to `sink` while later ones are made. Where the sink does not keep them,
/// no output directory appears: the sink has everything.
///
/// # Errors
/// As [`execute`], and the sink's.
pub fn execute_into(
    device: &dyn Device,
    plan: &Plan,
    options: &Execution,
    observer: &dyn Observer,
    sink: Option<&dyn Sink>,
) -> Result<Report> {
    plan.validate()?;
    check_tile(options.tile)?;
    let out = resolved(&options.out)?;
    check_place(plan, &out)?;
    let begun = Begun::new(plan, options.digest);
    let policy = Policy {
        overwrite: options.overwrite,
        restart: options.restart,
        sync: options.sync,
        sink: sink.is_some_and(|sink| !sink.keeps()),
    };
    let layouts = plan.layout();
    let mut report = Report {
        out: options.out.clone(),
        shards: layouts.len() as u64,
        plan: begun.plan.clone(),
        device: device.name(),
        ..Report::default()
    };
    let staging = match Staging::open(&options.out, &begun, policy)? {
        Opened::Done => {
            report.resumed = report.shards;
            return Ok(report);
        }
        Opened::Ready(staging) => Mutex::new(staging),
    };
    let worked = make(plan, &layouts, options, (device, observer), &staging, sink, &mut report);
    let staging = staging.into_inner().unwrap_or_else(PoisonError::into_inner);
    match worked {
        Ok(()) => {
            if sink.is_none_or(Sink::keeps) {
                staging.publish()?;
            } else {
                staging.dissolve()?;
            }
            // One that chooses has chosen by now.
            report.device = device.name();
            Ok(report)
        }
        Err(error) => Err(staging.abandon(error)),
    }
}

/// A tile must be a complete subtree of the digest's tree and large enough to be worth a system call.
fn check_tile(tile: u64) -> Result<()> {
    if tile.is_power_of_two() && (4 << 10..=1 << 30).contains(&tile) {
        return Ok(());
    }
    Err(Error::Usage {
        problem: format!("a tile of {tile} bytes is not a power of two between 4 KiB and 1 GiB"),
        hint: "the default is 1 MiB".into(),
    })
}

fn make(
    plan: &Plan,
    layouts: &[ShardLayout],
    options: &Execution,
    (device, observer): (&dyn Device, &dyn Observer),
    staging: &Mutex<Staging>,
    sink: Option<&dyn Sink>,
    report: &mut Report,
) -> Result<()> {
    let locked = || staging.lock().unwrap_or_else(PoisonError::into_inner);
    let tree = locked().tree();
    if let Some(sink) = sink {
        forget_lost(sink, staging)?;
    }
    let done: BTreeSet<String> = locked().finished().iter().map(|s| s.file.clone()).collect();
    let pending: Vec<usize> =
        (0..layouts.len()).filter(|&i| !done.contains(&layouts[i].file)).collect();
    report.resumed = done.len() as u64;
    if report.resumed > 0 {
        observer.note(&format!(
            "continuing: {} of {} shards are finished",
            done.len(),
            layouts.len()
        ));
    }
    let whole = whole::resolved(plan, device, options, observer)?;
    let run = Run::new(&whole, layouts, &pending, tree.clone(), options, device, observer);
    let at_once = sink.filter(|sink| !sink.keeps()).map(|_| run.threads() + CARRIED);
    check_space(plan, layouts, &pending, options, &tree, at_once)?;
    let finish = |shard| locked().finish(shard);
    match sink {
        None => run.work(&finish)?,
        Some(sink) => {
            let here = |shard: &&Finished| !locked().taken().contains_key(&shard.file);
            let before: Vec<Finished> = locked().finished().to_vec();
            let before: Vec<Finished> = before.iter().filter(here).cloned().collect();
            Carrier::new(sink, staging, tree.clone()).beside(&before, |hand_on| {
                run.work(&|shard: Finished| {
                    finish(shard.clone())?;
                    hand_on(shard)
                })
            })?;
        }
    }
    let mut shards = locked().finished().to_vec();
    shards.sort_by(|a, b| a.file.cmp(&b.file));
    for shard in &shards {
        report.shared += shard.shared;
        report.written += shard.size - shard.shared;
        report.non_finite.extend(shard.non_finite.clone());
    }
    // What was taken away is told as the sink knows it.
    let taken = locked().taken().clone();
    let told = |shard: &Finished| taken.get(&shard.file).cloned().unwrap_or_else(|| shard.record());
    let mut files: Vec<FileRecord> = shards.iter().map(told).collect();
    for sidecar in &plan.sidecars {
        files.push(write_sidecar(sidecar, &tree, options)?);
    }
    files.sort_by(|a, b| a.file.cmp(&b.file));
    write_provenance(plan, &report.plan, files.clone(), &tree, options.sync)?;
    sink.map_or(Ok(()), |sink| sink.complete(&tree, &files))
}

/// Shards that a sink was given by an earlier run and has no more are to be made again.
fn forget_lost(sink: &dyn Sink, staging: &Mutex<Staging>) -> Result<()> {
    let mut staging = staging.lock().unwrap_or_else(PoisonError::into_inner);
    let mut lost = BTreeSet::new();
    for shard in staging.taken().values() {
        if !sink.has(shard)? {
            lost.insert(shard.file.clone());
        }
    }
    staging.lose(&lost);
    Ok(())
}

/// Refuses an output that is, holds or lies in an input, under whatever name.
fn check_place(plan: &Plan, out: &Path) -> Result<()> {
    let mut inputs: BTreeSet<PathBuf> = BTreeSet::new();
    for source in &plan.sources {
        inputs.insert(fs::canonicalize(&source.path).at("open", &source.path)?);
        // Names of models are text for people; a directory that is no UTF-8 is known by its files.
        if let Some(dir) = source.path.parent() {
            let named = |name: &str| name == dir.display().to_string();
            if plan.parents.iter().any(|parent| named(&parent.model)) {
                inputs.insert(fs::canonicalize(dir).at("open", dir)?);
            }
        }
    }
    for parent in &plan.parents {
        // A model that was given as a directory is an input as a whole.
        if let Ok(path) = fs::canonicalize(&parent.model) {
            inputs.insert(path);
        }
    }
    let identity = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let own = identity(out);
    let above: Vec<_> = out.ancestors().skip(1).filter_map(identity).collect();
    for input in inputs {
        let Some(id) = identity(&input) else { continue };
        let relation = if own == Some(id) {
            "is"
        } else if input.is_dir() && above.contains(&id) {
            "lies inside"
        } else if own
            .is_some_and(|own| input.ancestors().skip(1).filter_map(identity).any(|up| up == own))
        {
            "contains"
        } else {
            continue;
        };
        return Err(Error::OutputIsInput { output: out.to_owned(), input, relation });
    }
    Ok(())
}

/// Fails early where the output cannot fit. Shards that may share blocks with their template are not counted: those on
/// its filesystem of which at most half changes. If shards go, the largest that may be here `at_once` must fit.
fn check_space(
    plan: &Plan,
    layouts: &[ShardLayout],
    pending: &[usize],
    options: &Execution,
    tree: &Path,
    at_once: Option<usize>,
) -> Result<()> {
    let device = fs::metadata(tree).at("examine", tree)?.dev();
    let may_share = |i: usize| {
        plan.shards[i].template.is_some_and(|template| {
            let near = plan.sources[template.0 as usize].identity.dev == device;
            let few = || Extents::new(plan, i, &layouts[i]).few_changes(template).is_some();
            options.link != Link::Never && near && few()
        })
    };
    let owned = pending.iter().filter(|&&i| !may_share(i)).map(|&i| layouts[i].size);
    let mut sizes: Vec<u64> = owned.collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let needed: u64 = sizes.iter().take(at_once.unwrap_or(usize::MAX)).sum();
    let free = free_bytes(tree);
    if needed > free {
        return Err(Error::NoSpace { path: options.out.clone(), needed, free });
    }
    Ok(())
}
