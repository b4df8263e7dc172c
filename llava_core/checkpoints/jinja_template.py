"""A prompt template of the original code as the Jinja chat template of a converted checkpoint.

Renders what `conversation.render` does for chats of user and assistant in turn, with or without system messages.
"""

from __future__ import annotations

import json

from llava_core.conversation import Template


def chat_template(template: Template, image: str) -> str:
    """Jinja source; `image` is what stands for a picture."""
    body = _BODIES[template.style]
    constants = {
        "IMAGE": image,
        "USER": template.roles[0],
        "ASSISTANT": template.roles[1],
        "SEP": template.sep,
        "SEP2": template.sep2,
        "PREFIX": template.system_prefix,
        "DEFAULT": template.system,
    }
    settings = "".join(f"{{%- set {name} = {literal(value)} -%}}" for name, value in constants.items())
    return settings + FLAT + _SYSTEM + body


def literal(text: str) -> str:
    """Text as Jinja writes it."""
    # JSON's escapes are Jinja's too.
    return json.dumps(text, ensure_ascii=False)


# Content as text. A picture's mark is kept from its neighbours by a line break, as the original's pages write it.
FLAT = """
{%- macro flat(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- set seen = namespace(before='', texts=0) -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}
{%- if seen.before -%}{{ '\\n' }}{%- endif -%}{{ IMAGE }}{%- set seen.before = 'image' -%}
{%- else -%}
{%- set seen.texts = seen.texts + 1 -%}
{%- if part['text'] -%}
{%- if seen.before == 'image' -%}{{ '\\n' }}{%- endif -%}{{ part['text'] }}{%- set seen.before = 'text' -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if content and not seen.texts -%}{{ '\\n' }}{%- endif -%}
{%- endif -%}
{%- endmacro -%}
"""
_SYSTEM = """
{%- set given = namespace(system='', any=false) -%}
{%- for message in messages if message['role'] == 'system' -%}
{%- set given.system = given.system + ('\\n' if given.any else '') + flat(message['content']) -%}
{%- set given.any = true -%}
{%- endfor -%}
{%- set system = given.system if given.any else DEFAULT -%}
{%- set turns = messages | rejectattr('role', 'equalto', 'system') | list -%}
"""

_OPENING = "{{- PREFIX + system if system or PREFIX else '' -}}"

_BODIES = {
    "single": _OPENING
    + "{{- SEP -}}"
    + "{%- for turn in turns -%}"
    + "{{- (ASSISTANT if turn['role'] == 'assistant' else USER) + ': ' + flat(turn['content']) + SEP -}}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- ASSISTANT + ':' -}}{%- endif -%}",
    "two": _OPENING
    + "{{- SEP -}}"
    + "{%- for turn in turns -%}"
    + "{%- if turn['role'] == 'assistant' -%}{{- ASSISTANT + ': ' + flat(turn['content']) + SEP2 -}}"
    + "{%- else -%}{{- USER + ': ' + flat(turn['content']) + SEP -}}{%- endif -%}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- ASSISTANT + ':' -}}{%- endif -%}",
    "mpt": _OPENING
    + "{{- SEP -}}"
    + "{%- for turn in turns -%}"
    + "{{- (ASSISTANT if turn['role'] == 'assistant' else USER) + flat(turn['content']) + SEP -}}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- ASSISTANT -}}{%- endif -%}",
    "llama_2": "{%- set opening = PREFIX + system if system or PREFIX else '' -%}"
    + "{%- for turn in turns -%}"
    + "{%- if turn['role'] == 'assistant' -%}{{- ' ' + flat(turn['content']) + ' ' + SEP2 -}}"
    + "{%- else -%}"
    + "{{- (SEP if not loop.first else '') + '[INST] ' -}}"
    + "{{- '<<SYS>>\\n' + opening + '\\n<</SYS>>\\n\\n' if loop.first and opening else '' -}}"
    + "{{- flat(turn['content']) + ' [/INST]' -}}"
    + "{%- endif -%}"
    + "{%- endfor -%}",
    "plain": _OPENING + "{%- for turn in turns -%}{{- flat(turn['content']) + SEP -}}{%- endfor -%}",
}
