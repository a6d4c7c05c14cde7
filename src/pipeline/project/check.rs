//! What types cannot say: ranges, and keys that need or exclude one another.

use super::shape::Problem;
use super::{Layers, Loaded, Mix, Training};
use crate::backend::protocol::{Lora, Method, Precision};
use crate::backend::{BackendChoice, Size};
use crate::checkpoint::LayerSelector;
use crate::error::nearest;
use crate::error::printable;

/// Names of stages, as `evaluate` and reports have them.
const STAGES: [&str; 6] = ["extract", "pretrain", "inject", "align", "chat-vector", "sft"];
const VOCAB: [&str; 4] = ["error", "overlap", "extend", "skip"];

struct Check<'a> {
    loaded: &'a Loaded,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

/// Problems and doubts of a file whose shape is right.
pub(super) fn all(loaded: &Loaded) -> (Vec<Problem>, Vec<String>) {
    let mut check = Check { loaded, problems: Vec::new(), warnings: Vec::new() };
    let project = &loaded.project;
    check.layers("layers", &project.layers);
    check.backend();
    check.data();
    check.training("pretrain", &project.pretrain.training);
    check.training("align", &project.align.training);
    check.training("sft", &project.sft.training);
    check.method("align", project.align.method, project.align.layers.as_ref(), &project.align.lora);
    check.method("sft", project.sft.method, project.sft.layers.as_ref(), &project.sft.lora);
    check.stages();
    check.evaluate();
    (check.problems, check.warnings)
}

impl Check<'_> {
    fn problem(&mut self, key: &str, what: String, hint: &str) {
        // The key itself, or the nearest group that is set.
        let mut place = key;
        let mut line = self.loaded.line_of(place);
        while line.is_none() {
            let Some((outer, _)) = place.rsplit_once(['.', '[']) else { break };
            place = outer;
            line = self.loaded.line_of(place);
        }
        self.problems.push(Problem { line, what, hint: hint.to_owned() });
    }

    fn require(&mut self, ok: bool, key: &str, value: impl std::fmt::Display, rule: &str) {
        if !ok {
            let value = printable(&value.to_string());
            self.problem(key, format!("`{key}: {value}` {rule}"), "");
        }
    }

    fn layers(&mut self, key: &str, layers: &Layers) {
        let text = layers.to_string();
        if let Err(error) = text.parse::<LayerSelector>() {
            let hint = error.hint().unwrap_or_default();
            self.problem(key, format!("`{key}`: {error}"), &hint);
        }
    }

    fn size(&mut self, key: &str, size: Option<&Size>) {
        if let Some(Size::Text(text)) = size
            && let Err(rule) = Size::Text(text.clone()).bytes()
        {
            let what = format!("`{key}: {}` is not a number of bytes", printable(text));
            self.problem(key, what, &rule);
        }
    }

    fn positive_size(&mut self, key: &str, size: Option<&Size>) {
        self.size(key, size);
        if size.is_some_and(|size| size.bytes() == Ok(0)) {
            self.problem(key, format!("`{key}` is 0"), "");
        }
    }

    fn backend(&mut self) {
        let name = match &self.loaded.project.backend {
            BackendChoice::Name(name) => {
                return self.require(!name.is_empty(), "backend", name, "is empty");
            }
            BackendChoice::Settings(settings) => settings.as_ref().clone(),
        };
        let settings = name;
        self.require(!settings.name.is_empty(), "backend.name", &settings.name, "is empty");
        self.require(settings.gpus > 0, "backend.gpus", settings.gpus, "is not positive");
        self.require(settings.nodes > 0, "backend.nodes", settings.nodes, "is not positive");
        if let Some(threads) = settings.threads {
            self.require(threads > 0, "backend.threads", threads, "is not positive");
        }
        self.positive_size("backend.gpu_memory", settings.gpu_memory.as_ref());
        if settings.name == "command" && settings.command.is_empty() {
            let hint = "write `command: [program, \"{spec}\"]`";
            self.problem("backend", "the backend `command` has no `command`".into(), hint);
        }
    }

    fn data(&mut self) {
        let data = &self.loaded.project.data;
        for (stage, mix) in
            [("pretrain", &data.pretrain), ("align", &data.align), ("sft", &data.sft)]
        {
            self.mix(&format!("data.{stage}"), mix);
        }
        self.size("data.held_out.bytes", Some(&data.held_out.bytes));
        let fraction = data.held_out.fraction;
        let rule = "is not between 0 and 0.5";
        self.require((0.0..=0.5).contains(&fraction), "data.held_out.fraction", fraction, rule);
    }

    fn mix(&mut self, key: &str, mix: &Mix) {
        self.positive_size(&format!("{key}.bytes"), mix.bytes.as_ref());
        for (i, source) in mix.sources.iter().enumerate() {
            let key = format!("{key}.sources[{i}]");
            let language = &source.language;
            let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            let ok = !language.is_empty() && language.len() <= 32 && language.chars().all(word);
            let rule = "is not a short name like `en` or `pt-BR`";
            self.require(ok, &format!("{key}.language"), language, rule);
            let ok = source.weight.is_finite() && source.weight > 0.0;
            self.require(ok, &format!("{key}.weight"), source.weight, "is not positive");
            if source.field.as_ref().is_some_and(String::is_empty) {
                self.problem(&format!("{key}.field"), format!("`{key}.field` is empty"), "");
            }
        }
    }

    fn training(&mut self, stage: &str, training: &Training) {
        let counts = [
            ("epochs", training.epochs.map(u64::from)),
            ("max_steps", training.max_steps),
            ("batch", training.batch.map(u64::from)),
            ("accumulation", training.accumulation.map(u64::from)),
            ("save_every", training.save_every),
        ];
        for (key, value) in counts {
            if let Some(value) = value {
                self.require(value > 0, &format!("{stage}.{key}"), value, "is not positive");
            }
        }
        if let Some(length) = training.sequence_length {
            self.require(length > 1, &format!("{stage}.sequence_length"), length, "is less than 2");
        }
        if let Some(rate) = training.learning_rate {
            let key = format!("{stage}.learning_rate");
            self.require(rate > 0.0, &key, rate, "is not positive");
            self.require(rate <= 1.0, &key, rate, "is over 1");
        }
        if let Some(ratio) = training.warmup_ratio {
            let key = format!("{stage}.warmup_ratio");
            self.require((0.0..=1.0).contains(&ratio), &key, ratio, "is not between 0 and 1");
        }
        if let Some(decay) = training.weight_decay {
            self.require(decay >= 0.0, &format!("{stage}.weight_decay"), decay, "is negative");
        }
        if let Some(norm) = training.max_grad_norm {
            self.require(norm > 0.0, &format!("{stage}.max_grad_norm"), norm, "is not positive");
        }
        let rate = training.learning_rate.unwrap_or(5e-6);
        if training.master == Some(Precision::Bf16) && rate < 2e-5 {
            self.warnings.push(format!(
                "`{stage}.master: bf16` rounds most steps of a learning rate of {rate:e} away; `fp32` keeps them"
            ));
        }
    }

    fn method(&mut self, stage: &str, method: Method, layers: Option<&Layers>, lora: &Lora) {
        let key = format!("{stage}.layers");
        if let Some(layers) = layers {
            self.layers(&key, layers);
            if method != Method::Layers {
                self.warnings
                    .push(format!("`{key}` has no effect without `{stage}.method: layers`"));
            }
        }
        let key = format!("{stage}.lora");
        self.require(lora.rank > 0, &format!("{key}.rank"), lora.rank, "is not positive");
        self.require(lora.alpha > 0, &format!("{key}.alpha"), lora.alpha, "is not positive");
        let ok = (0.0..1.0).contains(&lora.dropout);
        self.require(ok, &format!("{key}.dropout"), lora.dropout, "is not between 0 and 1");
        if self.loaded.line_of(&key).is_some() && method != Method::Lora {
            self.warnings.push(format!("`{key}` has no effect without `{stage}.method: lora`"));
        }
    }

    /// Stages that are switched on without what they need.
    fn stages(&mut self) {
        let project = &self.loaded.project;
        let chats = !project.data.sft.sources.is_empty();
        if project.sft.enabled == Some(true) && !chats {
            let what = "`sft.enabled` is true, and there are no chats".into();
            self.problem("sft.enabled", what, "add sources to `data.sft.sources`");
        }
        if project.chat_vector.enabled == Some(true) && project.instruct.is_none() {
            let what = "`chat_vector.enabled` is true, and there is no `instruct` model".into();
            self.problem("chat_vector.enabled", what, "add `instruct: path/to/it`");
        }
        let vector = &project.chat_vector;
        self.require(vector.scale.is_finite(), "chat_vector.scale", vector.scale, "is not finite");
        if !VOCAB.contains(&vector.vocab.as_str()) {
            let what = format!("`chat_vector.vocab: {}` is not known", printable(&vector.vocab));
            self.problem("chat_vector.vocab", what, &one_of(&vector.vocab, &VOCAB));
        }
        if chats && project.sft.enabled != Some(false) && project.instruct.is_none() {
            self.warnings.push(
                "chats need a chat template; without `instruct` the base model must have one"
                    .into(),
            );
        }
        if let Some(publish) = &project.publish {
            let ok = publish.repo.split('/').filter(|part| !part.is_empty()).count() == 2;
            self.require(ok, "publish.repo", &publish.repo, "is not `org/name`");
        }
        let mut seen = Vec::new();
        for (i, control) in project.controls.iter().enumerate() {
            if seen.contains(control) {
                let key = format!("controls[{i}]");
                self.problem(&key, format!("`{key}` is there twice"), "");
            }
            seen.push(*control);
        }
        if !project.controls.is_empty() && project.data.pretrain.sources.is_empty() {
            let what = "`controls` have no data: `data.pretrain.sources` is empty".into();
            self.problem("controls", what, "add sources, or leave the controls out");
        }
    }

    fn evaluate(&mut self) {
        let evaluate = &self.loaded.project.evaluate;
        let length = evaluate.sequence_length;
        self.require(length > 1, "evaluate.sequence_length", length, "is less than 2");
        let models: Vec<&str> = STAGES.into_iter().chain(["base", "instruct"]).collect();
        for (i, name) in evaluate.task_stages.iter().enumerate() {
            if !models.contains(&name.as_str()) {
                let key = format!("evaluate.task_stages[{i}]");
                let what = format!("`{key}: {}` is not a stage", printable(name));
                self.problem(&key, what, &one_of(name, &models));
            }
        }
        for name in evaluate.after.keys() {
            if !STAGES.contains(&name.as_str()) {
                let key = format!("evaluate.after.{name}");
                let what = format!("`{}` in `evaluate.after` is not a stage", printable(name));
                self.problem(&key, what, &one_of(name, &STAGES));
            }
        }
        if evaluate.tasks.is_empty() && !evaluate.task_stages.is_empty() {
            self.warnings
                .push("`evaluate.task_stages` has no effect without `evaluate.tasks`".into());
        }
    }
}

fn one_of(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let known: Vec<String> = known.iter().map(|k| format!("`{k}`")).collect();
            format!("it is one of {}", known.join(", "))
        }
    }
}
