"""Several processes train as one does: replicas of the model, or shards of it, come to the same losses."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState
from rich.console import Console
from safetensors.torch import load_file

from llava_core.train.journal import Journal, run_folder
from llava_core.train.run import train
from llava_core.train.settings import settle
from tests.train.conftest import Parts

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 200.0
SHARDS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What accelerate's launcher says for such a configuration."""


def alone(given: dict[str, Any], out: Path) -> None:
    train(settle("finetune", None, given | {"out": str(out)}), Console(quiet=True), resume=False)


def one_of_two(rank: int, port: int, how: str, given: dict[str, Any], out: Path) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ.update(where | {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"})
    for kept in (AcceleratorState, GradientState, PartialState):
        kept._reset_state()
    if how == "shards":
        os.environ.update(SHARDS)
        begin = PartialState.__init__

        def begin_as_on_accelerators(self: Any, *words: Any, **named: Any) -> None:
            # accelerate shards on accelerators only, though torch can do it on CPUs, too.
            begin(self, *words, **named)
            if self.distributed_type == DistributedType.MULTI_CPU:
                self.distributed_type = DistributedType.MULTI_GPU

        PartialState.__init__ = begin_as_on_accelerators
    torch.set_num_threads(1)
    alone(given, out)
    torch.distributed.destroy_process_group()


def losses(out: Path) -> list[float]:
    return [entry["loss"] for entry in Journal(run_folder(out)).losses()]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["replicas", "shards"])
def test_two_processes_come_to_the_losses_of_one(how: str, parts: Parts, tmp_path: Path) -> None:
    given = {"model": str(parts.built), "data": (str(parts.squares),), "eval_data": (str(parts.held_out),)}
    given |= {"batch_size": 16, "micro_batch": 4, "max_steps": 4, "precision": "fp32", "seed": 3, "tensorboard": False}
    given |= {"projector_rate": 5e-3, "llm_rate": 3e-3, "eval_every": 4, "samples": 0, "save_every": 4}
    one, two = tmp_path / "one", tmp_path / "two"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked, they need not import torch again, which takes longer than all the rest.
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=one_of_two, args=(rank, port, how, given, two)) for rank in range(2)]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join(DEADLINE_S)
    finally:
        for process in started:
            process.kill()
    assert [process.exitcode for process in started] == [0, 0]
    alone(given | {"micro_batch": 8}, one)  # as many at once as both of them together, so that the order is the same
    assert Journal(run_folder(two)).plan()["processes"] == 2
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    held_out = [Journal(run_folder(out)).evaluations()[-1]["eval_loss"] for out in (one, two)]
    assert held_out[1] == pytest.approx(held_out[0], abs=1e-4)
    # The same weights, whole, whoever held which part of them.
    ours, theirs = (load_file(out / "model.safetensors") for out in (one, two))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].sub(theirs[name]).abs().max() < 1e-3 for name in ours)


DEEPSPEED = """\
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config: {zero_stage: 2, gradient_accumulation_steps: auto, zero3_init_flag: false}
num_machines: 1
num_processes: 1
mixed_precision: "no"
use_cpu: true
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_deepspeed_by_configuration_comes_to_the_same_losses(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "accelerate.yaml").write_text(DEEPSPEED)
    given = {"model": parts.built, "data": parts.squares, "batch-size": 16, "max-steps": 4, "precision": "fp32"}
    given |= {"projector-rate": 5e-3, "llm-rate": 3e-3, "save-every": 2}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    run = ["-m", "llava_core.train", "finetune", *words, "--no-tensorboard", "--out"]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "accelerate.yaml")]
    for before, name in ((launcher, "sharded"), ([], "plain")):
        subprocess.run(
            [sys.executable, *before, *run, str(tmp_path / name)],
            cwd=ROOT,
            env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=DEADLINE_S * 2,
        )
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    assert (
        load_file(tmp_path / "sharded" / "model.safetensors").keys()
        == load_file(tmp_path / "plain" / "model.safetensors").keys()
    )
