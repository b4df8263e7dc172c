"""Packs what a run learned into the files that are shipped: projector and adapters, nothing of the parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_core.builtin.parts import Say

if TYPE_CHECKING:
    import torch

_SIDES = {".lora_A": 0, ".lora_B": 1}
"""Along which dimension the ranks of an adapter's halves lie."""


RANK = 46
"""Of the adapters that are shipped: what fits into the file."""


def pack(runs: Sequence[Path], out: Path, say: Say) -> Path:
    """Write the last states of one stage's runs, each begun where the one before ended, as one file of half-precision
    weights that `assemble` reads. Adapters of several runs become one: their products add up, and the `RANK` strongest
    directions of the sum are kept."""
    import torch
    from safetensors.torch import save_file

    from llava_core.errors import BadCheckpoint
    from llava_core.train.export import last_state, load_learned

    scales = {_scale(run) for run in runs}
    if len(scales) > 1:
        raise BadCheckpoint(f"adapters of runs that scale them differently ({sorted(scales)}) cannot become one")
    whole: dict[str, torch.Tensor] = {}
    for run in runs:
        state = last_state(run / "run")
        if state is None:
            raise BadCheckpoint(f"{str(run)!r} holds no whole state of a run")
        for name, tensor in load_learned(state).items():
            earlier = whole.get(name)
            side = next((dim for mark, dim in _SIDES.items() if mark in name), None)
            whole[name] = tensor if earlier is None or side is None else torch.cat((earlier, tensor), dim=side)
    lost = _shorten(whole)
    halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in whole.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, out, metadata={"scale": str(scales.pop())})
    out.chmod(0o644)
    names = ", ".join(run.name for run in runs)
    say(f"{out.name}: {sum(tensor.numel() for tensor in halves.values()) / 1e6:.1f} million weights of {names}{lost}")
    return out


def _shorten(whole: dict[str, torch.Tensor]) -> str:
    """Cut adapters of more than `RANK` ranks down to it, in place. Says how much of them went, if any did."""
    import torch

    kept = before = 0.0
    for name in [name for name in whole if ".lora_A" in name]:
        other = name.replace(".lora_A", ".lora_B")
        down, up = whole[name].float(), whole[other].float()
        if len(down) <= RANK:
            continue
        # Their product is never formed: of two thin matrices, only what is left after making each orthogonal is cut.
        up_side, up_rest = torch.linalg.qr(up)
        down_side, down_rest = torch.linalg.qr(down.T)
        left, strength, right = torch.linalg.svd(up_rest @ down_rest.T)
        root = strength[:RANK].sqrt()
        whole[other] = up_side @ left[:, :RANK] * root
        whole[name] = (down_side @ right[:RANK].T * root).T
        kept += float(strength[:RANK].square().sum())
        before += float(strength.square().sum())
    return f", {100 * kept / before:.1f} % of their adapters' energy kept" if before else ""


def _scale(run: Path) -> float:
    """What products of adapters are scaled by, as the run's settings say."""
    import tomllib

    settings = tomllib.loads((run / "run" / "settings.toml").read_text("utf-8"))
    return float(settings["lora-alpha"]) / float(settings["lora-rank"]) if settings.get("lora") else 1.0
