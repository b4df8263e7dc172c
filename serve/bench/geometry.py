"""A random checkpoint in the shape of LLaVA-1.5, small enough to be measured on a laptop: 157 million weights.

The picture costs what it costs in LLaVA-1.5 (a CLIP tower at 336 pixels, 576 tokens), the vocabulary has 32,000 rows
and the language model 12 layers; only the widths are smaller. Names and files are those of the hub's llava-hf
repositories, so that other engines load it too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from llava_core.errors import BadRequest

Precision = Literal["float32", "bfloat16"]

NOTE = "random weights in the shape of LLaVA-1.5, for measuring: the answers are noise"
_TEXT = {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "initializer_range": 0.02,
}
_TOWER = {
    "image_size": 336,
    "patch_size": 14,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "initializer_range": 0.02,
}
_PIXELS = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
_HUB_NAMES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def build_geometry(out: Path, *, dtype: Precision = "float32", seed: int = 0) -> int:
    """Write the checkpoint into the folder `out`, which must be new or empty; returns how many weights it has.

    The same seed gives the same weights. Raises BadRequest for a folder that holds something.
    """
    import torch
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoConfig, AutoModelForImageTextToText

    from llava_core.checkpoints.tiny import NOTE_KEY
    from llava_core.checkpoints.tiny_config import config_fields, processor_files
    from llava_core.checkpoints.tiny_tokenizer import STYLES, build_tokenizer, speakable_ids

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadRequest(f"{str(out)!r} is not empty; name a new folder to write into")
    tokenizer = build_tokenizer(STYLES["llava"])
    fields = config_fields("llava", tokenizer)
    fields["image_seq_length"] = (336 // 14) ** 2
    fields["text_config"] |= _TEXT
    fields["vision_config"] |= _TOWER
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        _make_eventful(model, speakable_ids(tokenizer))
    model.to(getattr(torch, dtype))
    config.architectures = [type(model).__name__]
    config.dtype = getattr(torch, dtype)
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for name, content in processor_files("llava").items():
        _write(out / name, content | (_PIXELS if name == "preprocessor_config.json" else {}))
    _write(out / "config.json", json.loads((out / "config.json").read_text()) | {NOTE_KEY: NOTE})
    settings = model.generation_config
    settings.bos_token_id = tokenizer.bos_token_id
    settings.eos_token_id = tokenizer.eos_token_id
    settings.pad_token_id = tokenizer.pad_token_id
    settings.save_pretrained(out)
    save_torch_state_dict({_hub_name(name): tensor for name, tensor in model.state_dict().items()}, out)
    for weights in out.glob("*.safetensors"):  # written for the owner alone
        weights.chmod((out / "config.json").stat().st_mode)
    return sum(parameter.numel() for parameter in model.parameters())


def _make_eventful(model: Any, speakable: list[int]) -> None:
    """Let every token be a word that can be read, so that each is seen to arrive, and none end the answer; and let
    what comes before matter. The factors were found by trying: without them the model repeats one word for ever, and
    an engine that guesses ahead looks faster than it can be on anybody's real chat."""
    for layer in model.get_decoder().layers:
        layer.self_attn.q_proj.weight *= 4
        layer.self_attn.k_proj.weight *= 4
        layer.self_attn.o_proj.weight *= 3
        layer.mlp.down_proj.weight *= 3
    output = model.get_output_embeddings().weight
    spoken = output[speakable].clone()
    output.zero_()
    output[speakable] = spoken


def _hub_name(name: str) -> str:
    return next((theirs + name.removeprefix(ours) for ours, theirs in _HUB_NAMES if name.startswith(ours)), name)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
