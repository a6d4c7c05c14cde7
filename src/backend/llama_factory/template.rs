//! LLaMA-Factory's chat templates are its own, by name: which one renders what the tokenizer's template renders.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::super::protocol::Spec;
use super::super::refusal::refused;
use crate::error::Result;

/// The name for the tokenizer's chat template; by family where none lies beside the tokenizer.
pub(super) fn choose(spec: &Spec) -> Result<&'static str> {
    let family = spec.model.family.as_str();
    let found = match chat_template(&spec.tokenizer.dir) {
        Some(template) => by_marks(&template, family),
        None => by_family(family),
    };
    found.ok_or_else(|| {
        refused(
            format!("the chat template of `{family}` on llama-factory"),
            "it has templates of its own and none is known to render the same",
            "name one: `extra: {template: NAME}`, see src/llamafactory/data/template.py of LLaMA-Factory",
        )
    })
}

fn by_family(family: &str) -> Option<&'static str> {
    Some(match family {
        "llama" => "llama3",
        "mistral" => "mistral",
        "qwen2" => "qwen",
        "qwen3" => "qwen3",
        _ => return None,
    })
}

fn by_marks(template: &str, family: &str) -> Option<&'static str> {
    let has = |mark: &str| template.contains(mark);
    if has("<|start_header_id|>") {
        Some("llama3")
    } else if has("<|im_start|>") {
        Some(match family {
            "qwen2" => "qwen",
            "qwen3" if has("<think>") => "qwen3",
            "qwen3" => "qwen3_nothink",
            _ => "chatml",
        })
    } else if has("[INST]") && has("<<SYS>>") {
        Some("llama2")
    } else if has("[INST]") && family == "mistral" {
        Some("mistral")
    } else {
        None
    }
}

fn chat_template(tokenizer: &Path) -> Option<String> {
    if let Ok(text) = fs::read_to_string(tokenizer.join("chat_template.jinja")) {
        return Some(text);
    }
    let text = fs::read_to_string(tokenizer.join("tokenizer_config.json")).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    Some(config.get("chat_template")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::by_marks;

    #[test]
    fn templates_are_known_by_their_marks() {
        assert_eq!(by_marks("<|start_header_id|>", "llama"), Some("llama3"));
        assert_eq!(by_marks("<|im_start|>", "qwen2"), Some("qwen"));
        assert_eq!(by_marks("<|im_start|> <think>", "qwen3"), Some("qwen3"));
        assert_eq!(by_marks("<|im_start|>", "llama"), Some("chatml"));
        assert_eq!(by_marks("[INST]", "mistral"), Some("mistral"));
        assert_eq!(by_marks("### Human:", "llama"), None);
    }
}
