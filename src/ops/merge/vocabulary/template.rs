//! Chat templates that have a name, in the format that the makers of the models document.

/// Instruction and response under headings (Stanford Alpaca); a system message stands before them.
const ALPACA: &str = "\
{%- set ns = namespace(first=true) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {{- message['content'] | trim -}}
    {%- set ns.first = false -%}
  {%- else -%}
    {%- if not ns.first -%}{{- '\\n\\n' -}}{%- endif -%}
    {%- set ns.first = false -%}
    {{- ('### Instruction:' if message['role'] == 'user' else '### Response:') + '\\n' + (message['content'] | trim) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\n\\n### Response:\\n' -}}{%- endif -%}
";

/// `<|im_start|>role ... <|im_end|>`.
const CHATML: &str = "\
{%- for message in messages -%}
  {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
";

/// Meta's format of Llama 3.
const LLAMA3: &str = "\
{{- bos_token -}}
{%- for message in messages -%}
  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + (message['content'] | trim) + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
";

/// Mistral's format of Mistral-7B-Instruct v0.2; a system message stands before the first user's.
const MISTRAL: &str = "\
{%- set ns = namespace(system='', turn=0) -%}
{{- bos_token -}}
{%- for message in messages -%}
  {%- if loop.first and message['role'] == 'system' -%}
    {%- set ns.system = message['content'] + '\\n\\n' -%}
  {%- elif message['role'] == 'user' and ns.turn % 2 == 0 -%}
    {{- ' [INST] ' + ns.system + message['content'] + ' [/INST]' -}}
    {%- set ns.system = '' -%}
    {%- set ns.turn = ns.turn + 1 -%}
  {%- elif message['role'] == 'assistant' and ns.turn % 2 == 1 -%}
    {{- ' ' + message['content'] + eos_token -}}
    {%- set ns.turn = ns.turn + 1 -%}
  {%- else -%}
    {{- raise_exception('after an optional system message, user and assistant take turns') -}}
  {%- endif -%}
{%- endfor -%}
";

/// LG's format of EXAONE 3.
const EXAONE: &str = "\
{%- for message in messages -%}
  {%- if loop.first and message['role'] != 'system' -%}{{- '[|system|][|endofturn|]\\n' -}}{%- endif -%}
  {{- '[|' + message['role'] + '|]' + message['content'] -}}
  {{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '[|assistant|]' -}}{%- endif -%}
";

const BUILT_IN: [(&str, &str); 5] = [
    ("alpaca", ALPACA),
    ("chatml", CHATML),
    ("llama3", LLAMA3),
    ("mistral", MISTRAL),
    ("exaone", EXAONE),
];

/// The template of a name.
pub(super) fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, template)| *template)
}

/// The names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

#[cfg(test)]
#[cfg(feature = "pipeline")]
mod tests {
    use minijinja::value::Value;
    use minijinja::{Environment, Error, ErrorKind, context};

    use super::*;

    fn rendered(name: &str, turns: &[(&str, &str)], prompt: bool) -> Result<String, Error> {
        let mut environment = Environment::new();
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template("chat", built_in(name).unwrap()).unwrap();
        let messages: Vec<Value> = turns
            .iter()
            .map(|(role, content)| context! { role => *role, content => *content })
            .collect();
        let values = context! { messages, bos_token => "<s>", eos_token => "</s>", add_generation_prompt => prompt };
        environment.get_template("chat").unwrap().render(values)
    }

    #[test]
    fn templates_write_what_the_makers_document() {
        let turns =
            [("system", "Be nice."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye")];
        for (name, whole) in [
            (
                "alpaca",
                "Be nice.\n\n### Instruction:\nHi\n\n### Response:\nHello!\n\n### Instruction:\nBye\n\n### Response:\n",
            ),
            (
                "chatml",
                "<|im_start|>system\nBe nice.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                "llama3",
                "<s><|start_header_id|>system<|end_header_id|>\n\nBe nice.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            ("mistral", "<s> [INST] Be nice.\n\nHi [/INST] Hello!</s> [INST] Bye [/INST]"),
            (
                "exaone",
                "[|system|]Be nice.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello![|endofturn|]\n[|user|]Bye\n[|assistant|]",
            ),
        ] {
            assert_eq!(rendered(name, &turns, true).unwrap(), whole, "{name}");
        }
        assert_eq!(
            rendered("exaone", &turns[1..2], false).unwrap(),
            "[|system|][|endofturn|]\n[|user|]Hi\n"
        );
        assert_eq!(rendered("alpaca", &turns[1..2], false).unwrap(), "### Instruction:\nHi");
        assert!(rendered("mistral", &turns[2..], false).is_err(), "turns must alternate");
        assert_eq!(names().count(), 5);
    }
}
