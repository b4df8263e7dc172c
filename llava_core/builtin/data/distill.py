"""The language model's own answers to requests without a picture, as samples that keep it what it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava_core.builtin.data.instructions import instructions

_LONGEST = 56
_AT_ONCE = 30


def own_answers(language: Path, kept: Path, say: Callable[[str], None]) -> list[tuple[str, str]]:
    """Greedy answers that came to an end by themselves; kept in a file, since they take a minute."""
    if kept.exists():
        return [(question, answer) for question, answer in json.loads(kept.read_text("utf-8"))]
    say("Asking the language model for answers of its own (once, a minute or two)")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(language, dtype=torch.bfloat16).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(language, padding_side="left")
    found: list[tuple[str, str]] = []
    asked = instructions()
    for at in range(0, len(asked), _AT_ONCE):
        some = asked[at : at + _AT_ONCE]
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": one}], tokenize=False, add_generation_prompt=True
            )
            for one in some
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=_LONGEST, do_sample=False)
        for question, row in zip(some, ids[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            if tokenizer.eos_token_id in row or tokenizer.pad_token_id in row:
                found.append((question, tokenizer.decode(row, skip_special_tokens=True).strip()))
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found
