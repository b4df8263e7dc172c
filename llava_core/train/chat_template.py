"""A language model's own chat template, taught to take pictures: parts become text before the template sees them."""

from __future__ import annotations

from llava_core.checkpoints.jinja_template import FLAT, literal

# Rebinds `messages`; all else of the template stays as its makers wrote it.
_FLATTEN = """\
{%- set llava = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is none or message['content'] is undefined -%}
{%- set llava.messages = llava.messages + [message] -%}
{%- else -%}
{%- set llava.messages = llava.messages + [dict(message, content=flat(message['content']))] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = llava.messages -%}
"""


def with_pictures(template: str, mark: str) -> str:
    """Jinja source that takes content as a string or as parts; `mark` stands for a picture."""
    return f"{{%- set IMAGE = {literal(mark)} -%}}" + FLAT + _FLATTEN + template
