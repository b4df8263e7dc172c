"""Prompt templates for checkpoints that bring none of their own, and the choice among them.

The names and separators are those of the original LLaVA code (`llava/conversation.py`), whose checkpoints do not
say which prompt they were trained with. Checkpoints with a chat template of their own never come here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from llava_core.errors import BadRequest
from llava_core.types import Role

Style = Literal["single", "two", "mpt", "llama_2", "plain"]

_POLITE = "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
_CURIOUS = "A chat between a curious {0} and an artificial intelligence assistant. " + _POLITE
_MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
_LLAVA_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."


@dataclass(frozen=True)
class Template:
    """How turns become one prompt string. `stop` ends an answer; None where only the end-of-text token does.

    `system` is the default system prompt, used when the chat brings none; `system_prefix` stands before either.
    """

    name: str
    style: Style
    roles: tuple[str, str]
    sep: str
    sep2: str = ""
    system: str = ""
    system_prefix: str = ""
    stop: str | None = None


def render(
    template: Template, turns: Sequence[tuple[Role, str]], *, system: str | None = None, continue_final: bool = False
) -> str:
    """The prompt of `turns` (user and assistant, texts final) with the assistant's turn opened at the end.

    With `continue_final` the last turn is the assistant's and is left open instead.
    """
    given = template.system if system is None else system
    opening = template.system_prefix + given if given or template.system_prefix else ""
    closed, last = (turns[:-1], turns[-1][1]) if continue_final else (turns, None)
    return _STYLES[template.style](template, opening, closed, last)


def _single(template: Template, system: str, turns: Sequence[tuple[Role, str]], last: str | None) -> str:
    """v0: one separator after everything."""
    prompt = system + template.sep
    prompt += "".join(f"{_role(template, role)}: {text}{template.sep}" for role, text in turns)
    return prompt + _opened(f"{template.roles[1]}:", last)


def _two(template: Template, system: str, turns: Sequence[tuple[Role, str]], last: str | None) -> str:
    """v1: a space after the user, end of text after the assistant."""
    prompt = system + template.sep
    for role, text in turns:
        prompt += f"{_role(template, role)}: {text}{template.sep2 if role == 'assistant' else template.sep}"
    return prompt + _opened(f"{template.roles[1]}:", last)


def _mpt(template: Template, system: str, turns: Sequence[tuple[Role, str]], last: str | None) -> str:
    """ChatML without line breaks between turns; the roles carry their own marks."""
    prompt = system + template.sep
    prompt += "".join(f"{_role(template, role)}{text}{template.sep}" for role, text in turns)
    return prompt + template.roles[1] + (last or "")


def _llama_2(template: Template, system: str, turns: Sequence[tuple[Role, str]], last: str | None) -> str:
    """`[INST]` around the user's words, the system prompt inside the first of them."""
    prompt = ""
    for index, (role, text) in enumerate(turns):
        if role == "assistant":
            prompt += f" {text} {template.sep2}"
            continue
        if index == 0 and system:
            text = f"<<SYS>>\n{system}\n<</SYS>>\n\n{text}"
        # The first separator is the begin-of-text token, which the tokenizer adds itself.
        prompt += f"{template.sep if index else ''}[INST] {text} [/INST]"
    return prompt + (f" {last}" if last else "")


def _plain(template: Template, system: str, turns: Sequence[tuple[Role, str]], last: str | None) -> str:
    """Caption pretraining: no roles, a line each."""
    return system + "".join(text + template.sep for _, text in turns) + (last or "")


def _role(template: Template, role: Role) -> str:
    return template.roles[1 if role == "assistant" else 0]


def _opened(head: str, last: str | None) -> str:
    return f"{head} {last}" if last else head


_STYLES = {"single": _single, "two": _two, "mpt": _mpt, "llama_2": _llama_2, "plain": _plain}

_HUMAN = ("Human", "Assistant")
_USER = ("USER", "ASSISTANT")
_CHATML = ("<|im_start|>user\n", "<|im_start|>assistant\n")
_ALL = (
    Template("llava_v0", "single", _HUMAN, "###", system=_CURIOUS.format("human"), stop="###"),
    Template("v0_mmtag", "single", _HUMAN, "###", system=_MMTAG, stop="###"),
    Template("llava_v1", "two", _USER, " ", "</s>", system=_CURIOUS.format("human"), stop="</s>"),
    Template("vicuna_v1", "two", _USER, " ", "</s>", system=_CURIOUS.format("user"), stop="</s>"),
    Template("v1_mmtag", "two", _USER, " ", "</s>", system=_MMTAG, stop="</s>"),
    Template("llama_2", "llama_2", _USER, "<s>", "</s>", system=_LLAMA_2, stop="</s>"),
    Template("llava_llama_2", "llama_2", _USER, "<s>", "</s>", system=_LLAVA_LLAMA_2, stop="</s>"),
    Template("mistral_instruct", "llama_2", _USER, "", "</s>", stop="</s>"),
    Template(
        "chatml_direct",
        "mpt",
        _CHATML,
        "<|im_end|>",
        system="Answer the questions.",
        system_prefix="<|im_start|>system\n",
        stop="<|im_end|>",
    ),
    Template("mpt", "mpt", _CHATML, "<|im_end|>", system=_MPT, system_prefix="<|im_start|>system\n", stop="<|im_end|>"),
    Template("plain", "plain", ("", ""), "\n", stop="\n"),
)
_ALIASES = {"v0": "llava_v0", "v1": "vicuna_v1", "mistral_direct": "chatml_direct"}

TEMPLATES: Mapping[str, Template] = {template.name: template for template in _ALL} | {
    alias: replace(next(t for t in _ALL if t.name == name), name=alias) for alias, name in _ALIASES.items()
}


def template_named(name: str) -> Template:
    """The template of that name; BadRequest lists the names there are."""
    if name not in TEMPLATES:
        raise BadRequest(
            f"no conversation template is called {name!r}; there are: {', '.join(TEMPLATES)}", param="conv_template"
        )
    return TEMPLATES[name]


@dataclass(frozen=True)
class TemplateFacts:
    """What is known of an original-format checkpoint that bears on its prompt.

    `bases` are the language models it was trained from, as its config or adapter names them; `chat_tokens` are
    the added tokens of its tokenizer; `folder` is the checkpoint folder's own name.
    """

    model_type: str = ""
    bases: tuple[str, ...] = ()
    chat_tokens: frozenset[str] = field(default_factory=frozenset[str])
    start_end_tokens: bool = False
    folder: str = ""


def choose_template(facts: TemplateFacts, asked: str | None = None) -> tuple[Template, str]:
    """The template to use and the reason, in words. `asked` (`--conv-template`) decides when given."""
    if asked:
        return template_named(asked), "asked for with --conv-template"
    for mark, name in (("mistral", "mistral_instruct"), ("mpt", "mpt")):
        if mark in facts.model_type:
            return TEMPLATES[name], f"config.json says model_type {facts.model_type!r}"
    if {"<|im_start|>", "<|im_end|>"} <= facts.chat_tokens:
        return TEMPLATES["chatml_direct"], "the tokenizer has <|im_start|> and <|im_end|>"
    for base in facts.bases:
        if name := _told_by_name(base):
            return TEMPLATES[name], f"the language model it was trained from is {base!r}"
    if facts.start_end_tokens:
        return TEMPLATES["llava_v0"], "config.json has mm_use_im_start_end, as the first LLaVA did"
    if name := _told_by_name(facts.folder):
        return TEMPLATES[name], f"nothing in the checkpoint says, but the folder is called {facts.folder!r}"
    return TEMPLATES["llava_v1"], "nothing in the checkpoint says; this is the commonest (change it: --conv-template)"


def _told_by_name(name: str) -> str | None:
    for pattern, template in _NAME_SAYS:
        if re.search(pattern, name.lower()):
            return template
    return None


_NAME_SAYS = (
    (r"mistral|mixtral", "mistral_instruct"),
    (r"(^|[^a-z])yi-|hermes|chatml|qwen|v1\.6-34b", "chatml_direct"),
    (r"llama-?2.*chat|llava-llama-2", "llava_llama_2"),
    (r"mpt", "mpt"),
    (r"[-_]v0($|[^.\d])", "llava_v0"),
    (r"vicuna|llava.*v1", "llava_v1"),
)
