"""The names that weights have on disk, as in the hub's llava-hf repositories; transformers and vLLM expect these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

_NAMES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
)
# Towers whose weights are one level deeper on disk than in memory.
_DEEPER = ("clip_vision_model", "siglip_vision_model")


def disk_name(name: str, tower: str) -> str:
    """The name on disk of a weight of the model in memory; `tower` is its tower's model type."""
    found = next((theirs + name.removeprefix(ours) for ours, theirs in _NAMES if name.startswith(ours)), name)
    if tower in _DEEPER and found.startswith("vision_tower.") and not found.startswith("vision_tower.vision_model."):
        return found.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return found


def candidates(name: str, tower: str) -> tuple[str, ...]:
    """Names on disk under which checkpoints of different ages keep a weight, the likeliest first."""
    plain = name.removeprefix("model.")
    return (disk_name(name, tower), disk_name(name, ""), name, plain)


def write_weights(tensors: Mapping[str, torch.Tensor], out: Path) -> None:
    """Safetensors, in several files where they are large."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(dict(tensors), out)
    mode = (out / "config.json").stat().st_mode
    for file in _written(out):  # written for the owner alone
        file.chmod(mode)


def _written(out: Path) -> Iterable[Path]:
    return out.glob("*.safetensors")
