//! What preparation would do, without reading the corpus: names, sizes, and what they let expect.

use std::path::Path;

use serde::Serialize;

use super::inputs::{Family, Format, Input, Kind, families};
use super::{manifest, read};
use crate::error::Result;
use crate::pipeline::project::Loaded;

/// What preparation would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataPlan {
    /// Stages that get data.
    pub stages: Vec<PlannedStage>,
    /// Bytes expected to be held out, by name of the slice.
    pub held_out: Vec<(String, u64)>,
    /// Bytes of all files that would be read (twice).
    pub reads: u64,
    /// Whether a directory already holds exactly this; known after [`DataPlan::is_prepared`].
    #[serde(skip)]
    families: usize,
}

/// A stage that gets data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedStage {
    /// `pretrain`, `align`, `sft`.
    pub name: String,
    /// UTF-8 bytes of text expected in all.
    pub bytes: u64,
    /// The source that keeps it from being more, if one does.
    pub limited_by: Option<String>,
    /// By source.
    pub shares: Vec<PlannedShare>,
}

/// A source of a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedShare {
    /// Its language.
    pub language: String,
    /// Its path, as the project has it.
    pub source: String,
    /// Number of files.
    pub files: usize,
    /// Bytes of the files.
    pub file_bytes: u64,
    /// UTF-8 bytes of text expected in them.
    pub text_bytes: u64,
    /// UTF-8 bytes of text expected to be taken.
    pub bytes: u64,
}

/// Estimates from sizes (and the footers of Parquet files). Missing files and wrong formats are errors already here.
pub fn plan(loaded: &Loaded) -> Result<DataPlan> {
    let families = families(loaded)?;
    let held = &loaded.project.data.held_out;
    let (most, fraction) = (float(held.bytes.bytes().unwrap_or(0)), held.fraction);
    let mut plan =
        DataPlan { stages: Vec::new(), held_out: Vec::new(), reads: 0, families: families.len() };
    for family in &families {
        let text: Vec<u64> = family.inputs.iter().map(text_bytes).collect();
        plan.reads += family.inputs.iter().map(|input| input.size).sum::<u64>();
        let mut left: Vec<f64> = text.iter().map(|&bytes| float(bytes)).collect();
        for (language, name) in family.languages.iter().enumerate() {
            let is_own = |i: &usize| language_of(family, *i) == Some(language);
            let own: Vec<usize> = (0..left.len()).filter(is_own).collect();
            let total: f64 = own.iter().map(|&i| left[i]).sum();
            let slice = most.min(total * fraction);
            for i in own {
                left[i] *= 1.0 - slice / total.max(1.0);
            }
            let name = match family.kind {
                Kind::Text => name.clone(),
                Kind::Chat => format!("chat/{name}"),
            };
            plan.held_out.push((name, whole(slice)));
        }
        let mut stages = Vec::new();
        for stage in (0..family.stages.len()).rev() {
            stages.push(planned(family, stage, &text, &mut left));
        }
        plan.stages.extend(stages.into_iter().rev());
    }
    Ok(plan)
}

impl DataPlan {
    /// Whether a directory already holds what [`super::prepare`] would make.
    pub fn is_prepared(&self, loaded: &Loaded, dir: &Path) -> Result<bool> {
        let settings = manifest::settings(loaded);
        Ok(self.families > 0 && manifest::current(dir, &settings, &families(loaded)?)?.is_some())
    }
}

fn language_of(family: &Family, input: usize) -> Option<usize> {
    let of = |(stage, source): (usize, &Option<u16>)| {
        let share = family.stages.get(stage)?.shares.get(usize::from((*source)?))?;
        Some(usize::from(share.language))
    };
    family.inputs[input].sources.iter().enumerate().find_map(of)
}

fn planned(family: &Family, number: usize, text: &[u64], left: &mut [f64]) -> PlannedStage {
    let stage = &family.stages[number];
    // What two stages have in common goes to `align` only in part.
    let part = |i: usize| match (number, family.inputs[i].sources[0]) {
        (1, Some(_)) => {
            if stage.asked {
                0.5
            } else {
                0.1
            }
        }
        _ => 1.0,
    };
    let available: Vec<f64> = stage
        .shares
        .iter()
        .map(|share| share.inputs.iter().map(|&i| left[i] * part(i)).sum())
        .collect();
    let all: f64 = stage.shares.iter().map(|share| share.weight).sum();
    let mut total = stage.bytes.map_or(f64::INFINITY, float);
    let mut limited_by = None;
    for (share, available) in stage.shares.iter().zip(&available) {
        let most = available * all / share.weight;
        if most < total {
            total = most;
            limited_by = Some(share.label.clone());
        }
    }
    let mut shares = Vec::new();
    for (share, available) in stage.shares.iter().zip(&available) {
        let bytes = total * share.weight / all;
        for &i in &share.inputs {
            left[i] *= 1.0 - bytes * part(i) / available.max(1.0);
        }
        shares.push(PlannedShare {
            language: family.languages[usize::from(share.language)].clone(),
            source: share.label.clone(),
            files: share.inputs.len(),
            file_bytes: share.inputs.iter().map(|&i| family.inputs[i].size).sum(),
            text_bytes: share.inputs.iter().map(|&i| text[i]).sum(),
            bytes: whole(bytes),
        });
    }
    PlannedStage { name: stage.name.into(), bytes: whole(total), limited_by, shares }
}

fn text_bytes(input: &Input) -> u64 {
    match (input.format, input.kind) {
        (Format::Text, _) => input.size,
        (Format::Json, Kind::Text) => input.size / 100 * 95,
        (Format::Json, Kind::Chat) => input.size / 100 * 80,
        (Format::Parquet, _) => read::parquet_bytes(input).unwrap_or(input.size * 2),
    }
}

#[expect(clippy::cast_precision_loss, reason = "estimates")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn whole(bytes: f64) -> u64 {
    bytes.max(0.0) as u64
}
