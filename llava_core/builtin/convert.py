"""Turns the parts, as packages carry them, into what transformers loads: a Llama checkpoint, a tower's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_BN_EPSILON = 1e-3


def convert_language_model(gguf: Path, folder: Path) -> None:
    """A GGUF file as a plain bfloat16 Llama checkpoint with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    quantised: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    old = quantised.config
    config = LlamaConfig(
        **{
            key: getattr(old, key)
            for key in [
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "max_position_embeddings",
                "rms_norm_eps",
                "bos_token_id",
                "eos_token_id",
                "tie_word_embeddings",
                "head_dim",
            ]
        },
        rope_parameters=old.rope_parameters,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict(), strict=True)
    # A GGUF model refuses to be saved; this one does not know that it was one.
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def convert_trunk(checkpoint: Path) -> dict[str, torch.Tensor]:
    """EfficientNet-Lite2's weights under the tower's names, batch norms folded into the convolutions before them."""
    state: dict[str, torch.Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    found: dict[str, torch.Tensor] = {}

    def fold(conv: str, norm: str, name: str) -> None:
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _BN_EPSILON).sqrt()
        found[f"trunk.{name}.conv.weight"] = state[f"{conv}.weight"] * scale[:, None, None, None]
        found[f"trunk.{name}.conv.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale

    fold("_conv_stem", "_bn0", "stem")
    for index in sorted({int(key.split(".")[1]) for key in state if key.startswith("_blocks.")}):
        block = f"_blocks.{index}"
        if f"{block}._expand_conv.weight" in state:
            fold(f"{block}._expand_conv", f"{block}._bn0", f"blocks.{index}.expand")
        fold(f"{block}._depthwise_conv", f"{block}._bn1", f"blocks.{index}.depthwise")
        fold(f"{block}._project_conv", f"{block}._bn2", f"blocks.{index}.project")
    fold("_conv_head", "_bn1", "head")
    found["classes.weight"] = state["_fc.weight"][:, :, None, None]
    found["classes.bias"] = state["_fc.bias"]
    return found
