"""Writes what was learned as a whole llava-hf checkpoint: the base's weights, replaced or with adapters merged.

Works on files alone, a weight at a time, so a large model needs no GPU and a 4-bit run merges into full precision.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llava_core.checkpoints import files
from llava_core.checkpoints.tokens import NOTE_KEY
from llava_core.checkpoints.weights import read_tensors
from llava_core.errors import BadCheckpoint, BadRequest
from llava_core.train.layout import candidates, write_weights

LEARNED = "learned.safetensors"
STAGE_ONE = "stage 1 only: its projector is aligned, but it has not learned to follow instructions"
_COPIED = (".json", ".jinja", ".model", ".txt")
_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"


def save_learned(named: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Everything that learned, by its name in the model."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}, folder / LEARNED)


def load_learned(folder: Path) -> dict[str, torch.Tensor]:
    """BadCheckpoint where the folder holds no whole state of a run."""
    try:
        return load_file(folder / LEARNED)
    except Exception as cause:
        raise BadCheckpoint(f"{str(folder)!r} holds no whole state of a run: {cause}") from cause


def export(
    base: Path, learned: Mapping[str, torch.Tensor], out: Path, *, scale: float, note: str | None = None
) -> None:
    """Write the checkpoint beside what is in `out` already. `scale` is what products of adapters are scaled by."""
    config = files.read_json(base / "config.json")
    tower = str(config.get("vision_config", {}).get("model_type", ""))
    tensors = read_tensors(files.weight_files(base))
    merged = dict(tensors)
    used: set[str] = set()
    for name, tensor in learned.items():
        if name.endswith(_B):
            continue
        if name.endswith(_A):
            stem = name.removesuffix(_A)
            place = _find(tensors, f"{stem}.weight", tower, base)
            change = learned[stem + _B].float() @ tensor.float() * scale
            merged[place] = (tensors[place].float() + change).to(tensors[place].dtype)
        else:
            place = _find(tensors, name, tower, base)
            merged[place] = tensor.to(tensors[place].dtype)
        used.add(place)
    out.mkdir(parents=True, exist_ok=True)
    _copy_rest(base, out)
    text = json.dumps(_noted(config, note), indent=2) + "\n"
    # The config comes last and at once: a folder without one is no checkpoint, so a half-written one is not served.
    unfinished = out / "config.json.unfinished"
    unfinished.write_text(text)
    (out / "config.json").unlink(missing_ok=True)
    for stale in (*out.glob("model*.safetensors"), *out.glob("*.index.json")):
        stale.unlink()
    _write(merged, out, unfinished)
    unfinished.replace(out / "config.json")


def export_adapter(base: Path, learned: Mapping[str, torch.Tensor], out: Path, settings: Mapping[str, Any]) -> None:
    """The adapters in peft's format, and the rest of what was learned beside them."""
    out.mkdir(parents=True, exist_ok=True)
    adapters = {name: tensor for name, tensor in learned.items() if ".lora_" in name}
    save_file(
        {f"base_model.model.{name.replace('.default.', '.')}": tensor for name, tensor in adapters.items()},
        out / "adapter_model.safetensors",
    )
    rest = {name: tensor for name, tensor in learned.items() if name not in adapters}
    if rest:
        save_file(rest, out / "projector.safetensors")
    modules = sorted({name.partition(".lora_")[0] for name in adapters})
    content = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": settings["lora_rank"],
        "lora_alpha": settings["lora_alpha"],
        "lora_dropout": settings["lora_dropout"],
        "bias": "none",
        "target_modules": modules,
        "inference_mode": True,
    }
    (out / "adapter_config.json").write_text(json.dumps(content, indent=2) + "\n")


def last_state(run: Path) -> Path | None:
    """The newest whole state of a run; one that was being written when the run was killed is passed over."""
    found = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((path for path in found if is_whole(path)), None)


def is_whole(state: Path) -> bool:
    """The trainer writes this file last."""
    try:
        json.loads((state / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


def _find(tensors: Mapping[str, torch.Tensor], name: str, tower: str, base: Path) -> str:
    for candidate in candidates(name, tower):
        if candidate in tensors:
            return candidate
    raise BadRequest(
        f"{name} was learned, but {base.name!r} has no weight of that name; is it the checkpoint the run began with?"
    )


def _copy_rest(base: Path, out: Path) -> None:
    """Tokenizer, processor, templates: all that is not weights."""
    left = {"config.json", *(path.name for path in files.weight_files(base))}
    for path in base.iterdir():
        if path.name in left or path.name.endswith(".index.json") or path.suffix not in _COPIED:
            continue
        shutil.copyfile(path, out / path.name)


def _noted(config: Mapping[str, Any], note: str | None) -> dict[str, Any]:
    content = {key: value for key, value in config.items() if key != NOTE_KEY}
    return content | ({NOTE_KEY: note} if note else {})


def _write(tensors: Mapping[str, torch.Tensor], out: Path, config: Path) -> None:
    holding = out / "weights.unfinished"
    shutil.rmtree(holding, ignore_errors=True)
    holding.mkdir()
    shutil.copyfile(config, holding / "config.json")
    write_weights(tensors, holding)
    for path in holding.iterdir():
        if path.name != "config.json":
            path.replace(out / path.name)
    shutil.rmtree(holding)
