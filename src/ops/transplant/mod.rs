//! Transplant: a model with another model's tokenizer.
//!
//! Rows of tokens that both have are copied. Rows of the donor's other tokens are approximated from the model's own rows: all of them
//! (`mean`), the pieces that the model's tokenizer splits the token into (`subword`), the token that is nearest in the donor's space
//! (`nearest`), or a sum of few tokens that makes the token up there (`omp`). What is invented is told token by token.

mod pieces;
mod pursuit;
mod texts;

use std::collections::HashMap;
use std::str::FromStr;

use serde_json::{Value, json};

use self::pieces::Splitter;
use self::pursuit::{Found, nearest, pursue};
use self::texts::{Spelling, by_meaning, meaning_of};
use super::draft::{Derived, Draft, as_dtype};
use super::extract::check_layer_count;
use super::invented::{AUDIT_FILE, Invented, audit, some};
use super::matrix::Matrix;
use super::operand::effective;
use super::quantised::refuse_quantised;
use super::rows::{Row, RowMap};
use super::tokenizer_files::{Beside, TokenIds};
use super::vector::refuse_vectors;
use crate::checkpoint::{Checkpoint, Stretch, Vocabulary, locate, set_vocab_size};
use crate::error::{Error, Result};
use crate::plan::{Blend, Part, Plan, Term};

/// How rows that the model lacks are approximated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Approximation {
    /// The mean of all rows.
    Mean,
    /// The mean of the rows of the pieces that the model's tokenizer splits the token into; of none, the mean of all rows.
    Subword,
    /// The row of the token, of those that both have, whose donor row is nearest.
    Nearest,
    /// The sum of [`Transplant::k`] rows whose donor rows make the token's up (orthogonal matching pursuit).
    #[default]
    Omp,
}

impl FromStr for Approximation {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "mean" => Ok(Self::Mean),
            "subword" => Ok(Self::Subword),
            "nearest" => Ok(Self::Nearest),
            "omp" => Ok(Self::Omp),
            _ => Err(format!("`{text}` is not one of mean, subword, nearest, omp")),
        }
    }
}

impl Approximation {
    const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Subword => "subword",
            Self::Nearest => "nearest",
            Self::Omp => "omp",
        }
    }
}

/// What to transplant.
#[derive(Clone, Debug)]
pub struct Transplant {
    /// How missing rows are made.
    pub method: Approximation,
    /// Rows of a sum, for [`Approximation::Omp`].
    pub k: usize,
    /// Rows are padded to a multiple of this with the mean of the model's rows.
    pub multiple: Option<u64>,
    /// Data bytes of a shard, to lay the output out anew; the model's layout otherwise.
    pub shard_size: Option<u64>,
}

/// A token of the donor.
struct Token<'a> {
    id: u64,
    text: &'a str,
    meaning: Vec<u8>,
    /// The same token's id in the model.
    own: Option<u64>,
}

/// What the rows of missing tokens are in one tensor: one for each, and what is told of it.
type Made = Vec<(Row, Value)>;

/// Plans a transplant: `model` with the tokenizer of `donor`.
///
/// `nearest` and `omp` hold the donor's rows of tokens that both have in memory, as f32, and read them while planning.
///
/// # Errors
/// Models without tokenizer or embedding; quantised embeddings; no token in common.
pub fn transplant(model: &Checkpoint, donor: &Checkpoint, request: &Transplant) -> Result<Plan> {
    refuse_vectors(&[model, donor])?;
    check_layer_count(model)?;
    let method = request.method;
    let k = (method == Approximation::Omp).then_some(request.k);
    let parameters = json!({
        "method": method.name(), "k": k, "pad_to_multiple_of": request.multiple, "shard_size": request.shard_size,
    });
    let mut draft = Draft::new("transplant", &parameters);
    draft.parent("model", model);
    draft.parent("donor", donor);
    let (old, new) = (vocabulary(model)?, vocabulary(donor)?);
    let (own_rows, donor_rows) = (embedding_rows(model)?, embedding_rows(donor)?);
    let tokens = matched(&old, own_rows, &new);
    let missing: Vec<&Token<'_>> = tokens.iter().filter(|token| token.own.is_none()).collect();
    if missing.len() == tokens.len() {
        return Err(Error::Mismatch {
            what: format!(
                "the tokenizer of `{}` cannot be put onto `{}`",
                donor.name(),
                model.name()
            ),
            problems: vec!["they have no token in common".into()],
            hint: "choose a donor whose tokenizer is of the same kind".into(),
        });
    }
    let end = new.end();
    let rows = request.multiple.map_or(end, |multiple| end.next_multiple_of(multiple.max(1)));
    let splitter = match method {
        Approximation::Subword if !missing.is_empty() => Some(Splitter::new(&old, model.name())?),
        _ => None,
    };
    let mut told: Vec<Vec<Value>> = vec![Vec::new(); missing.len()];
    for (home, entry) in model.names_in_file_order() {
        let name = entry.name.as_str();
        let Some((shape, stretches)) = locate(model, name) else { continue };
        if !model.anatomy().role(name).is_vocabulary() {
            let parts = draft.slices("model", &stretches).into_iter().map(Part::Copy).collect();
            draft.push(home, name, entry.dtype.clone(), shape, parts);
            continue;
        }
        refuse_quantised(&[model, donor], name)?;
        let [stretch] = stretches.as_slice() else { continue };
        let matrix = Matrix::open(name, stretch)?;
        let mut map = RowMap::default();
        let made = match (method, &splitter) {
            (Approximation::Subword, Some(splitter)) => {
                let mut mean = None;
                missing
                    .iter()
                    .map(|token| {
                        by_pieces(token, splitter, own_rows, &old, &matrix, &mut map, &mut mean)
                    })
                    .collect::<Result<Made>>()?
            }
            (Approximation::Nearest | Approximation::Omp, _) if !missing.is_empty() => {
                let theirs = effective(model, name, donor)
                    .and_then(|(_, mut s)| (s.len() == 1).then(|| s.remove(0)));
                let theirs = theirs.ok_or_else(|| lacks(donor, name))?;
                by_space(&tokens, &missing, &theirs, donor_rows, name, request)?
            }
            _ if missing.is_empty() => Vec::new(),
            _ => {
                let mean = map.constant(matrix.mean()?);
                missing.iter().map(|_| (mean.clone(), json!("mean of all rows"))).collect()
            }
        };
        for (told, (_, what)) in told.iter_mut().zip(&made) {
            told.push(json!({ name: what }));
        }
        fill(&mut map, &tokens, made, end);
        if rows > end {
            let mean = map.constant(matrix.mean()?);
            (end..rows).for_each(|_| map.push(mean.clone()));
        }
        let slice = draft.slice("model", stretch);
        let part = if map.is_identity(0, own_rows) {
            as_dtype(slice, &entry.dtype)
        } else {
            let operand = map.operand(0, shape.with_rows(rows), |_| Ok(slice.clone()))?;
            Part::Blend(Box::new(Blend::sum(None, vec![Term::new(operand, 1.0)], 1.0)))
        };
        draft.push(home, name, entry.dtype.clone(), shape.with_rows(rows), vec![part]);
    }
    let beside = files(model, donor, &old, &new, rows, &mut draft)?;
    let invented = invented(model, &missing, told);
    tell(&mut draft, &tokens, &invented, (own_rows, rows, end), (model, donor), &old);
    let mut derived = Derived { shard_size: request.shard_size, ..Derived::from(model, "model") };
    derived.config = beside.1;
    let sidecars: Vec<_> =
        beside.0.copied.iter().filter(|copy| copy.file != AUDIT_FILE).cloned().collect();
    draft.plan().sidecars.extend(beside.0.written);
    draft.finish(&Derived { sidecars: &sidecars, ..derived })
}

fn vocabulary(model: &Checkpoint) -> Result<Vocabulary> {
    Vocabulary::of(model)?.ok_or_else(|| lacks(model, "tokenizer.json"))
}

fn embedding_rows(model: &Checkpoint) -> Result<u64> {
    model.vocabulary_rows().ok_or_else(|| lacks(model, "an embedding"))
}

fn lacks(model: &Checkpoint, what: &str) -> Error {
    Error::Mismatch {
        what: format!("`{}` is no model to transplant with", model.name()),
        problems: vec![format!("`{what}` is missing")],
        hint: "both models need a tokenizer.json and their embeddings".into(),
    }
}

/// The donor's tokens by id, each with the same token of the model: of the same spelling where both spell alike, else of the same
/// meaning.
fn matched<'a>(old: &Vocabulary, rows: u64, new: &'a Vocabulary) -> Vec<Token<'a>> {
    let (ours, theirs) = (Spelling::of(old), Spelling::of(new));
    let meanings: HashMap<(bool, Vec<u8>), u64> = by_meaning(old);
    let tokens = new.tokens().map(|(id, text)| {
        let (special, meaning) = meaning_of(new, theirs, id, text);
        let spelled = if ours == theirs || special { old.id(text) } else { None };
        let key = (special, meaning);
        let own = spelled.or_else(|| meanings.get(&key).copied()).filter(|own| *own < rows);
        Token { id, text, meaning: key.1, own }
    });
    tokens.collect()
}

/// The mean of the pieces' rows.
#[expect(clippy::cast_precision_loss, reason = "pieces are few")]
fn by_pieces(
    token: &Token<'_>,
    splitter: &Splitter,
    rows: u64,
    old: &Vocabulary,
    matrix: &Matrix,
    map: &mut RowMap,
    mean: &mut Option<Row>,
) -> Result<(Row, Value)> {
    let mut pieces = splitter.split(&token.meaning);
    pieces.retain(|piece| *piece < rows);
    if pieces.is_empty() {
        let row = match mean.clone() {
            Some(row) => row,
            None => mean.insert(map.constant(matrix.mean()?)).clone(),
        };
        return Ok((row, json!("mean of all rows: it has no pieces")));
    }
    let texts: Vec<&str> = pieces.iter().filter_map(|piece| old.token(*piece)).collect();
    let told = json!({ "pieces": texts });
    let share = 1.0 / pieces.len() as f64;
    Ok((Row::Mix(pieces.into_iter().map(|piece| (0, piece, share)).collect()), told))
}

/// Sums of the rows of tokens that both have, found in the donor's space.
fn by_space(
    tokens: &[Token<'_>],
    missing: &[&Token<'_>],
    theirs: &Stretch<'_>,
    donor_rows: u64,
    name: &str,
    request: &Transplant,
) -> Result<Made> {
    let matrix = Matrix::open(name, theirs)?;
    let shared: Vec<(&Token<'_>, u64)> = tokens
        .iter()
        .filter_map(|token| Some((token, token.own.filter(|_| token.id < donor_rows)?)))
        .collect();
    let (rowed, rowless): (Vec<usize>, Vec<usize>) =
        (0..missing.len()).partition(|at| missing[*at].id < donor_rows);
    let atoms = matrix.chosen(&shared.iter().map(|(token, _)| token.id).collect::<Vec<_>>())?;
    let targets = matrix.chosen(&rowed.iter().map(|at| missing[*at].id).collect::<Vec<_>>())?;
    let columns = matrix.columns();
    let found = match request.method {
        Approximation::Nearest => nearest(&atoms, &targets, columns),
        _ => pursue(&atoms, &targets, columns, request.k),
    };
    let row = |found: Found| {
        let of: Vec<(u32, u64, f64)> =
            found.atoms.iter().map(|(atom, weight)| (0, shared[*atom].1, *weight)).collect();
        match (request.method, of.as_slice()) {
            (_, []) => (Row::Zero, json!("zero: its row in the donor is")),
            (Approximation::Nearest, [(_, row, _), ..]) => {
                let near = found.atoms.first().map(|(atom, _)| shared[*atom].0.text);
                (Row::Take(0, *row), json!({ "nearest": near }))
            }
            _ => {
                let largest = found.atoms.iter().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
                let most = largest.map(|(atom, _)| shared[*atom].0.text);
                (
                    Row::Mix(of),
                    json!({"sum_of": found.atoms.len(), "most": most, "left": found.left}),
                )
            }
        }
    };
    let mut made: Vec<Option<(Row, Value)>> = vec![None; missing.len()];
    for (at, found) in rowed.into_iter().zip(found) {
        made[at] = Some(row(found));
    }
    for at in rowless {
        made[at] = Some((Row::Zero, json!("zero: the donor has no row for it")));
    }
    Ok(made.into_iter().flatten().collect())
}

/// A row for every id of the donor's tokenizer; ids without a token are zeros.
fn fill(map: &mut RowMap, tokens: &[Token<'_>], made: Made, end: u64) {
    let mut made = made.into_iter();
    let mut at = 0;
    for token in tokens {
        (at..token.id).for_each(|_| map.push(Row::Zero));
        at = token.id + 1;
        let row = match token.own {
            Some(own) => Row::Take(0, own),
            None => made.next().map_or(Row::Zero, |(row, _)| row),
        };
        map.push(row);
    }
    (at..end).for_each(|_| map.push(Row::Zero));
}

/// The donor's tokenizer files, and the model's config with its token ids.
fn files(
    model: &Checkpoint,
    donor: &Checkpoint,
    old: &Vocabulary,
    new: &Vocabulary,
    rows: u64,
    draft: &mut Draft,
) -> Result<(Beside, Option<serde_json::Map<String, Value>>)> {
    let mut beside = Beside::of(model, donor);
    let ids = TokenIds { old: Some(old), new };
    let mut lost = beside.set_generation_ids(model, donor, &ids)?;
    let mut config = model.config().cloned();
    if let Some(config) = &mut config {
        let keys = ids.set(config, donor.config());
        lost.extend(keys.into_iter().map(|key| format!("config.json: `{key}`")));
        set_vocab_size(config, rows);
    }
    if !lost.is_empty() {
        let (lost, donor) = (lost.join(", "), donor.name());
        draft.note(format!("the tokenizer of `{donor}` lacks the tokens of {lost}: set to null"));
    }
    Ok((beside, config))
}

fn invented(model: &Checkpoint, missing: &[&Token<'_>], told: Vec<Vec<Value>>) -> Vec<Invented> {
    let one = |(token, from): (&&Token<'_>, Vec<Value>)| {
        let models = vec![model.name().to_owned()];
        Invented { id: token.id, token: token.text.to_owned(), models, from: from.into() }
    };
    missing.iter().zip(told).map(one).collect()
}

fn tell(
    draft: &mut Draft,
    tokens: &[Token<'_>],
    invented: &[Invented],
    (own_rows, rows, end): (u64, u64, u64),
    (model, donor): (&Checkpoint, &Checkpoint),
    old: &Vocabulary,
) {
    let shared = tokens.len() - invented.len();
    let (name, donors) = (model.name(), donor.name());
    draft.note(format!(
        "vocabulary: {} tokens of `{donors}` in {rows} rows, {shared} of them as in `{name}`",
        tokens.len()
    ));
    if !invented.is_empty() {
        let names = some(invented.iter().map(|one| one.token.as_str()));
        let count = invented.len();
        draft.note(format!(
            "the rows of {count} tokens are invented ({AUDIT_FILE} has all): {names}"
        ));
    }
    let used: std::collections::HashSet<u64> =
        tokens.iter().filter_map(|token| token.own).collect();
    let lost: Vec<&str> = old
        .tokens()
        .filter(|(id, _)| *id < own_rows && !used.contains(id))
        .map(|(_, t)| t)
        .collect();
    if !lost.is_empty() {
        let (count, names) = (lost.len(), some(lost.iter().copied()));
        draft.note(format!("{count} tokens of `{name}` are not in the result: {names}"));
    }
    let unnamed = (0..own_rows).filter(|row| old.token(*row).is_none()).count();
    if unnamed > 0 {
        draft.note(format!(
            "{unnamed} rows of `{name}` that belong to no token are not in the result"
        ));
    }
    if rows > end {
        draft.note(format!("{} rows of means pad the vocabulary", rows - end));
    }
    let head = json!({
        "tokenizer_of": donors,
        "tokens": tokens.len(),
        "rows": rows,
        "shared": shared,
        "padding_rows": rows - end,
        "tokens_left_out": lost,
        "rows_left_out": unnamed,
    });
    draft.plan().sidecars.push(audit(head, invented));
}
