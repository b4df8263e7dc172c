"""What a model takes: bytes on disk, bytes of its weights in memory, and all that a process has taken with it.

python -m llava_core.eval.footprint FOLDER nf4
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from llava_core.run_command import run_command

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "bf16": {"dtype": "bfloat16", "quantize": None},
    "nf4": {"dtype": "bfloat16", "quantize": "nf4"},
}
_MEASURE_S = 600.0


@dataclass(frozen=True)
class Footprint:
    """In bytes. `weights` and `process` (all of it, Python and torch included, after an answer about a picture) by
    precision."""

    disk: int
    weights: Mapping[str, int]
    process: Mapping[str, int]


def footprint(folder: Path) -> Footprint:
    """Load the checkpoint on the CPU once per precision, each time in a process of its own. RuntimeError where that
    fails."""
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    weights: dict[str, int] = {}
    process: dict[str, int] = {}
    for precision in PRECISIONS:
        command = [sys.executable, "-m", "llava_core.eval.footprint", str(folder), precision]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_MEASURE_S)
        if ran.returncode != 0:
            raise RuntimeError(f"{folder.name} could not be loaded in {precision}: {ran.stderr.strip()[-500:]}")
        weights[precision], process[precision] = json.loads(ran.stdout.splitlines()[-1])
    return Footprint(disk, weights, process)


def _measure(folder: Path, precision: str) -> tuple[int, int]:
    """Bytes of the weights, and of this process when it has answered."""
    import psutil
    import torch
    from PIL import Image

    from llava_core.checkpoints.load import load_checkpoint
    from llava_core.types import ImagePart, user

    checkpoint = load_checkpoint(folder, device="cpu", **PRECISIONS[precision])
    model: Any = checkpoint.model
    prompt = checkpoint.prompt([user(ImagePart(""), "What is this?")], [Image.new("RGB", (288, 288), "gray")])
    [rows] = checkpoint.encode([prompt.images[0].image])
    with torch.inference_mode():
        embedded = model.get_input_embeddings()(torch.tensor([prompt.ids]))
        start = prompt.images[0].start
        embedded[0, start : start + len(rows)] = rows
        model.generate(inputs_embeds=embedded, max_new_tokens=16, do_sample=False)
    # Packed 4-bit weights keep their scales beside them.
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            for tensor in (getattr(each, "absmax", None), getattr(each, "code", None)):
                if isinstance(tensor, torch.Tensor):
                    held[tensor.data_ptr()] = tensor.nbytes
    return sum(held.values()), int(psutil.Process().memory_info().rss)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="A checkpoint.")],
    precision: Annotated[str, typer.Argument(help="bf16 or nf4.")],
) -> None:
    """Load a checkpoint, answer about a picture, and print two numbers: bytes of its weights, and of the process."""
    if precision not in PRECISIONS:
        raise typer.BadParameter(f"{precision!r} is none of {', '.join(PRECISIONS)}", param_hint="PRECISION")
    print(json.dumps(_measure(folder, precision)))


if __name__ == "__main__":
    run_command(app)
