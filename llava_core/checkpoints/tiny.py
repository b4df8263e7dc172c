"""Builds tiny random checkpoints in transformers' own format, without any download, for tests and as a stand-in.

python -m llava_core.checkpoints.tiny OUT [--family llava] [--seed 0]

Everything is there that a real checkpoint has (vision tower, projector, language model, processor, chat template),
only small and untrained: the wiring works, the answers are words without sense.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = ("llava", "llava_next", "llava_onevision", "internvl", "qwen2_5_vl", "qwen3_vl", "llama", "qwen2")
NOTE = "tiny random weights: the wiring works, the answers are noise"
NOTE_KEY = "llava_serve_note"


def build_tiny(family: str, out: Path, seed: int = 0) -> Path:
    """Write a checkpoint of `family` into the folder `out`, made if missing; the same seed gives the same weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    from llava_core.checkpoints.tiny_config import config_fields, processor_files
    from llava_core.checkpoints.tiny_tokenizer import STYLES, build_tokenizer, speakable_ids

    if family not in FAMILIES:
        raise ValueError(f"no tiny checkpoint of family {family!r}; there are: {', '.join(FAMILIES)}")
    tokenizer = build_tokenizer(STYLES[family])
    fields = config_fields(family, tokenizer)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    auto = AutoModelForCausalLM if family in ("llama", "qwen2") else AutoModelForImageTextToText
    eos: Any = tokenizer.convert_tokens_to_ids(STYLES[family].eos)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float32)
        _make_readable(model, speakable_ids(tokenizer), eos)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    out.mkdir(parents=True, exist_ok=True)
    with _without_progress_bars():
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for name, content in processor_files(family).items():
        _write_json(out / name, content)
    # transformers keeps keys it does not know, so the note survives a later save.
    saved: dict[str, Any] = json.loads((out / "config.json").read_text())
    _write_json(out / "config.json", {**saved, NOTE_KEY: NOTE})
    return out


def _make_readable(model: PreTrainedModel, speakable: list[int], eos: int) -> None:
    """Let only words win, the end of the answer now and then, and what was read before matter.

    The first coordinate of a text token's hidden state is kept at a constant that no layer reads or writes, so its
    column of the output matrix works as the bias that language models do not have. The factors were found by
    trying: without them a random model says one word for ever, whatever it is shown.
    """
    import torch

    decoder: Any = model.get_decoder()
    with torch.no_grad():
        embedding: Any = model.get_input_embeddings().weight
        embedding *= 2
        embedding[:, 0] = 0.64
        for layer in decoder.layers:
            attention, mlp = layer.self_attn, layer.mlp
            attention.q_proj.weight *= 3
            attention.k_proj.weight *= 3
            attention.o_proj.weight *= 6
            for reads in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                reads.weight[:, 0] = 0
            for writes in (attention.o_proj, mlp.down_proj):
                writes.weight[0] = 0
        output: Any = model.get_output_embeddings()
        output.weight[:, 0] = -100
        output.weight[speakable, 0] = 0
        output.weight[eos, 0] = 0.2


@contextmanager
def _without_progress_bars() -> Generator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a tiny random checkpoint.")
    parser.add_argument("out", type=Path, help="folder to write, made if missing")
    parser.add_argument("--family", choices=FAMILIES, default="llava")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    path = build_tiny(args.family, args.out, args.seed)
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"{path}: tiny random {args.family}, {size / 1e6:.1f} MB; the answers are noise")


if __name__ == "__main__":
    main()
