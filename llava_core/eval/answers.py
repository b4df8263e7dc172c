"""Answers of a checkpoint in llava-hf format to many questions, greedily, in batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava_core.builtin.tower import register_tower

_AT_ONCE = 16
Say = Callable[[str], None]


class Answerer:
    """A model with its processor. Features of pictures are computed once per batch, by the model itself."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

        register_tower()
        if threads:
            torch.set_num_threads(threads)
        self.sees = (folder / "preprocessor_config.json").exists() or (folder / "processor_config.json").exists()
        kind: Any = LlavaForConditionalGeneration if self.sees else AutoModelForCausalLM
        self.model: Any = kind.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.processor: Any = AutoProcessor.from_pretrained(folder, backend="pil") if self.sees else None
        self.tokenizer: Any = self.processor.tokenizer if self.sees else AutoTokenizer.from_pretrained(folder)
        self.tokenizer.padding_side = "left"

    def answer(
        self, chats: Sequence[list[dict[str, str]]], images: Sequence[Image.Image | None], *, most: int
    ) -> list[str]:
        """One answer to each chat; a picture belongs to the first turn."""
        # Of a blank picture the same is asked over and over: once is enough.
        keys = [(json.dumps(chat), id(image)) for chat, image in zip(chats, images, strict=True)]
        rows = list({key: row for row, key in enumerate(keys)}.values())
        found: dict[tuple[str, int], str] = {}
        for at in range(0, len(rows), _AT_ONCE):
            some = rows[at : at + _AT_ONCE]
            answers = self._batch([chats[row] for row in some], [images[row] for row in some], most)
            found |= {keys[row]: answer for row, answer in zip(some, answers, strict=True)}
        return [found[key] for key in keys]

    @torch.inference_mode()
    def _batch(
        self, chats: Sequence[list[dict[str, str]]], images: Sequence[Image.Image | None], most: int
    ) -> list[str]:
        prompts: list[str] = []
        for chat, image in zip(chats, images, strict=True):
            messages = [
                {
                    "role": turn["role"],
                    "content": f"<image>\n{turn['content']}" if image is not None and index == 0 else turn["content"],
                }
                for index, turn in enumerate(chat)
            ]
            prompts.append(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        pictures = [image for image in images if image is not None]
        if pictures:
            inputs = self.processor(text=prompts, images=pictures, return_tensors="pt", padding=True)
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        else:
            inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        ids = self.model.generate(**inputs, max_new_tokens=most, do_sample=False)
        texts = self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]
