"""Makes a checkpoint of any saved state of a run: adapters merged, projector in place, in llava-hf format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llava_core.errors import BadRequest
from llava_core.train.export import LEARNED, STAGE_ONE, export, is_whole, last_state, load_learned
from llava_core.train.journal import Journal, run_folder


@dataclass(frozen=True)
class Merged:
    """Where it was written, from which step and which base."""

    folder: Path
    step: int
    base: Path


def merge(run: Path, out: Path, *, step: int | None = None, base: str | None = None) -> Merged:
    """`run` is the --out of a run, finished or not; `base` where its first checkpoint lies now, if it was moved."""
    folder = run_folder(run)
    plan = Journal(folder).plan()
    if not plan:
        raise BadRequest(f"{str(run)!r} is no run: it has no plan.json; name the --out of a pretrain or finetune")
    if out.exists() and any(out.iterdir()):
        raise BadRequest(f"{str(out)!r} is not empty; name a new folder", param="--out")
    state = last_state(folder) if step is None else folder / f"checkpoint-{step}"
    if state is None or not is_whole(state) or not (state / LEARNED).is_file():
        known = ", ".join(sorted(path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*"))) or "none"
        raise BadRequest(f"{str(run)!r} has no whole state of that step; there are: {known}", param="--step")
    origin = Path(base or plan["base"]).expanduser()
    if not (origin / "config.json").is_file():
        raise BadRequest(f"the run began with {str(origin)!r}, which is not there; name it with --base", param="--base")
    settings = plan["settings"]
    trains_words = settings["lora"] or settings["llm_rate"]
    note = STAGE_ONE if plan["stage"] == "pretrain" and not trains_words else None
    scale = settings["lora_alpha"] / settings["lora_rank"]
    export(origin, load_learned(state), out, scale=scale, note=note)
    return Merged(out, int(state.name.rpartition("-")[2]), origin)
