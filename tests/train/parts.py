"""Small parts to train with: a vision tower, a language model that knows a few words, pictures of coloured squares."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner, Result

from llava_core.train.commands import app

SIDE, PATCH = 28, 14
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 70, 220),
    "yellow": (235, 215, 50),
}
QUESTION = "What colour is the square?"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_PROSE = (
    "What colour is the square? The square is red. It is green. A blue square on a white ground. yellow "
    "Is it red? Yes, it is. No, it is not. Where does it lie? On the left, on the right, at the top."
)


def run(*words: str | Path) -> Result:
    """A command of `python -m llava_core.train`; what it failed with, other than an exit code, is raised."""
    result = CliRunner().invoke(app, [str(word) for word in words], terminal_width=200)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def save_tower(folder: Path, *, kind: str = "clip", side: int = SIDE, seed: int = 0) -> Path:
    """A random tower with its processor; random features still tell colours apart."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(seed)
    if kind == "clip":
        tower: Any = CLIPVisionModel(
            CLIPVisionConfig(**small, image_size=side, patch_size=PATCH, initializer_factor=2.0)
        )
    elif kind == "siglip":
        from transformers import SiglipVisionConfig, SiglipVisionModel

        tower = SiglipVisionModel(SiglipVisionConfig(**small, image_size=side, patch_size=PATCH))
    else:
        from transformers import Dinov2Config, Dinov2Model

        tower = Dinov2Model(Dinov2Config(**small, image_size=side, patch_size=PATCH, mlp_ratio=2))
    tower.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )
    return folder


def save_llm(folder: Path, *, bos: bool = False, chat: bool = True, tied: bool = True, seed: int = 0) -> Path:
    """A random language model of two layers."""
    tokenizer = _tokenizer(bos)
    if chat:
        tokenizer.chat_template = CHATML
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # of 32, the smallest that vLLM computes on a CPU
        num_key_value_heads=1,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def draw(colour: str, dice: random.Random, side: int = 48) -> Image.Image:
    """A square of that colour, about, somewhere on a light ground."""
    ground = dice.randint(200, 255)
    picture = Image.new("RGB", (side, side), (ground, ground, ground))
    size = dice.randint(side // 3, side // 2)
    left, top = dice.randint(0, side - size), dice.randint(0, side - size)
    shade = tuple(max(0, min(255, part + dice.randint(-20, 20))) for part in COLOURS[colour])
    ImageDraw.Draw(picture).rectangle((left, top, left + size, top + size), fill=shade)
    return picture


def save_squares(folder: Path, count: int, *, seed: int, name: str = "squares") -> Path:
    """Pictures and their chats in LLaVA's JSON."""
    dice = random.Random(seed)
    pictures = folder / name
    pictures.mkdir(parents=True, exist_ok=True)
    samples: list[dict[str, Any]] = []
    for number in range(count):
        colour = sorted(COLOURS)[number % len(COLOURS)]
        draw(colour, dice).save(pictures / f"{number}.png")
        samples.append(sample(f"{name}/{number}.png", colour, f"{name}-{number}"))
    return write_samples(folder / f"{name}.json", samples)


def write_samples(file: Path, samples: Sequence[Any]) -> Path:
    file.write_text(json.dumps(samples))
    return file


def sample(image: str | Sequence[str], answer: str, identity: str = "s") -> dict[str, Any]:
    marks = "<image>\n" * (1 if isinstance(image, str) else len(image))
    turns = [{"from": "human", "value": marks + QUESTION}, {"from": "gpt", "value": answer}]
    return {"id": identity, "image": image, "conversations": turns}


def _tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([_PROSE] * 4, trainer)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(["<s>"] if bos else [])]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair=None, special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<s>" if bos else None,
        clean_up_tokenization_spaces=False,
    )
