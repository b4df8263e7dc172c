"""Runs a stage from its settings to a finished checkpoint with a plot and a card."""

from __future__ import annotations

import hashlib
import math
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from llava_core.errors import BadRequest, MissingDependency, OutOfMemory
from llava_core.train.answer import Answered
from llava_core.train.card import write_card
from llava_core.train.export import STAGE_ONE, export, export_adapter, last_state
from llava_core.train.journal import RUN, SETTINGS, Journal
from llava_core.train.learn import counts, rates
from llava_core.train.plot import write_plot
from llava_core.train.records import BadSample
from llava_core.train.reporting import Reporter
from llava_core.train.settings import Settings, as_toml, flag, options
from llava_core.train.stage import Stage, Steps, prepare
from llava_core.train.trainer import StageTrainer
from llava_core.train.words import duration

# What may change when a run is taken up again; all else must be as it was.
_FREE = ("log_every", "eval_every", "save_every", "keep", "samples", "answer_tokens", "tensorboard", "wandb", "workers")
_PARTS_OF_A_RUN = 10


def train(settings: Settings, console: Console, *, resume: bool) -> Path:
    """Train, and return the folder of the finished checkpoint. Raises LlavaError classes with a sentence."""
    settings.needs("model", "data", "out")
    if settings.wandb and find_spec("wandb") is None:
        raise MissingDependency("--wandb needs the package wandb: pip install wandb")
    out = Path(settings.out).expanduser().absolute()
    journal = Journal(out / RUN)
    state = _begin(settings, out, journal, resume=resume)
    try:
        stage = prepare(settings, console, records=journal.folder)
    except BadSample as cause:
        raise _changed(cause, "") from cause
    steps = stage.steps()
    main = stage.state.is_main_process
    quiet = console if main else Console(quiet=True)
    if main:
        journal.folder.mkdir(parents=True, exist_ok=True)
        (journal.folder / SETTINGS).write_text(as_toml(settings), "utf-8")
        _announce(stage, steps, quiet)
    try:
        stage.encode(quiet)
    except BadSample as cause:
        raise _changed(cause, "") from cause
    reporter_of: list[Reporter] = []
    trainer = _trainer(stage, steps, journal, reporter_of)
    if main:
        reporter = Reporter(
            journal,
            quiet,
            journal.folder / "tensorboard" if settings.tensorboard else None,
            tokens=lambda: trainer.tokens_seen,
            rates=lambda: trainer.rates_now,
        )
        reporter_of.append(reporter)
        trainer.add_callback(reporter)
        journal.write_plan(_plan(stage, steps, journal, resumed=state))
    began = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    except torch.OutOfMemoryError as cause:
        raise OutOfMemory(
            "the device ran out of memory; lower --micro-batch, add --checkpoint-activations, or train --lora"
        ) from cause
    except BadSample as cause:
        raise _changed(cause, ", then go on with --resume") from cause
    finally:
        for reporter in reporter_of:
            reporter.close()
    learned = trainer.learned()
    if main and learned is not None:
        seconds = time.monotonic() - began
        _finish(stage, journal, learned, out, seconds)
        quiet.print(f"trained in {duration(journal.plan()['seconds'])}; written to {out}", markup=False, soft_wrap=True)
        quiet.print(f"serve it: ./launch.sh --model {out}", markup=False, highlight=False, soft_wrap=True)
    stage.state.wait_for_everyone()
    return out


def _begin(settings: Settings, out: Path, journal: Journal, *, resume: bool) -> Path | None:
    """The state to go on from, None to begin."""
    plan = journal.plan()
    state = last_state(journal.folder)
    if not plan:
        if out.exists() and (out / "config.json").exists():
            raise BadRequest(f"{str(out)!r} holds a checkpoint already; name a new folder", param="--out")
        return None
    if not resume:
        raise BadRequest(
            f"{str(out)!r} holds a run already; add --resume to go on with it, or name a new folder", param="--out"
        )
    if plan.get("finished"):
        raise BadRequest(f"the run in {str(out)!r} is finished; name a new folder for another", param="--out")
    before, now = plan["settings"], _comparable(settings)
    changed = [flag(name) for name in now if name not in _FREE and before.get(name) != now[name]]
    if changed:
        raise BadRequest(
            f"the run in {str(out)!r} was begun with other settings of {', '.join(changed)}; give the same to go on, "
            f"or --config {journal.folder / SETTINGS}",
            param="--resume",
        )
    return state


def _changed(cause: BadSample, then: str) -> BadRequest:
    # A loader's process sends its traceback along.
    reason = str(cause).strip().rpartition(f"{BadSample.__name__}: ")[2]
    return BadRequest(f"a sample is no longer what the check found: {reason}. Put it back{then}", param="--data")


def _trainer(stage: Stage, steps: Steps, journal: Journal, reporters: list[Reporter]) -> StageTrainer:
    from transformers import TrainingArguments

    settings = stage.settings
    some = math.ceil(steps.total / _PARTS_OF_A_RUN)
    evaluates = stage.held_out is not None
    arguments = TrainingArguments(
        output_dir=str(journal.folder),
        per_device_train_batch_size=steps.micro,
        gradient_accumulation_steps=steps.rounds,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=max(rates(settings).values()),
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup * steps.total),
        max_grad_norm=settings.max_grad_norm,
        bf16=stage.precision.name == "bf16",
        fp16=stage.precision.name == "fp16",
        use_cpu=stage.device == "cpu",
        activation_checkpointing=settings.checkpoint_activations,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.checkpoint_activations else None,
        logging_steps=settings.log_every,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=settings.save_every or some,
        save_total_limit=settings.keep,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=(settings.eval_every or some) if evaluates else None,
        eval_on_start=evaluates,
        dataloader_num_workers=settings.workers,
        dataloader_persistent_workers=settings.workers > 0,
        dataloader_pin_memory=stage.device == "cuda",
        ddp_find_unused_parameters=settings.tower_rate > 0,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=["wandb"] if settings.wandb else [],
        run_name=journal.folder.parent.name,
        seed=settings.seed,
        data_seed=settings.seed,
        prediction_loss_only=True,
    )
    held_out = stage.held_out

    def evaluated(step: int, figures: Mapping[str, float], answers: Sequence[Answered]) -> None:
        for each in reporters:
            each.evaluated(step, figures, answers)

    answered = held_out.taken[: settings.samples] if held_out is not None else ()
    trainer = StageTrainer(
        settings=settings,
        order=stage.order(),
        collate=stage.collate(),
        held_out=held_out.lessons if held_out is not None else None,
        held_out_taken=held_out.taken.tolist() if held_out is not None else (),
        answered=[int(index) for index in answered],
        evaluated=evaluated,
        model=stage.model,
        args=arguments,
        train_dataset=stage.data.lessons,
        eval_dataset=held_out.lessons if held_out is not None else None,
    )
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def _announce(stage: Stage, steps: Steps, console: Console) -> None:
    settings = stage.settings
    rate = rates(settings)
    learn = ", ".join(f"{part} ({count / 1e6:.2f} M at {rate[part]:g})" for part, count in counts(stage.model).items())
    data, count = stage.data, len(stage.data.taken)
    text = f"{count:,} samples, {data.pictures:,} pictures, {data.tokens / count:.0f} tokens each"
    cut = f"{steps.total:,} steps of {settings.batch_size} samples ({steps.micro} at once)"
    for words in (
        f"learns: {learn}",
        f"data: {text}",
        f"steps: {cut}, {stage.precision.name} on {stage.device}{f' x {stage.world}' if stage.world > 1 else ''}",
    ):
        console.print(words, markup=False, highlight=False, soft_wrap=True)


def _plan(stage: Stage, steps: Steps, journal: Journal, *, resumed: Path | None) -> dict[str, Any]:
    settings, data, before = stage.settings, stage.data, journal.plan()
    return {
        "stage": settings.stage,
        "settings": _comparable(settings),
        "base": str(stage.found.folder.resolve()),
        "steps": steps.total,
        "samples": len(data.taken),
        "left_out": len(data.survey.problems),
        "pictures": data.pictures,
        "tokens": data.tokens,
        "learned_tokens": int(data.survey.taught[data.taken].sum()),
        "held_out": len(stage.held_out.taken) if stage.held_out else 0,
        "learns": counts(stage.model),
        "rates": {part: rate for part, rate in rates(settings).items() if rate},
        "precision": stage.precision.name,
        "packing": stage.packing,
        "device": torch.cuda.get_device_name() if stage.device == "cuda" else platform.processor() or "CPU",
        "processes": stage.world,
        "sources": _sources(settings),
        "began": before.get("began", time.time()),
        "resumed": [*before.get("resumed", []), *([int(resumed.name.rpartition("-")[2])] if resumed else [])],
        "finished": None,
        "seconds": max(before.get("seconds", 0), journal.seconds()),  # of earlier sessions
    }


def _sources(settings: Settings) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for name in (*settings.data, *settings.eval_data):
        path = Path(name).expanduser()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found.append({"name": name, "sha256": digest})
    return found


def _comparable(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in options():
        value = getattr(settings, name)
        found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _finish(stage: Stage, journal: Journal, learned: Mapping[str, torch.Tensor], out: Path, seconds: float) -> None:
    settings = stage.settings
    note = STAGE_ONE if settings.stage == "pretrain" and not settings.language_rate else None
    export(stage.found.folder, learned, out, scale=settings.lora_alpha / settings.lora_rank, note=note)
    if settings.lora:
        export_adapter(stage.found.folder, learned, out / "adapter", _comparable(settings))
    plan = journal.plan() | {"finished": time.time(), "seconds": journal.plan()["seconds"] + seconds}
    journal.write_plan(plan)
    write_plot(journal, out / "loss.png")
    write_card(journal, out)
    if not settings.cache:  # features of this run alone
        shutil.rmtree(journal.folder / "features", ignore_errors=True)
