"""A run that is killed outright goes on from its last whole state, to the same losses as one that never was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from llava_core.errors import BadRequest
from llava_core.train.journal import Journal, run_folder
from llava_core.train.reporting import Reporter
from llava_core.train.run import train
from llava_core.train.settings import as_toml, settle
from tests.train.conftest import Parts

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 240.0


def given(parts: Parts, out: Path) -> dict[str, Any]:
    return {
        "model": str(parts.built),
        "data": (str(parts.squares),),
        "out": str(out),
        "batch_size": 16,
        "micro_batch": 8,
        "epochs": 3.0,
        "save_every": 4,
        "lora": True,
        "lora_rate": 5e-3,
        "projector_rate": 5e-3,
        "lora_rank": 4,
        "precision": "fp32",
        "seed": 7,
        "tensorboard": False,
    }


def run(parts: Parts, out: Path, *, resume: bool = False, **other: Any) -> None:
    train(settle("finetune", None, given(parts, out) | other), Console(quiet=True), resume=resume)


def test_a_killed_run_resumes_to_the_same_losses(parts: Parts, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config = tmp_path / "config.toml"
    config.write_text(as_toml(settle("finetune", None, given(parts, killed))))
    process = subprocess.Popen(
        [sys.executable, "-m", "llava_core.train", "finetune", "--config", str(config)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    _wait_for(killed / "run" / "checkpoint-8" / "trainer_state.json", process)
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE_S)
    # As if the kill had come in the midst of saving and of writing the log, too.
    torn = killed / "run" / "checkpoint-99"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": 99, ')
    with (killed / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 31, "loss": ')
    with pytest.raises(BadRequest, match="--resume"):
        run(parts, killed)
    with pytest.raises(BadRequest, match="begun with other settings of batch-size"):
        run(parts, killed, resume=True, batch_size=8)
    spent = Journal(run_folder(killed)).seconds()
    run(parts, killed, resume=True)
    run(parts, whole)
    expected, got = (_losses(folder) for folder in (whole, killed))
    assert len(expected) == 30
    assert got == expected
    plan = Journal(run_folder(killed)).plan()
    assert plan["resumed"][0] >= 8
    assert _seconds(killed, after=plan["resumed"][0])[0] > spent > 0
    assert plan["seconds"] >= _seconds(killed)[-1] == max(_seconds(killed))
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]
    with pytest.raises(BadRequest, match="finished"):
        run(parts, killed, resume=True)


def test_a_session_counts_on_from_the_seconds_of_those_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write_plan({"seconds": 3600.0})
    reporter = Reporter(journal, Console(quiet=True), None, tokens=lambda: 0, rates=dict)
    state, control = TrainerState(max_steps=20, global_step=10), TrainerControl()
    arguments = TrainingArguments(output_dir=str(tmp_path))
    reporter.on_train_begin(arguments, state, control)
    state.global_step = 11
    reporter.on_log(arguments, state, control, logs={"loss": 1.0})
    assert 3600 <= journal.seconds() == journal.losses()[0]["seconds"]
    # What is left is told by this session's own pace.
    assert journal.losses()[0]["left_s"] < 3600


def _losses(run: Path) -> list[tuple[int, float]]:
    entries: list[dict[str, Any]] = Journal(run_folder(run)).losses()
    return [(entry["step"], entry["loss"]) for entry in entries]


def _seconds(run: Path, *, after: int = 0) -> list[float]:
    return [entry["seconds"] for entry in Journal(run_folder(run)).losses() if entry["step"] > after]


def _wait_for(file: Path, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not file.is_file():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end, f"{file} did not come"
        time.sleep(0.01)
