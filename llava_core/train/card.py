"""Writes a model's card from its run: what it is made of, what learned from what, how it went, how to use it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llava_core.checkpoints.deep_projector import LOADS_ONLY_HERE, layers_of
from llava_core.train.journal import Journal

_STAGES = {
    "pretrain": "Feature alignment (stage 1)",
    "finetune": "Visual instruction tuning (stage 2)",
}


def write_card(journal: Journal, out: Path) -> None:
    """`README.md` in the checkpoint's folder."""
    plan = journal.plan()
    (out / "README.md").write_text("\n".join(_lines(journal, plan, out)) + "\n", "utf-8")


def _lines(journal: Journal, plan: Mapping[str, Any], out: Path) -> Iterator[str]:
    name = out.name
    yield from ("---", "library_name: transformers", "pipeline_tag: image-text-to-text", "tags: [llava]", "---", "")
    yield from (f"# {name}", "")
    config = json.loads((out / "config.json").read_text("utf-8"))
    tower, text = config["vision_config"]["model_type"], config["text_config"]["model_type"]
    yield f"A LLaVA: a {tower} vision tower, a projector and a {text} language model, in llava-hf format."
    if note := config.get("llava_serve_note"):
        yield f"**{note[0].upper()}{note[1:]}.**"
    act = str(config.get("projector_hidden_act"))
    if (layers := layers_of(act) or 0) > 2:
        yield f"The projector is `{act}`, {layers} layers. {LOADS_ONLY_HERE}."
    yield ""
    yield from ("## Use", "", "```bash", f"./launch.sh --model {out}", "```", "")
    yield from (f"## {_STAGES[plan['stage']]}", "")
    yield f"From `{Path(plan['base']).name}`. What learned:"
    yield from ("", "| part | weights | rate |", "|---|---|---|")
    for part, count in plan["learns"].items():
        yield f"| {part} | {count:,} | {plan['rates'].get(part, 0):g} |"
    yield ""
    yield from _training(plan)
    yield from _figures(journal, plan, out)
    yield from _answers(journal)
    yield from ("## Made with", "")
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "accelerate", "peft"))
    yield f"{packages}. The run's settings are in `run/settings.toml`, its figures in `run/log.jsonl`."


def _training(plan: Mapping[str, Any]) -> Iterator[str]:
    settings = plan["settings"]
    skipped = f" ({plan['left_out']:,} wrong ones left out)" if plan["left_out"] else ""
    yield f"- {plan['samples']:,} samples{skipped} with {plan['pictures']:,} pictures; {plan['tokens']:,} tokens, of "
    yield f"  which {plan['learned_tokens']:,} were learned; {plan['held_out']:,} samples held out"
    for source in plan["sources"]:
        digest = f", sha256 `{source['sha256'][:16]}…`" if source["sha256"] else ""
        yield f"- `{Path(source['name']).name}`{digest}"
    yield (
        f"- {plan['steps']:,} steps of {settings['batch_size']} samples, {settings['schedule']} schedule, warm-up "
        f"{settings['warmup']:g}, seed {settings['seed']}"
    )
    if settings["lora"]:
        bits = ", the language model in 4 bits meanwhile" if settings["four_bit"] else ""
        yield f"- LoRA of rank {settings['lora_rank']}, alpha {settings['lora_alpha']}, merged{bits}"
    again = f", taken up again at step {', '.join(map(str, plan['resumed']))}" if plan["resumed"] else ""
    day = time.strftime("%Y-%m-%d", time.gmtime(plan["began"]))
    yield (
        f"- {plan['seconds'] / 60:.1f} minutes in {plan['precision']} on {plan['processes']} x {plan['device']}, {day}"
        f"{again}"
    )
    yield ""


def _figures(journal: Journal, plan: Mapping[str, Any], out: Path) -> Iterator[str]:
    losses, held_out = journal.losses(), journal.evaluations()
    if not losses:
        return
    tail = [entry["loss"] for entry in losses[-max(1, len(losses) // 20) :]]
    yield f"Training loss {losses[0]['loss']:.3f} at first, {sum(tail) / len(tail):.3f} at the end."
    if held_out:
        line = f"Held-out loss {held_out[0]['eval_loss']:.3f} before, {held_out[-1]['eval_loss']:.3f} after."
        yield line
    if (out / "loss.png").is_file():
        yield from ("", "![Loss and rates](loss.png)")
    yield ""


def _answers(journal: Journal) -> Iterator[str]:
    samples = journal.samples()
    if not samples:
        return
    last = max(sample["step"] for sample in samples)
    yield from ("## Some held-out questions", "", "| question | the data says | it answers |", "|---|---|---|")
    for sample in samples:
        if sample["step"] == last:
            yield f"| {_cell(sample['question'])} | {_cell(sample['truth'])} | {_cell(sample['answer'])} |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
