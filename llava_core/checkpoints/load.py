"""Load any checkpoint that is understood: the one door for engines, the command line and tests."""

from __future__ import annotations

import os
from pathlib import Path

from llava_core.checkpoints.loaded import Checkpoint
from llava_core.checkpoints.placement import Wish
from llava_core.checkpoints.precision import Quantize
from llava_core.checkpoints.recognise import Recognised, recognise


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    base: str | None = None,
    name: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantize: Quantize | None = None,
    conv_template: str | None = None,
) -> Checkpoint:
    """Load the checkpoint at a folder or Hugging Face id; slow and blocking.

    `base` is the language model a projector-only or LoRA checkpoint stands on, `conv_template` the prompt format
    that decides over all else. Raises BadCheckpoint, BadRequest or MissingDependency with a sentence to act on.
    """
    found = recognise(path, base=base)
    wish = Wish(device, dtype, quantize)
    title = name or default_name(path, found)
    if found.kind in ("hub", "text"):
        from llava_core.checkpoints.hub import load_hub

        return load_hub(found, wish, name=title, conv_template=conv_template)
    from llava_core.checkpoints.original import load_original

    return load_original(found, wish, name=title, conv_template=conv_template)


def default_name(path: str | os.PathLike[str], found: Recognised) -> str:
    """The model's name for people: its folder's, or for a step of a training run the run's and the step's."""
    given = Path(path)
    resolved = found.folder.resolve() if given.exists() else given
    return f"{resolved.parent.name}_{resolved.name}" if resolved.name.startswith("checkpoint-") else resolved.name
