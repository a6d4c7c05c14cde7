//! Merging models by mergekit's configuration language.
//!
//! ```text
//! Config (what the document says)  ->  slices (bound to models)  ->  tensors (a formula each)  ->  Plan
//! ```
//!
//! Arithmetic is that of [`Blend`](crate::plan::Blend): exact inputs, f32 sums, one rounding. Whatever mergekit would
//! do and this program does not is refused with its place in the document; nothing is approximated. What mergekit itself
//! ignores has no effect, and a note of the plan tells it.

mod card;
mod chain;
mod config;
mod documents;
mod dtypes;
mod exceptions;
mod expression;
mod extension;
mod importance;
mod methods;
pub mod moe;
mod parameters;
mod read;
mod reference;
mod slices;
mod tensors;
mod vectors;
mod vocabulary;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde_json::json;

pub use config::Config;
pub use reference::Reference;

use self::importance::Importances;
use self::read::Problems;
use self::slices::Slice;
use self::tensors::{Tensors, role};
use super::draft::{Derived, Draft};
use super::extract::check_layer_count;
use crate::checkpoint::{CARD_FILE, Checkpoint, Modules, keep_layers, set_dtype, set_vocab_size};
use crate::error::{Error, Result};
use crate::plan::{Keep, Numerics, Operand, Part, Plan, Sidecar, SidecarContent};

/// The configuration as it was given, beside the result.
const CONFIG_FILE: &str = "mergekit_config.yml";

/// How the result is laid out.
#[derive(Clone, Debug, Default)]
pub struct Merge {
    /// Data bytes of a shard, to lay the output out anew; the layout of the first of [`Config::models`] otherwise.
    pub shard_size: Option<u64>,
    /// Where vocabularies differ in size, keep the rows that all models have instead of refusing.
    pub truncate_embeddings: bool,
    /// The rules of arithmetic.
    pub numerics: Numerics,
    /// Where random numbers of `dare_*` and `della*` start: the same seed gives the same bytes.
    pub random_seed: u64,
    /// Leave out the model card.
    pub no_model_card: bool,
    /// Models that earlier documents have made: the card names what they are made of.
    pub made: Vec<Intermediate>,
}

/// A model that an earlier document of the file has made.
#[derive(Clone, Debug)]
pub struct Intermediate {
    /// What the documents call it.
    pub name: PathBuf,
    /// What it was made of, and where these lie. Intermediate models among them stand before it in [`Merge::made`].
    pub parents: Vec<(Reference, PathBuf)>,
}

/// Models that do not fit, all problems at once.
fn refuse(problems: Problems) -> Error {
    let mut lines = problems.0;
    let mut seen = HashSet::new();
    lines.retain(|line| seen.insert(line.clone()));
    let shapes = lines.iter().any(|line| line.contains(tensors::DIFFERS));
    let missing = lines.iter().any(|line| line.contains(exceptions::MISSING));
    let hint = if shapes {
        "where only vocabularies differ, `tokenizer: {source: union}` aligns them, and `--truncate-embeddings` keeps the rows that all models have"
    } else if missing {
        "`elo_surgery: {missing_tensors: base}` (or `present`) says what becomes of tensors that some models lack"
    } else if lines.iter().any(|line| line.contains(tensors::LOST)) {
        "`elo_surgery: {extra_tensors: drop}` leaves out tensors that the result has no place for"
    } else {
        "docs/merge.md has the rules, and what is supported"
    };
    let what = "the models cannot be merged".to_owned();
    Error::Mismatch { what, problems: lines, hint: hint.to_owned() }
}

/// An empty plan with what was asked for.
fn started(config: &Config, request: &Merge) -> Result<Draft> {
    let mut parameters = json!({
        "merge_method": config.method.name,
        "shard_size": request.shard_size,
        "truncate_embeddings": request.truncate_embeddings,
        "random_seed": request.random_seed,
    });
    if request.numerics == Numerics::Mergekit {
        parameters["numerics"] = json!(request.numerics);
    }
    if request.numerics == Numerics::Mergekit && request.random_seed > u64::from(u32::MAX) {
        let problem = "mergekit's random seeds have 32 bits".to_owned();
        let hint = format!("`--random-seed` goes from 0 to {}", u32::MAX);
        return Err(Error::Usage { problem, hint });
    }
    Ok(Draft::new("merge", &parameters))
}

/// Plans a merge of the models that [`Config::models`] names, in that order.
///
/// # Errors
/// Models that do not fit together or not to the configuration, all problems at once; quantised weights.
pub fn merge(config: &Config, models: &[Checkpoint], request: &Merge) -> Result<Plan> {
    let named = config.models();
    if models.is_empty() || models.len() != named.len() {
        let mut problems = Problems::default();
        problems.add("", format!("{} models are named, {} given", named.len(), models.len()));
        return Err(refuse(problems));
    }
    models.iter().try_for_each(check_layer_count)?;
    let mut draft = started(config, request)?;
    for note in &config.notes {
        draft.note(note);
    }
    let values = if config.copies() {
        models.iter().map(Cow::Borrowed).collect()
    } else {
        models.iter().map(Checkpoint::as_values).collect::<Result<Vec<_>>>()?
    };
    let models: Vec<&Checkpoint> = values.iter().map(Cow::as_ref).collect();
    let Some(donor) = models.first().copied() else { return Err(refuse(Problems::default())) };
    let bound: Vec<(&Reference, &Checkpoint)> =
        named.into_iter().zip(models.iter().copied()).collect();
    for (reference, model) in &bound {
        draft.parent(role(config, reference), model);
    }
    let mut problems = Problems::default();
    let vectors = vectors::are_vectors(&mut problems, config, &bound);
    let importances = Importances::read(&mut problems, config, request.numerics);
    // Slices of layers that name no module leave everything else where it is.
    let modules = if config.is_sliced() { Modules::one(donor) } else { Modules::of(donor) };
    let slices = slices::bind(&mut problems, config, &bound, donor, &modules);
    let alignment = vocabulary::alignment(&mut problems, config, vectors, &bound)?;
    if !problems.0.is_empty() {
        return Err(refuse(problems));
    }
    let of_stack = |slice: &&Slice<'_>| !slice.of.whole && modules.all()[slice.module].is_stack;
    let sliced: Vec<&Slice<'_>> = slices.iter().filter(of_stack).collect();
    let described = match sliced.as_slice() {
        [] => (0..donor.layers()).collect(),
        sliced => slices::described(&mut problems, sliced, donor),
    };
    let mut tensors = Tensors::new(config, (&slices, &modules), donor, draft, request);
    tensors.problems = problems;
    tensors.vectors = vectors;
    tensors.importances = &importances;
    tensors.alignment = alignment.as_ref();
    tensors.add_all(&described)?;
    let mut problems = tensors.take_problems();
    let Tensors { mut draft, dtypes, differs, rows, drawn, precise, .. } = tensors;
    if config.extension.variant.trim {
        check_trim(&mut problems, draft.plan());
    }
    if !problems.0.is_empty() {
        return Err(refuse(problems));
    }
    if alignment.is_none() && !vectors {
        vocabulary::compare(&models, &mut draft);
    }
    let role = role(config, bound[0].0);
    let mut derived = Derived { shard_size: request.shard_size, ..Derived::from(donor, role) };
    if let Some(old) = donor.config() {
        let mut new = old.clone();
        if !sliced.is_empty() {
            let kept = keep_layers(old, donor.anatomy(), &described)
                .map_err(|problem| Error::Config { path: donor.config_path(), problem })?;
            for note in kept.notes {
                draft.note(note);
            }
            new = kept.config;
        }
        let only = dtypes.first().filter(|_| differs && dtypes.len() == 1);
        if let Some(dtype) = config.out_dtype.as_ref().or(config.dtype.as_ref()).or(only) {
            set_dtype(&mut new, dtype);
        }
        if let Some(rows) = alignment.as_ref().map(|alignment| alignment.rows).or(rows) {
            set_vocab_size(&mut new, rows);
        }
        derived.config = Some(new);
    }
    let files = &mut derived.config;
    let sidecars = vocabulary::files(config, alignment.as_ref(), &models, files, &mut draft)?;
    if request.numerics == Numerics::Mergekit {
        draft.plan().numerics = Numerics::Mergekit;
        if precise {
            let method = config.method.name;
            draft.note(format!("{method} is computed in precise arithmetic and rounded once: mergekit's own order of rounding is not carried out for it"));
        }
        chain::deal(draft.plan(), &drawn);
    }
    if values.len() > 1 && config.base.is_none() {
        let name = donor.name();
        draft.note(format!("config and tokenizer are those of `{name}`, the first model: `base_model` would say which"));
    }
    let content = SidecarContent::Text(config.text.clone());
    draft.plan().sidecars.push(Sidecar { file: CONFIG_FILE.to_owned(), content });
    if !request.no_model_card {
        let content = SidecarContent::Text(card::card(config, &bound, &request.made));
        draft.plan().sidecars.push(Sidecar { file: CARD_FILE.to_owned(), content });
    }
    draft.finish(&Derived { sidecars: &sidecars, ..derived })
}

/// What is trimmed as a whole has one density, and values that are in files.
fn check_trim(problems: &mut Problems, plan: &Plan) {
    let mut shares: BTreeMap<u32, f64> = BTreeMap::new();
    for tensor in &plan.tensors {
        for part in &tensor.parts {
            let Part::Blend(blend) = part else { continue };
            for term in &blend.terms {
                let Keep::LargestOfAll { group, share } = term.keep else { continue };
                let first = *shares.entry(group).or_insert(share);
                if first.to_bits() != share.to_bits() {
                    let why = format!(
                        "`trim: model` takes one `density` a model: `{}` has {share}, others {first}",
                        tensor.name
                    );
                    return problems.add("elo_surgery.trim", why);
                }
                if !blend.operands().all(Operand::is_plain) {
                    let why = format!(
                        "`{}` is quantised, has an adapter or rows that are put together: write that model out first (`cast`, `lora apply`, `transplant`), or leave `trim: model` out",
                        tensor.name
                    );
                    return problems.add("elo_surgery.trim", why);
                }
            }
        }
    }
}
