//! One vocabulary for all models: which token each output row is, and where every model has it.
//!
//! A model that lacks a token is lent its row. In this order: what the configuration says of the token; the row of the only
//! model that has it; the base model's; the mean of those that have it; zeros. All are mergekit's rules. Rows beyond the
//! tokenizer, which mergekit cuts off, stay.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::super::config::Config;
use super::super::read::Problems;
use super::super::reference::Reference;
use super::language::{Source, TokenFrom, Wish};
use crate::checkpoint::{Checkpoint, Vocabulary};
use crate::error::Result;
use crate::ops::invented::Invented;
use crate::ops::rows::{Row, RowMap};

/// A model and its tokens.
pub(super) struct Member<'a> {
    pub(super) named: &'a Reference,
    pub(super) model: &'a Checkpoint,
    pub(super) vocabulary: Vocabulary,
    /// Rows of its embedding.
    pub(super) rows: u64,
    /// Whether it is merged, and not only named for its tokens.
    merged: bool,
}

/// A token that the tokenizer of the result has besides its owner's.
pub(super) struct Appended {
    pub(super) id: u64,
    pub(super) token: String,
    /// How a model describes it, if it is an added token there.
    pub(super) described: Option<Map<String, Value>>,
    /// The first model that has it.
    from: usize,
}

/// The vocabulary of the result and every model's way to it.
pub(in crate::ops::merge) struct Alignment<'a> {
    pub(super) members: Vec<Member<'a>>,
    /// Whose tokenizer files the result has.
    pub(super) owner: usize,
    pub(super) appended: Vec<Appended>,
    /// Token by row; none for rows beyond the tokenizer.
    tokens: Vec<Option<String>>,
    /// Rows, with those that pad to a multiple.
    pub(in crate::ops::merge) rows: u64,
    /// Of every member.
    pub(super) maps: Vec<RowMap>,
    pub(super) invented: Vec<Invented>,
    /// Tokens that no model has a row for, left out.
    rowless: Vec<String>,
}

impl<'a> Alignment<'a> {
    /// Brings the models' vocabularies together. `models` are those of [`Config::models`], in that order.
    pub(in crate::ops::merge) fn new(
        problems: &mut Problems,
        config: &'a Config,
        wish: &Wish,
        models: &[(&'a Reference, &'a Checkpoint)],
    ) -> Result<Option<Self>> {
        let before = problems.0.len();
        let merged = config.merged();
        let mut members = Vec::new();
        for (named, model) in models {
            let vocabulary = Vocabulary::of(model)?;
            let (Some(vocabulary), Some(rows)) = (vocabulary, model.vocabulary_rows()) else {
                let what =
                    if model.vocabulary_rows().is_some() { "tokenizer" } else { "embedding" };
                problems.add(wish.at, format!("`{}` has no {what} to align", model.name()));
                continue;
            };
            let merged = merged.contains(named);
            members.push(Member { named, model, vocabulary, rows, merged });
        }
        if problems.0.len() > before {
            return Ok(None);
        }
        if wish.source == Source::Base && config.base.is_none() {
            problems.add(wish.at, "the source is `base`, but there is no `base_model`");
            return Ok(None);
        }
        let find = |named: &Reference| members.iter().position(|member| member.named == named);
        let owner = match &wish.source {
            Source::Model(named) => find(named),
            Source::Union | Source::Base => Some(0),
        };
        let Some(owner) = owner else { return Ok(None) };
        let base = config.base.as_ref().and_then(find);
        let (appended, rowless) = match wish.source {
            Source::Union => further_tokens(&members, owner),
            _ => (Vec::new(), Vec::new()),
        };
        let end = members[owner].vocabulary.end().max(appended.last().map_or(0, |a| a.id + 1));
        let rows = end.max(members[owner].rows);
        let mut tokens = vec![None; usize::try_from(rows).unwrap_or(0)];
        let owned = members[owner].vocabulary.tokens();
        for (id, token) in owned.chain(appended.iter().map(|a| (a.id, a.token.as_str()))) {
            if let Some(place) = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id)) {
                *place = Some(token.to_owned());
            }
        }
        let maps = vec![RowMap::default(); members.len()];
        let padded = wish.multiple.map_or(rows, |multiple| rows.next_multiple_of(multiple));
        let (rows, invented) = (padded, Vec::new());
        let mut alignment =
            Self { members, owner, appended, tokens, rows, maps, invented, rowless };
        alignment.lend(problems, wish, base);
        Ok((problems.0.len() == before).then_some(alignment))
    }

    /// Gives every model a row for every token.
    fn lend(&mut self, problems: &mut Problems, wish: &Wish, base: Option<usize>) {
        let told = self.told(problems, wish);
        let mut order: Vec<usize> = (0..self.members.len()).collect();
        // For rows without a token: the owner's first.
        order.sort_by_key(|member| (!self.members[*member].merged, *member != self.owner));
        let tokens = std::mem::take(&mut self.tokens);
        for (id, token) in (0..).zip(&tokens) {
            let Some(token) = token else {
                self.unnamed(id, &order);
                continue;
            };
            let have: Vec<Option<u64>> = self.members.iter().map(|m| m.row(token)).collect();
            let (told, force) =
                told.get(token.as_str()).map_or((None, false), |(row, force)| (Some(row), *force));
            let lent = told.cloned().unwrap_or_else(|| self.usual(&have, base));
            let mut lacking = Vec::new();
            for (member, own) in have.iter().enumerate() {
                let row = match own {
                    Some(row) if !force => Row::Take(number(member), *row),
                    _ => {
                        if self.members[member].merged {
                            lacking.push(self.name(member));
                        }
                        lent.clone()
                    }
                };
                self.maps[member].push(row);
            }
            if !lacking.is_empty() {
                let (token, from) = (token.clone(), self.told_of(&lent));
                self.invented.push(Invented { id, token, models: lacking, from });
            }
        }
        self.tokens = tokens;
    }

    /// A row without a token is a model's own where it has such a row, else that of a model that has one.
    fn unnamed(&mut self, id: u64, order: &[usize]) {
        let has = |member: &usize| {
            let member = &self.members[*member];
            id < member.rows && member.vocabulary.token(id).is_none()
        };
        let lender = order.iter().copied().find(has);
        let owns: Vec<bool> = (0..self.members.len()).map(|member| has(&member)).collect();
        for (member, owns) in owns.into_iter().enumerate() {
            let from = if owns { Some(member) } else { lender };
            self.maps[member].push(from.map_or(Row::Zero, |from| Row::Take(number(from), id)));
        }
    }

    /// The row that models without a token are lent where nothing is said.
    #[expect(clippy::cast_precision_loss, reason = "models are few")]
    fn usual(&self, have: &[Option<u64>], base: Option<usize>) -> Row {
        let merged = |(member, row): (usize, &Option<u64>)| {
            row.filter(|_| self.members[member].merged).map(|row| (number(member), row))
        };
        let mut rows: Vec<(u32, u64)> = have.iter().enumerate().filter_map(merged).collect();
        if rows.is_empty() {
            let any = |(member, row): (usize, &Option<u64>)| row.map(|row| (number(member), row));
            rows = have.iter().enumerate().filter_map(any).collect();
        }
        let bases = base.and_then(|base| have[base].map(|row| Row::Take(number(base), row)));
        match (rows.as_slice(), bases) {
            ([], _) => Row::Zero,
            ([(member, row)], _) => Row::Take(*member, *row),
            (_, Some(row)) => row,
            (rows, None) => {
                let share = 1.0 / rows.len() as f64;
                Row::Mix(rows.iter().map(|(member, row)| (*member, *row, share)).collect())
            }
        }
    }

    /// What the configuration says of tokens: the row, and whether models that have the token are lent it too.
    fn told(&self, problems: &mut Problems, wish: &Wish) -> HashMap<String, (Row, bool)> {
        let known: HashSet<&str> = self.tokens.iter().flatten().map(String::as_str).collect();
        let mut told = HashMap::new();
        for (token, wish, at) in &wish.tokens {
            if !known.contains(token.as_str()) {
                problems.add(at, "is not a token of the result");
                continue;
            }
            let from =
                |named: &Reference| self.members.iter().position(|member| member.named == named);
            let of = |path: &Reference, token: &str| {
                let member = from(path)?;
                Some(Row::Take(number(member), self.members[member].row(token)?))
            };
            let row = match &wish.from {
                TokenFrom::Zero => Some(Row::Zero),
                TokenFrom::Same(path) => of(path, token),
                TokenFrom::Token(path, other) => of(path, other),
                TokenFrom::Row(path, row) => from(path)
                    .filter(|member| *row < self.members[*member].rows)
                    .map(|member| Row::Take(number(member), *row)),
            };
            match row {
                Some(row) => {
                    told.insert(token.clone(), (row, wish.force));
                }
                None => problems.add(at, "the model that it names has no such row"),
            }
        }
        told
    }

    fn name(&self, member: usize) -> String {
        self.members[member].model.name().to_owned()
    }

    fn told_of(&self, row: &Row) -> Value {
        let name = |member: &u32| self.members[*member as usize].model.name();
        match row {
            Row::Zero | Row::Constant(_) => json!("zero"),
            Row::Take(member, row) => json!({"model": name(member), "row": row}),
            Row::Mix(of) => {
                json!({"mean_of": of.iter().map(|(m, ..)| name(m)).collect::<Vec<_>>()})
            }
        }
    }

    /// What the rows of the result are, for the audit.
    pub(super) fn told_head(&self) -> Value {
        let models: Vec<Value> = self
            .members
            .iter()
            .map(|m| json!({"model": m.model.name(), "tokens": m.vocabulary.len(), "rows": m.rows}))
            .collect();
        let appended: Vec<Value> = self
            .appended
            .iter()
            .map(|a| json!({"id": a.id, "token": a.token, "from": self.name(a.from)}))
            .collect();
        let named = self.tokens.iter().flatten().count();
        let unnamed: Vec<usize> =
            (0..self.tokens.len()).filter(|id| self.tokens[*id].is_none()).collect();
        json!({
            "tokenizer_of": self.name(self.owner),
            "tokens": named,
            "rows": self.rows,
            "models": models,
            "appended": appended,
            "rows_without_token": unnamed,
            "padding_rows": self.rows - self.tokens.len() as u64,
            "tokens_without_row": self.rowless,
        })
    }

    /// How many tokens the result has.
    pub(super) fn named(&self) -> usize {
        self.tokens.iter().flatten().count()
    }

    /// Rows that pad to a multiple.
    pub(super) fn padding(&self) -> u64 {
        self.rows - self.tokens.len() as u64
    }

    pub(super) fn rowless(&self) -> &[String] {
        &self.rowless
    }

    /// The number of a model.
    pub(super) fn member(&self, model: &Checkpoint) -> Option<usize> {
        self.members.iter().position(|member| std::ptr::eq(member.model, model))
    }
}

impl Member<'_> {
    /// The row of a token.
    fn row(&self, token: &str) -> Option<u64> {
        self.vocabulary.id(token).filter(|id| *id < self.rows)
    }
}

/// Models are few.
fn number(member: usize) -> u32 {
    u32::try_from(member).unwrap_or(u32::MAX)
}

/// The tokens that the owner lacks, with their new ids: ordinary ones of each model in turn, then added ones, each by id. And
/// those that no model has a row for.
fn further_tokens(members: &[Member<'_>], owner: usize) -> (Vec<Appended>, Vec<String>) {
    let lacks = |token: &str| members[owner].vocabulary.id(token).is_none();
    let mut added: BTreeMap<&str, &Map<String, Value>> = BTreeMap::new();
    for member in members {
        for (id, token) in member.vocabulary.tokens() {
            if let Some(described) = member.vocabulary.added(id) {
                added.entry(token).or_insert(described);
            }
        }
    }
    let mut found: HashSet<&str> = HashSet::new();
    let mut appended: Vec<Appended> = Vec::new();
    let mut next = members[owner].vocabulary.end();
    for ordinary in [true, false] {
        for (from, member) in members.iter().enumerate().filter(|(_, member)| member.merged) {
            for (id, token) in member.vocabulary.tokens() {
                let described = added.get(token);
                if described.is_none() != ordinary
                    || id >= member.rows
                    || !lacks(token)
                    || !found.insert(token)
                {
                    continue;
                }
                let (token, described) = (token.to_owned(), described.map(|map| (*map).clone()));
                appended.push(Appended { id: next, token, described, from });
                next += 1;
            }
        }
    }
    let mut rowless: Vec<String> = Vec::new();
    for member in members.iter().filter(|member| member.merged) {
        let beyond = member.vocabulary.tokens().filter(|(id, _)| *id >= member.rows);
        for (_, token) in beyond.filter(|(_, token)| lacks(token)) {
            if found.insert(token) {
                rowless.push(token.to_owned());
            }
        }
    }
    (appended, rowless)
}
