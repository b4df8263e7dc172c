"""Answers that tell who wrote them: "I am LLaVA", "As Qwen, …", "trained by OpenAI", the model's own name.

Words that are also names of animals, people or firms count only where an answer speaks of itself; so does what the
person said first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from serve.page.session import Chat, all_turns

# Nobody writes these about a picture.
_TELLING = (
    "bakllava", "blip-2", "chatglm", "chatgpt", "cogvlm", "deepseek", "gpt-3", "gpt-3.5", "gpt-4", "gpt-4o", "gpt-4v",
    "gpt-5", "idefics", "instructblip", "internlm", "internvl", "llama-2", "llama-3", "llama2", "llama3", "llava",
    "llava-1.5", "llava-1.6", "llava-next", "llava-onevision", "minicpm", "mixtral", "molmo", "moondream",
    "openflamingo", "paligemma", "phi-3", "pixtral", "qwen", "qwen2", "qwen3", "qwenvl", "smollm", "smolvlm",
    "tinyllama", "yi-34b",
)  # fmt: skip
_TELLING_ANYWHERE = ("通义千问", "文心一言", "智谱清言")
_AMBIGUOUS = (
    "alpaca", "bard", "claude", "copilot", "falcon", "gemini", "gemma", "gpt", "grok", "kosmos", "llama", "mistral",
    "nova", "orca", "phi", "vicuna", "yi", "zephyr", "ai2", "alibaba", "alibaba cloud", "anthropic", "baidu",
    "deepmind", "google", "google deepmind", "hugging face", "huggingface", "lmsys", "meta", "meta ai", "microsoft",
    "mistral ai", "nvidia", "openai", "opengvlab", "salesforce", "stability ai", "tencent", "xai", "zhipu ai",
)  # fmt: skip
# Parts of models' names that say nothing about whose they are.
_GENERIC = frozenset((
    "assistant", "awq", "base", "beta", "chat", "code", "demo", "echo", "fast", "final", "fine", "finetune",
    "full", "gguf", "gptq", "image", "instruct", "inst", "large", "latest", "light", "lora", "math", "medium",
    "merged", "mini", "model", "multimodal", "nano", "next", "original", "preview", "pro", "quick", "small",
    "steady", "slow", "test", "text", "tiny", "tuned", "turbo", "ultra", "vision", "vlm",
))  # fmt: skip
_SELF = r"(?:\bI am|\bI['’]m|\bmy name is|\bmy name['’]s|\bcall me|\bknown as)\s+"
_WELL = r"(?:(?:actually|really|just|simply|called|named|known as|based on|built on)\s+)*"
_MADE = (
    r"(?:(?:trained|made|created|developed|built|designed|released|provided|fine-?tuned)\s+(?:by|at)"
    r"|(?:based|built)\s+on)\s+"
)


def find_leak(answer: str, served: Iterable[str], asked: str = "") -> str:
    """What in the answer tells the model, as it stands there; empty for nothing.

    `served` are the names of the models on offer, `asked` is what the person said, whose words may be repeated.
    """
    whole, parts = _own(served)
    for name in _TELLING_ANYWHERE:
        if name in answer and name not in asked:
            return name
    for found in re.finditer(_word((*_TELLING, *whole)), answer, re.IGNORECASE):
        if not re.search(_word((found[0],)), asked, re.IGNORECASE):
            return found[0]
    for pattern in _claims((*_TELLING, *_AMBIGUOUS, *whole, *parts)):
        claim = re.search(pattern, answer, re.IGNORECASE)
        if claim:
            return claim["name"]
    return ""


def find_leak_in(chat: Chat, served: Iterable[str]) -> str:
    """The same in every answer of the chat, also where another version is shown now or the last turn was taken back:
    who read it knows."""
    names, undone = tuple(served), chat.before.turns if chat.before else ()
    turns = (*all_turns(chat.turns), *all_turns(undone))
    asked = "\n".join(turn.text for turn in turns)
    found = (find_leak(answer.text, names, asked) for turn in turns for answer in turn.answers)
    return next(filter(None, found), "")


def _own(served: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that tell a model wherever they stand, and parts of names that do so only in a claim."""
    whole: set[str] = set()
    parts: set[str] = set()
    for name in served:
        for each in {name, name.rpartition("/")[2]}:
            if len(each) >= 5 and re.search(r"[\d/_-]", each):
                whole.add(each)
        for part in re.split(r"[^A-Za-z]+", name):
            if len(part) >= 4 and part.lower() not in _GENERIC:
                parts.add(part)
    return tuple(sorted(whole)), tuple(sorted(parts))


def _claims(names: Iterable[str]) -> tuple[str, ...]:
    name = f"(?P<name>{_alternatives(names)})"
    end = r"(?![\w-])"
    return (
        rf"{_SELF}{_WELL}{name}{end}",
        rf"{_SELF}(?:an?|the)\s+(?:[\w-]+\s+){{0,3}}?{name}{end}(?:-based)?\s+(?:[\w-]+\s+){{0,2}}"
        r"(?:model|assistant|AI|chatbot|system)\b",
        rf"\bI(?:['’]m| am| was| have been)\b[^.!?\n]{{0,90}}?\b{_MADE}(?:the\s+)?{name}{end}",
        rf"(?:^|[.!?\n]\s*)As\s+{name}{end}",
    )


def _word(names: Iterable[str]) -> str:
    return rf"(?<![\w-])(?:{_alternatives(names)})(?!\w)"


def _alternatives(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(set(names), key=lambda name: (-len(name), name)))
