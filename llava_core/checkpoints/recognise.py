"""What a checkpoint folder holds, told by its config.json and its files, never by its name. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_core.checkpoints import files
from llava_core.errors import BadCheckpoint

Kind = Literal["original", "projector", "lora", "hub", "text"]
"""`original`: full weights in the original LLaVA format; `projector` and `lora`: the same over a base language model;
`hub`: transformers' own image-text layout (llava-hf and its kin); `text`: a causal language model."""

KIND_WORDS: Mapping[Kind, str] = {
    "original": "original LLaVA format, full weights",
    "projector": "original LLaVA format, projector only, over a base language model",
    "lora": "original LLaVA format, LoRA adapter over a base language model",
    "hub": "transformers (llava-hf) format",
    "text": "text-only causal language model",
}


@dataclass(frozen=True)
class Recognised:
    """A folder and what it is. `base` is where the language model of a `projector` or `lora` is said to be."""

    folder: Path
    kind: Kind
    config: Mapping[str, Any]
    weights: tuple[Path, ...] = ()
    base: str | None = None

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type") or "")


def recognise(path: str | os.PathLike[str], *, base: str | None = None) -> Recognised:
    """Look at a folder (or Hugging Face id). `base` is `--model-base`, which outranks what the files say.

    Raises BadCheckpoint that lists what was found and what is understood.
    """
    folder = files.find_folder(path)
    names = files.list_names(folder)
    if "config.json" not in names:
        raise BadCheckpoint(_without_config(folder, names))
    config = files.read_json(folder / "config.json")
    weights = files.weight_files(folder)
    if is_original(config):
        # A path somebody typed is meant from where they stand, not from the checkpoint's folder.
        typed = Path(base).expanduser() if base else None
        return _original(folder, names, config, weights, str(typed.resolve()) if typed and typed.is_dir() else base)
    kind: Kind | None = None
    if any(isinstance(config.get(key), dict) for key in ("vision_config", "visual")):
        kind = "hub"
    elif any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in config.get("architectures") or ()):
        kind = "text"
    if kind is None:
        what = config.get("architectures") or config.get("model_type") or "no architectures"
        raise BadCheckpoint(
            f"config.json of {folder.name!r} describes {what}, neither an image-text nor a language model that is "
            f"known here; {files.found_in(folder)}. Understood is {files.UNDERSTOOD}"
        )
    if not weights:
        raise BadCheckpoint(_without_weights(folder, names))
    return Recognised(folder, kind, config, weights)


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a config is of the original LLaVA code: it names its vision tower instead of describing it."""
    return "vision_config" not in config and ("mm_vision_tower" in config or "mm_hidden_size" in config)


def _original(
    folder: Path, names: list[str], config: Mapping[str, Any], weights: tuple[Path, ...], base: str | None
) -> Recognised:
    named = config.get("_name_or_path")
    if any(name.startswith("adapter_model.") for name in names):
        if "adapter_config.json" not in names:
            raise BadCheckpoint(f"{folder.name!r} has LoRA weights but no adapter_config.json; fetch it too")
        if "non_lora_trainables.bin" not in names:
            raise BadCheckpoint(
                f"{folder.name!r} has a LoRA adapter but no non_lora_trainables.bin, which holds its projector; fetch "
                "it too"
            )
        adapter = files.read_json(folder / "adapter_config.json")
        return Recognised(folder, "lora", config, (), base or adapter.get("base_model_name_or_path") or named)
    if weights:
        return Recognised(folder, "original", config, weights)
    if "mm_projector.bin" in names:
        return Recognised(folder, "projector", config, (), base or named)
    raise BadCheckpoint(_without_weights(folder, names))


def _without_config(folder: Path, names: list[str]) -> str:
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return files.gguf_sentence(folder, gguf)
    if "adapter_config.json" in names or "mm_projector.bin" in names:
        return (
            f"{folder.name!r} has no config.json beside its adapter or projector, so nothing tells which model it "
            f"belongs to; fetch config.json too ({files.found_in(folder)})"
        )
    inner = [name for name in names if (folder / name / "config.json").is_file()]
    hint = f"; perhaps you mean {', '.join(str(folder / name) for name in inner[:3])}" if inner else ""
    return f"{folder.name!r} is no checkpoint: {files.found_in(folder)}{hint}. Understood is {files.UNDERSTOOD}"


def _without_weights(folder: Path, names: list[str]) -> str:
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return files.gguf_sentence(folder, gguf)
    return (
        f"{folder.name!r} has a config.json but no weights: {files.found_in(folder)}. Understood is {files.UNDERSTOOD}"
    )
