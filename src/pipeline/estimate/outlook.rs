//! The estimates of a whole run: stages, other ways to align, and what full fine-tuning would take.

use std::fmt::Write as _;
use std::ops::Range;

use serde::Serialize;

use super::{Estimate, Memory, Request, Shape, estimate};
use crate::audit::table::{Align, Table};
use crate::audit::{Elements, Seconds, Short};
use crate::backend::protocol::{Method, Sharding, TrainingStage};

/// The estimates of a whole run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outlook {
    /// The training stages in order.
    pub stages: Vec<StageOutlook>,
    /// Other ways to align, and their needs. Empty without `align`.
    pub alternatives: Vec<Alternative>,
    /// Full fine-tuning of the whole model on the data of `pretrain`.
    pub full_fine_tuning: Option<Estimate>,
    /// How many times the FLOPs of `pretrain` and `align` together it takes.
    pub ratio: Option<f64>,
    /// Bytes of one GPU, or of RAM, where they are known.
    pub memory_limit: Option<u64>,
    /// GPUs of all nodes; threads of the built-in backend.
    pub devices: u64,
    /// What was assumed.
    pub notes: Vec<String>,
}

/// The estimate of a training stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageOutlook {
    /// The stage.
    pub stage: TrainingStage,
    /// What is trained.
    pub method: Method,
    /// What it will need.
    pub estimate: Estimate,
}

/// A way to align.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alternative {
    /// What is trained.
    pub method: Method,
    /// Whether the project says so.
    pub chosen: bool,
    /// What it will need.
    pub estimate: Estimate,
}

/// Estimates a run on the model `whole`.
pub fn outlook(whole: &Shape, requests: &[Request<'_>]) -> Outlook {
    let of = |stage| requests.iter().find(|request| request.stage == stage);
    let stages: Vec<StageOutlook> = requests
        .iter()
        .map(|request| StageOutlook {
            stage: request.stage,
            method: request.method,
            estimate: estimate(request),
        })
        .collect();
    let full = of(TrainingStage::Pretrain).map(|request| {
        let sharding = match request.sharding {
            Sharding::Auto if request.devices() > 1 => Sharding::Zero3,
            told => told,
        };
        estimate(&Request { shape: whole, method: Method::Full, sharding, ..request.clone() })
    });
    let spent = |stage| {
        let found = stages.iter().find(|s| s.stage == stage);
        found.map_or(0.0, |s| s.estimate.flops)
    };
    let elo = spent(TrainingStage::Pretrain) + spent(TrainingStage::Align);
    let ratio = full.as_ref().map(|full| full.flops / elo).filter(|ratio| ratio.is_finite());
    let first = requests.first();
    let builtin = first.is_some_and(Request::is_builtin);
    Outlook {
        alternatives: of(TrainingStage::Align).map(alternatives).unwrap_or_default(),
        full_fine_tuning: full,
        ratio,
        memory_limit: first.and_then(|request| request.gpu_memory),
        devices: first.map_or(1, |request| {
            if builtin { u64::from(request.threads.max(1)) } else { request.devices() }
        }),
        notes: notes(&stages, builtin, first.map_or(0.0, |request| request.peak)),
        stages,
    }
}

fn alternatives(request: &Request<'_>) -> Vec<Alternative> {
    [Method::Full, Method::Layers, Method::Lora]
        .map(|method| Alternative {
            method,
            chosen: method == request.method,
            estimate: estimate(&Request { method, ..request.clone() }),
        })
        .into()
}

fn notes(stages: &[StageOutlook], builtin: bool, peak: f64) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    if builtin {
        notes.push("time: 50 to 110 GFLOP/s a core, as measured with AVX-512 and less".into());
    } else {
        let peak = peak / 1e12;
        notes.push(format!("time: 25 to 50 % of {peak:.0} TFLOP/s a GPU (bf16), 40 % in between"));
        notes
            .push("memory: attention that keeps no scores, 2 GB of context a GPU, 5 % lost".into());
    }
    for note in stages.iter().flat_map(|stage| &stage.estimate.notes) {
        if !notes.contains(note) {
            notes.push(note.clone());
        }
    }
    notes
}

impl Outlook {
    /// Whether some stage does not fit; `None` where that is not known.
    pub fn fits(&self) -> Option<bool> {
        let told: Option<Vec<bool>> = self.stages.iter().map(|s| s.estimate.fits).collect();
        told.map(|told| told.iter().all(|fits| *fits))
    }

    /// The tables, for people.
    pub fn render(&self) -> String {
        let mut text = self.overview();
        text.push('\n');
        text.push_str(&self.memory());
        if !self.alternatives.is_empty() {
            text.push('\n');
            text.push_str(&self.other_ways());
        }
        if let Some(full) = &self.full_fine_tuning {
            let _ = write!(
                text,
                "\nfull fine-tuning on the data of pretrain: {}FLOP",
                prefixed(full.flops)
            );
            if let Some(seconds) = &full.seconds {
                let _ = write!(text, ", {}", span(seconds));
            }
            let _ = write!(text, ", {} a device", gigabytes(full.memory.total));
            if let Some(ratio) = self.ratio {
                let _ = write!(text, "; pretrain and align together take 1/{ratio:.1} of that");
            }
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        text
    }

    fn overview(&self) -> String {
        use Align::{Left, Right};
        let mut table = Table::new(&[Left, Left, Right, Right, Right, Right, Right, Left]);
        table.row(
            ["STAGE", "TRAINS", "PARAMETERS", "OF", "TOKENS", "FLOP/TOKEN", "FLOP", "TIME"]
                .map(str::to_owned),
        );
        for stage in &self.stages {
            let estimate = &stage.estimate;
            table.row([
                stage_name(stage.stage).to_owned(),
                method_name(stage.method).to_owned(),
                Elements(estimate.trained).to_string(),
                Elements(estimate.parameters).to_string(),
                Short(super::amount(estimate.tokens)).to_string(),
                prefixed(estimate.flops_per_token),
                prefixed(estimate.flops),
                estimate.seconds.as_ref().map_or_else(|| "-".into(), span),
            ]);
        }
        table.render()
    }

    fn memory(&self) -> String {
        let mut table = Table::new(&[
            Align::Left,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Left,
        ]);
        let title = self.memory_limit.map(|limit| format!("IN {}", gigabytes(limit)));
        let title = title.unwrap_or_default();
        table.row(
            [
                "MEMORY",
                "WEIGHTS",
                "MASTERS",
                "GRADIENTS",
                "ADAMW",
                "ACTIVATIONS",
                "LOGITS",
                "OTHER",
                "TOTAL",
                &title,
            ]
            .map(str::to_owned),
        );
        for stage in &self.stages {
            let name = stage_name(stage.stage).to_owned();
            table.row(parts(name, &stage.estimate.memory, &self.fit(&stage.estimate)));
        }
        table.render()
    }

    fn other_ways(&self) -> String {
        use Align::{Left, Right};
        let mut table = Table::new(&[Left, Right, Right, Left, Left]);
        let title = self.memory_limit.map(|limit| format!("IN {}", gigabytes(limit)));
        let title = title.unwrap_or_default();
        table.row(["ALIGN", "PARAMETERS", "MEMORY", &title, ""].map(str::to_owned));
        for way in &self.alternatives {
            table.row([
                method_name(way.method).to_owned(),
                Elements(way.estimate.trained).to_string(),
                gigabytes(way.estimate.memory.total),
                self.fit(&way.estimate),
                if way.chosen { "as the project says".into() } else { String::new() },
            ]);
        }
        table.render()
    }

    /// `yes`, `no: 12.3 GB over`.
    fn fit(&self, estimate: &Estimate) -> String {
        match self.memory_limit {
            None => String::new(),
            Some(limit) if estimate.memory.total <= limit => "yes".into(),
            Some(limit) => format!("no: {} over", gigabytes(estimate.memory.total - limit)),
        }
    }
}

fn parts(name: String, memory: &Memory, fit: &str) -> [String; 10] {
    let shown = |bytes: u64| if bytes == 0 { "-".to_owned() } else { gigabytes(bytes) };
    [
        name,
        shown(memory.weights),
        shown(memory.master),
        shown(memory.gradients),
        shown(memory.optimizer),
        shown(memory.activations),
        shown(memory.logits),
        shown(memory.overhead),
        shown(memory.total),
        fit.to_owned(),
    ]
}

fn stage_name(stage: TrainingStage) -> &'static str {
    match stage {
        TrainingStage::Pretrain => "pretrain",
        TrainingStage::Align => "align",
        TrainingStage::Sft => "sft",
    }
}

fn method_name(method: Method) -> &'static str {
    match method {
        Method::Full => "full",
        Method::Layers => "layers",
        Method::Lora => "lora",
    }
}

/// `1 h 20 min to 2 h 40 min`.
fn span(seconds: &Range<f64>) -> String {
    format!("{} to {}", Seconds(seconds.start), Seconds(seconds.end))
}

/// `74.2 GB`, `312 MB`: decimal, as memory of GPUs is named.
fn gigabytes(bytes: u64) -> String {
    let bytes = super::amount(bytes);
    match bytes {
        b if b < 0.995e6 => format!("{:.0} kB", b / 1e3),
        b if b < 0.995e9 => format!("{:.0} MB", b / 1e6),
        b if b < 99.5e9 => format!("{:.1} GB", b / 1e9),
        b => format!("{:.0} GB", b / 1e9),
    }
}

/// `4.72 G`, `11.8 E`: SI prefixes.
fn prefixed(value: f64) -> String {
    let units = [(1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P")];
    let mut units = units.into_iter().chain([(1e18, "E"), (1e21, "Z"), (1e24, "Y")]);
    let (unit, name) = units.rfind(|(unit, _)| value >= *unit).unwrap_or((1.0, ""));
    let value = value / unit;
    let digits = if value >= 99.95 { 0 } else { usize::from(value < 9.995) + 1 };
    format!("{value:.digits$} {name}")
}
