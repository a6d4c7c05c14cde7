//! Models of different vocabularies: one tokenizer for the result, and rows in its order.

mod align;
mod files;
mod language;
mod template;

use serde_json::{Map, Value};

pub(super) use self::align::Alignment;
use self::files::chat_template;
pub(super) use self::language::{Chat, Wish, chat, read};
use super::CONFIG_FILE;
use super::config::Config;
use super::read::Problems;
use super::reference::Reference;
use super::slices::Input;
use super::tensors::{Tensors, Wanted, role};
use crate::checkpoint::{Checkpoint, SidecarFile, Stretch, TOKENIZER_FILE, Vocabulary};
use crate::error::{Error, Result};
use crate::ops::draft::Draft;
use crate::ops::invented::{AUDIT_FILE, audit, some};
use crate::ops::matrix::Matrix;
use crate::ops::operand::effective;
use crate::ops::rows::RowMap;
use crate::ops::tokenizer_files::{Beside, TokenIds};
use crate::plan::{Operand, Rows};

impl Alignment<'_> {
    /// An input's embedding or head with its rows in the result's order. `template` and `name` say which tensor it is.
    pub(super) fn operand(
        &self,
        draft: &mut Draft,
        config: &Config,
        template: &Checkpoint,
        name: &str,
        input: &Input<'_>,
    ) -> Result<Operand> {
        let wrong = |what: String| Error::Mismatch {
            what: format!("`{name}` cannot be brought to one vocabulary"),
            problems: vec![what],
            hint: "leave `tokenizer` out, or use models with one row a token".into(),
        };
        let stretch = |member: u32| -> Result<Stretch<'_>> {
            let member = &self.members[member as usize];
            let whose = member.model.name();
            let found = effective(template, name, member.model);
            let (_, stretches) = found.ok_or_else(|| wrong(format!("`{whose}` has none")))?;
            let [stretch] = stretches.as_slice() else {
                return Err(wrong(format!("that of `{whose}` is in several pieces")));
            };
            if stretch.shape.rows() != member.rows {
                let (found, rows) = (stretch.shape.rows(), member.rows);
                return Err(wrong(format!(
                    "that of `{whose}` has {found} rows, its embedding {rows}"
                )));
            }
            if stretch.recipe.is_some() {
                return Err(wrong(format!(
                    "that of `{whose}` is quantised, or an adapter changes it"
                )));
            }
            Ok(stretch.clone())
        };
        let own = self.member(input.model).ok_or_else(|| wrong("its model is not there".into()))?;
        let number = u32::try_from(own).unwrap_or(u32::MAX);
        let whole = stretch(number)?;
        let mut map = self.maps[own].clone();
        // A padded matrix begins with the same rows, and has more.
        if self.members[own].rows == self.rows && map.is_identity(number, self.rows) {
            return Ok(draft.slice(role(config, &input.of.model), &whole).into());
        }
        let columns = whole.shape.with_rows(1).elements().unwrap_or(1);
        if self.padding() > 0 {
            let matrix = |member: u32| Matrix::open(name, &stretch(member)?);
            let row = mean(&map, columns, matrix)?;
            let row = map.constant(row);
            (0..self.padding()).for_each(|_| map.push(row.clone()));
        }
        let shape = whole.shape.with_rows(self.rows);
        map.operand(number, shape, |member| {
            let named = self.members[member as usize].named;
            Ok(draft.slice(role(config, named), &stretch(member)?))
        })
    }
}

impl Tensors<'_> {
    /// Brings the rows of an embedding or head into the order of the result's vocabulary; says whether there is one and the tensor is such.
    pub(super) fn align(
        &mut self,
        wanted: &Wanted<'_>,
        slice: &super::slices::Slice<'_>,
        operands: &mut [super::tensors::Operand<'_>],
    ) -> Result<bool> {
        let Some(alignment) = self.alignment else { return Ok(false) };
        let (template, name) = (wanted.template, wanted.own.as_str());
        if !template.anatomy().role(name).is_vocabulary() {
            return Ok(false);
        }
        for (input, operand) in slice.inputs.iter().zip(operands) {
            let aligned = alignment.operand(&mut self.draft, self.config, template, name, input)?;
            operand.shape = operand.shape.with_rows(alignment.rows);
            operand.aligned = Some(aligned);
        }
        Ok(true)
    }
}

/// The mean of the rows of a map.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a mean of floats, rounded once to f32"
)]
fn mean(map: &RowMap, columns: u64, matrix: impl Fn(u32) -> Result<Matrix>) -> Result<Vec<f32>> {
    let mut sums = vec![0.0; usize::try_from(columns).unwrap_or(0)];
    let mut open: Vec<(u32, Matrix)> = Vec::new();
    let mut rows = 0_u64;
    for run in map.runs() {
        rows += run.count();
        let pieces: Vec<(u32, u64, u64, f64)> = match run {
            Rows::Take(member, first, count) => vec![(*member, *first, *count, 1.0)],
            Rows::Mix(of) => {
                of.iter().map(|(member, row, weight)| (*member, *row, 1, *weight)).collect()
            }
            _ => Vec::new(),
        };
        for (member, first, count, weight) in pieces {
            let known = open.iter().position(|(known, _)| *known == member);
            let at = match known {
                Some(at) => at,
                None => {
                    open.push((member, matrix(member)?));
                    open.len() - 1
                }
            };
            open[at].1.each(first, count, |row| {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += weight * value;
                }
            })?;
        }
    }
    Ok(sums.into_iter().map(|sum| (sum / rows.max(1) as f64) as f32).collect())
}

/// The one vocabulary of the result, if the configuration asks for it.
pub(super) fn alignment<'a>(
    problems: &mut Problems,
    config: &'a Config,
    vectors: bool,
    models: &[(&'a Reference, &'a Checkpoint)],
) -> Result<Option<Alignment<'a>>> {
    match &config.tokenizer {
        Some(wish) if vectors => {
            problems.unsupported(wish.at, "one vocabulary for saved vectors is");
            Ok(None)
        }
        Some(wish) => Alignment::new(problems, config, wish, models),
        None => Ok(None),
    }
}

/// Tells of models that have other tokens than the first in the same rows, where nobody brings them into one order.
pub(super) fn compare(models: &[&Checkpoint], draft: &mut Draft) {
    let bytes = |model: &Checkpoint| std::fs::read(model.root().join(TOKENIZER_FILE)).ok();
    // A tokenizer that cannot be read says nothing here: nothing of the result depends on it.
    let vocabulary = |model: &Checkpoint| Vocabulary::of(model).ok().flatten();
    let Some((donor, others)) = models.split_first() else { return };
    let Some(own) = bytes(donor) else { return };
    let differing: Vec<_> =
        others.iter().filter(|m| bytes(m).is_some_and(|theirs| theirs != own)).collect();
    let Some(ours) = vocabulary(donor).filter(|_| !differing.is_empty()) else { return };
    for model in differing {
        let Some(theirs) = vocabulary(model) else { continue };
        let mut odd: Vec<u64> = ours
            .tokens()
            .filter(|(id, token)| theirs.token(*id).is_some_and(|other| other != *token))
            .map(|(id, _)| id)
            .collect();
        odd.sort_unstable();
        let Some(first) = odd.first() else { continue };
        let (count, name, other) = (odd.len(), model.name(), donor.name());
        let token = |of: &Vocabulary| of.token(*first).unwrap_or_default().to_owned();
        draft.note(format!(
            "{count} rows belong to other tokens in `{name}` than in `{other}` (row {first}: {:?} and {:?}) and are merged all the same: `tokenizer: {{source: union}}` brings them into one order",
            token(&theirs),
            token(&ours)
        ));
    }
}

/// The files beside the weights, and the token ids in `config`.
pub(super) fn files(
    merge: &Config,
    alignment: Option<&Alignment<'_>>,
    models: &[&Checkpoint],
    config: &mut Option<Map<String, Value>>,
    draft: &mut Draft,
) -> Result<Vec<SidecarFile>> {
    let Some(donor) = models.first().copied() else { return Ok(Vec::new()) };
    let owner = alignment.map_or(donor, |alignment| alignment.members[alignment.owner].model);
    let mut beside = Beside::of(donor, owner);
    if let Some(alignment) = alignment {
        let vocabulary = &alignment.members[alignment.owner].vocabulary;
        if !alignment.appended.is_empty() {
            let tokens = alignment.appended.iter();
            let tokens = tokens.map(|a| (a.id, a.token.as_str(), a.described.as_ref()));
            beside.add_tokens(owner, vocabulary, tokens)?;
        }
        if !std::ptr::eq(owner, donor) {
            let old = Vocabulary::of(donor)?;
            let ids = TokenIds { old: old.as_ref(), new: vocabulary };
            let mut lost = beside.set_generation_ids(donor, owner, &ids)?;
            if let Some(config) = config {
                let keys = ids.set(config, owner.config());
                lost.extend(keys.into_iter().map(|key| format!("config.json: `{key}`")));
            }
            if !lost.is_empty() {
                let (lost, owner) = (lost.join(", "), owner.name());
                draft.note(format!(
                    "the tokenizer of `{owner}` lacks the tokens of {lost}: set to null"
                ));
            }
        }
        tell(alignment, draft);
    }
    if let Some(chat) = &merge.chat {
        let template = match chat {
            Chat::Template(text) => Some(text.clone()),
            Chat::Auto => most_common(models, draft)?,
        };
        match template {
            Some(template) => beside.set_chat_template(owner, &template)?,
            None => draft
                .note("no model has a chat template, so `chat_template: auto` has none to take"),
        }
    }
    draft.plan().sidecars.extend(beside.written);
    let own = [CONFIG_FILE, AUDIT_FILE];
    beside.copied.retain(|file| !own.contains(&file.file.as_str()));
    Ok(beside.copied)
}

/// The chat template that most models have; of several, the one that is named first.
fn most_common(models: &[&Checkpoint], draft: &mut Draft) -> Result<Option<String>> {
    let mut counted: Vec<(String, usize, &str)> = Vec::new();
    for model in models {
        let Some(template) = chat_template(model)? else { continue };
        match counted.iter_mut().find(|known| known.0 == template) {
            Some(known) => known.1 += 1,
            None => counted.push((template, 1, model.name())),
        }
    }
    let kinds = counted.len();
    let most = counted.iter().map(|known| known.1).max();
    let chosen = counted.into_iter().find(|known| Some(known.1) == most);
    Ok(chosen.map(|(template, count, name)| {
        draft.note(format!("the chat template is that of `{name}`: {count} of {} models have it, there are {kinds}", models.len()));
        template
    }))
}

/// The audit, and what it comes to.
fn tell(alignment: &Alignment<'_>, draft: &mut Draft) {
    let owner = alignment.members[alignment.owner].model.name();
    let (appended, invented) = (&alignment.appended, &alignment.invented);
    let (rows, tokens) = (alignment.rows, alignment.named());
    let names = some(appended.iter().map(|a| a.token.as_str()));
    let more = match appended.len() {
        0 => String::new(),
        count => format!("; {count} are appended to its {TOKENIZER_FILE}: {names}"),
    };
    draft.note(format!(
        "vocabulary: {tokens} tokens in {rows} rows, ordered as those of `{owner}`{more}"
    ));
    let ordinary: Vec<&str> =
        appended.iter().filter(|a| a.described.is_none()).map(|a| a.token.as_str()).collect();
    if !ordinary.is_empty() {
        let (count, names) = (ordinary.len(), some(ordinary.into_iter()));
        draft.note(format!(
            "{count} appended tokens were ordinary ones, which the tokenizer will only find where a text has them literally: {names}"
        ));
    }
    if !invented.is_empty() {
        let names = some(invented.iter().map(|one| one.token.as_str()));
        let count = invented.len();
        draft.note(format!(
            "the rows of {count} tokens are invented for some models ({AUDIT_FILE} has all): {names}"
        ));
    }
    let zero = invented.iter().filter(|one| one.from == "zero");
    let zero: Vec<&str> = zero.map(|one| one.token.as_str()).collect();
    if !zero.is_empty() {
        let (count, names) = (zero.len(), some(zero.into_iter()));
        draft.note(format!("of these, {count} are zeros: {names}"));
    }
    if !alignment.rowless().is_empty() {
        let names = some(alignment.rowless().iter().map(String::as_str));
        draft.note(format!("tokens that no model has a row for were left out: {names}"));
    }
    let unnamed = rows - alignment.padding() - tokens as u64;
    if unnamed > 0 {
        draft.note(format!("{unnamed} rows that belong to no token are kept"));
    }
    if alignment.padding() > 0 {
        draft.note(format!("{} rows of means pad the vocabulary", alignment.padding()));
    }
    let sidecar = audit(alignment.told_head(), invented);
    draft.plan().sidecars.push(sidecar);
}
