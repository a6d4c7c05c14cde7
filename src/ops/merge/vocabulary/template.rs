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
