"""Tensors of a checkpoint by name, memory-mapped where the file allows; nothing in a file is ever executed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from llava_core.checkpoints.files import check_whole
from llava_core.errors import BadCheckpoint


def read_tensors(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """All tensors of some `.safetensors` and `.bin` files, on the CPU. BadCheckpoint for a damaged file."""
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        check_whole(file)
        tensors |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    return tensors


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except Exception as cause:
        raise BadCheckpoint(f"{file.name} of {file.parent.name!r} is damaged ({cause}); fetch it again") from cause


def _read_pickle(file: Path) -> dict[str, torch.Tensor]:
    """weights_only: a pickle that holds anything but tensors and plain containers is refused, not run."""
    try:
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of torch before 1.6 cannot be mapped
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as cause:
        raise BadCheckpoint(
            f"{file.name} of {file.parent.name!r} is damaged or holds more than tensors "
            f"({type(cause).__name__}: {str(cause).splitlines()[0]}); fetch it again, in safetensors if there is one"
        ) from cause
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise BadCheckpoint(f"{file.name} of {file.parent.name!r} is not a mapping of names to tensors")
    return {str(name): tensor for name, tensor in content.items()}


def check_complete(
    given: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Size],
    *,
    what: str,
    in_files: Callable[[str], str],
) -> None:
    """BadCheckpoint that names each weight missing, left over or of another shape; `in_files` is the name of a
    weight as the files have it, for the message."""

    def names(found: Iterable[str]) -> str:
        listed = [in_files(name) for name in sorted(found)]
        return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")

    problems: list[str] = []
    if missing := wanted.keys() - given.keys():
        problems.append(f"lacks {names(missing)}")
    if left_over := given.keys() - wanted.keys():
        problems.append(f"has weights that belong nowhere: {names(left_over)}")
    misshapen = {name for name in wanted.keys() & given.keys() if wanted[name] != given[name].shape}
    if misshapen:
        first = min(misshapen)
        problems.append(
            f"has weights whose shape its config.json does not allow: {names(misshapen)} "
            f"({in_files(first)} is {tuple(given[first].shape)}, config.json wants {tuple(wanted[first])})"
        )
    if problems:
        raise BadCheckpoint(f"{what} {'; it '.join(problems)}")
