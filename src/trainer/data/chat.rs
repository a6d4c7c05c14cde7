//! Chat templates: what a conversation looks like to the model, and which of it the assistant says.
//!
//! Templates are Jinja as `apply_chat_template` of transformers renders them: `trim_blocks`, `lstrip_blocks`, methods
//! of Python's strings, `raise_exception`, `tojson`. `strftime_now` gives a fixed day, so that the same data gives the
//! same model on any day. The assistant's words are found by rendering the beginnings of the conversation.

use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use super::dumps::dumps;
use super::record::Message;

const NAME: &str = "chat";
/// Friday, 26 July 2024: the day that Llama 3's templates assume where they know none.
const DAY: [(&str, &str); 12] = [
    ("%Y", "2024"),
    ("%m", "07"),
    ("%d", "26"),
    ("%B", "July"),
    ("%b", "Jul"),
    ("%A", "Friday"),
    ("%a", "Fri"),
    ("%y", "24"),
    ("%H", "00"),
    ("%M", "00"),
    ("%S", "00"),
    ("%j", "208"),
];

/// A compiled template with the special tokens it may name.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    specials: Vec<(String, String)>,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rendered {
    pub(super) text: String,
    /// Byte ranges of `text` that the assistant says, each with the mark that ends the turn.
    pub(super) said: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Compiles a template. `specials`: names such as `eos_token` and their text.
    pub(super) fn new(source: &str, specials: Vec<(String, String)>) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| e.to_string())?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            DAY.iter().fold(format, |text, (code, value)| text.replace(code, value))
        });
        environment.add_filter("tojson", |value: Value, kwargs: Kwargs| -> Result<Value, Error> {
            let indent: Option<usize> = kwargs.get("indent")?;
            let json = serde_json::to_value(&value)
                .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
            Ok(Value::from_safe_string(dumps(&json, indent)))
        });
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|e| format!("the chat template does not parse: {e}"))?;
        Ok(Self { environment, specials })
    }

    fn render(&self, messages: &[Message], prompt: bool) -> Result<String, String> {
        let fields: Value = messages
            .iter()
            .map(|m| Value::from_pairs(m.fields.iter().map(|(k, v)| (k.as_str(), value(v)))))
            .collect();
        let specials = self.specials.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let specials = Value::from_pairs(specials);
        let own = context! { messages => fields, add_generation_prompt => prompt };
        let template = self.environment.get_template(NAME).map_err(|e| e.to_string())?;
        template.render(context! { ..own, ..specials }).map_err(|e| {
            format!("the chat template fails: {}", e.detail().unwrap_or(&e.to_string()))
        })
    }

    /// Renders a conversation and finds what the assistant says in it.
    pub(super) fn apply(&self, messages: &[Message]) -> Result<Rendered, String> {
        let text = self.render(messages, false)?;
        let mut said = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            if message.role == "assistant" {
                said.push(self.turn(&text, messages, i)?);
            }
        }
        Ok(Rendered { text, said })
    }

    /// Where turn `i` is said: from the end of its prompt to the end of the turn, white space after it excluded.
    fn turn(&self, text: &str, messages: &[Message], i: usize) -> Result<Range<usize>, String> {
        let prompt = self.render(&messages[..i], true)?;
        let lost = || {
            "the chat template renders the beginning of a conversation otherwise than the whole, so what the \
             assistant says cannot be told"
                .to_owned()
        };
        if !text.starts_with(&prompt) {
            return Err(lost());
        }
        let start = prompt.len();
        let until = self.render(&messages[..=i], false)?;
        if text.starts_with(&until) && until.len() >= start {
            return Ok(start..until.trim_end().len().max(start));
        }
        // Some templates show the last turn with more (Qwen3: its empty thoughts) than earlier ones. What follows the
        // words is the same, and ends the turn.
        let words = message_text(&messages[i]);
        let tail = until.rfind(words).map(|at| until[at + words.len()..].trim_end());
        let at = text[start..].find(words).map(|at| start + at + words.len());
        match (tail, at) {
            (Some(tail), Some(at)) if text[at..].starts_with(tail) => Ok(start..at + tail.len()),
            _ => Err(lost()),
        }
    }
}

/// A JSON value as templates see it.
fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match n.as_i64() {
            Some(n) => Value::from(n),
            None => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(value).collect(),
        serde_json::Value::Object(map) => {
            Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), value(v))))
        }
    }
}

/// A message's words as templates show them: most strip white space.
fn message_text(message: &Message) -> &str {
    message.content.trim()
}

/// Takes `{% generation %}` and its end out, which transformers knows and Jinja does not, leaving white space control.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(end) = rest[at..].find("%}").map(|e| at + e + 2) else {
            break;
        };
        let tag = &rest[at..end];
        let word = tag[2..tag.len() - 2].trim_matches(['-', '+', ' ', '\n', '\t']);
        out.push_str(&rest[..at]);
        match word {
            "generation" => out.push_str(&tag.replace(word, "if true")),
            "endgeneration" => out.push_str(&tag.replace(word, "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' \
        + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
        let message = |(role, content): &(&str, &str)| {
            let fields = serde_json::json!({"role": role, "content": content});
            let fields = fields.as_object().unwrap().clone();
            Message { role: (*role).into(), content: (*content).into(), fields }
        };
        turns.iter().map(message).collect()
    }

    fn said(template: &str, turns: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let specials =
            vec![("eos_token".into(), "</s>".into()), ("bos_token".into(), "<s>".into())];
        let rendered = ChatTemplate::new(template, specials)?.apply(&messages(turns))?;
        Ok(rendered.said.iter().map(|r| rendered.text[r.clone()].to_owned()).collect())
    }

    #[test]
    fn the_assistant_says_its_words_and_the_end_of_its_turn() {
        let turns = [
            ("system", "s"),
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", " d"),
        ];
        assert_eq!(said(CHATML, &turns).unwrap(), ["b<|im_end|>", " d<|im_end|>"]);
        let llama2 = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content.strip() }} \
            [/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}";
        assert_eq!(said(llama2, &turns[1..]).unwrap(), [" b </s>", " d </s>"]);
    }

    #[test]
    fn earlier_turns_may_be_shown_with_less() {
        let qwen3 = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}<think></think>\
            {% endif %}{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")];
        assert_eq!(said(qwen3, &turns).unwrap(), ["b<end>", "<think></think>d<end>"]);
    }

    #[test]
    fn a_template_without_beginnings_is_an_error() {
        let counting = "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}";
        let problem = said(counting, &[("user", "a"), ("assistant", "b")]).unwrap_err();
        assert!(problem.contains("beginning"), "{problem}");
    }

    #[test]
    fn tags_functions_and_filters_of_transformers_work() {
        let tags = "{% for m in messages %}{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token \
            }}{% endgeneration %}{% else %}{{ m | tojson }}{% endif %}{% endfor %}{{ strftime_now('%d %b %Y') }}";
        let template = ChatTemplate::new(tags, vec![("eos_token".into(), "$".into())]).unwrap();
        let text =
            template.render(&messages(&[("user", "<é>"), ("assistant", "b")]), false).unwrap();
        assert_eq!(text, "{\"role\": \"user\", \"content\": \"<é>\"}b$26 Jul 2024");
        let refusing = "{{ raise_exception('roles must alternate') }}";
        let problem = said(refusing, &[("user", "a")]).unwrap_err();
        assert!(problem.contains("roles must alternate"), "{problem}");
        assert!(ChatTemplate::new("{% if %}", Vec::new()).is_err());
    }
}
