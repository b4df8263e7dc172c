"""Both stages from parts to a served checkpoint: the loss falls, colours are told right, and every engine agrees."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_core.checkpoints.load import load_checkpoint
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.images import to_data_url
from llava_core.train.journal import Journal, run_folder
from llava_core.train.recipes import Stage
from llava_core.train.run import train
from llava_core.train.settings import settle
from llava_core.types import ImagePart, user
from tests.engines.exactness import greedy, token_ids
from tests.topology import Topology, free_port, token_header
from tests.train.conftest import Parts
from tests.train.parts import COLOURS, QUESTION, draw

SILENT = Console(quiet=True)
FAST = {"precision": "fp32", "tensorboard": False, "save_every": 1000, "batch_size": 16}


def run(stage: Stage, model: Path, data: Path, out: Path, **given: Any) -> Path:
    chosen = {"model": str(model), "data": (str(data),), "out": str(out)}
    return train(settle(stage, None, {**FAST, **chosen, **given}), SILENT, resume=False)


@dataclass(frozen=True)
class Trained:
    aligned: Path
    tuned: Path


@pytest.fixture(scope="module")
def trained(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("runs")
    aligned = run("pretrain", parts.built, parts.squares, root / "aligned", epochs=2.0, projector_rate=5e-3)
    tuned = run(
        "finetune",
        aligned,
        parts.squares,
        root / "tuned",
        epochs=10.0,
        projector_rate=5e-3,
        llm_rate=3e-3,
        eval_data=(str(parts.held_out),),
        eval_every=60,
        answer_tokens=6,
        tensorboard=True,
    )
    return Trained(aligned, tuned)


def test_the_loss_falls_in_both_stages(trained: Trained) -> None:
    for folder, factor in ((trained.aligned, 0.95), (trained.tuned, 0.3)):
        losses = [entry["loss"] for entry in Journal(run_folder(folder)).losses()]
        assert losses[-1] < factor * losses[0]
    held_out = Journal(run_folder(trained.tuned)).evaluations()
    assert held_out[-1]["eval_loss"] < 0.3 * held_out[0]["eval_loss"]


def test_colours_of_unseen_squares_are_told_far_better_than_blind(trained: Trained) -> None:
    checkpoint = load_checkpoint(trained.tuned, device="cpu", dtype="float32")
    model: Any = checkpoint.model
    tokenizer: Any = checkpoint.tokenizer

    def colour_told(picture: Image.Image) -> str:
        prompt = checkpoint.prompt([user(ImagePart(""), QUESTION)], [picture])
        [rows] = checkpoint.encode([prompt.images[0].image])
        with torch.inference_mode():
            embedded = model.get_input_embeddings()(torch.tensor([prompt.ids]))
            start = prompt.images[0].start
            embedded[0, start : start + len(rows)] = rows
            said = model.generate(inputs_embeds=embedded, max_new_tokens=4, do_sample=False)
        return tokenizer.decode(said[0], skip_special_tokens=True).strip()

    dice = random.Random(99)
    asked = [colour for colour in COLOURS for _ in range(8)]
    right = sum(colour_told(draw(colour, dice)) == colour for colour in asked)
    blind = colour_told(Image.new("RGB", (48, 48), (128, 128, 128)))
    by_chance = sum(blind == colour for colour in asked)
    assert right >= 0.8 * len(asked)
    assert right >= 2 * max(by_chance, len(asked) // len(COLOURS))


async def test_plain_transformers_and_the_engine_answer_alike(trained: Trained) -> None:
    """From the same folder: transformers' own processor and generate, and the engine that the worker runs."""
    processor: Any = AutoProcessor.from_pretrained(trained.tuned)
    model: Any = AutoModelForImageTextToText.from_pretrained(trained.tuned, dtype=torch.float32)
    checkpoint = load_checkpoint(trained.tuned, device="cpu", dtype="float32")
    never = sorted({*checkpoint.facts.eos_ids, *checkpoint.facts.forbidden_ids})  # so that all six are compared
    engine = TransformersEngine(checkpoint)
    try:
        for seed, colour in enumerate(COLOURS):
            picture = draw(colour, random.Random(seed))
            turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
            text = processor.apply_chat_template(turns, add_generation_prompt=True)
            inputs = processor(images=picture, text=text, return_tensors="pt")
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=never)
            expected = out[0, inputs["input_ids"].shape[1] :].tolist()
            asked = user(ImagePart(as_url(picture)), QUESTION)
            assert await token_ids(engine, greedy(asked, tokens=6)) == expected
    finally:
        await engine.aclose()


VLLM = "LLAVA_SERVE_VLLM"
"""Names the Python of an environment in which vLLM is installed; it cannot share ours."""


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get(VLLM), reason=f"{VLLM} names no Python with vLLM")
def test_vllm_and_plain_transformers_answer_alike(trained: Trained, tmp_path: Path) -> None:
    """The same greedy ids for the same pictures, and for a question without one."""
    processor: Any = AutoProcessor.from_pretrained(trained.tuned)
    model: Any = AutoModelForImageTextToText.from_pretrained(trained.tuned, dtype=torch.float32)
    never = json.loads((trained.tuned / "generation_config.json").read_text())["suppress_tokens"]
    pictures = [draw(colour, random.Random(seed)) for seed, colour in enumerate(COLOURS)]
    with vllm_server(trained.tuned, tmp_path / "vllm.log") as url:
        for picture in (*pictures, None):
            shown = [] if picture is None else [picture]
            turns = [
                {"role": "user", "content": [*({"type": "image"} for _ in shown), {"type": "text", "text": QUESTION}]}
            ]
            text = processor.apply_chat_template(turns, add_generation_prompt=True)
            inputs = processor(images=shown or None, text=text, return_tensors="pt")
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)
            asked = [{"type": "image_url", "image_url": {"url": as_url(each)}} for each in shown]
            body = {
                "model": "trained",
                "messages": [{"role": "user", "content": [*asked, {"type": "text", "text": QUESTION}]}],
                "temperature": 0,
                "max_tokens": 8,
                "ignore_eos": True,
                "return_token_ids": True,
                "logit_bias": {str(token): -100 for token in never},
            }
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).raise_for_status().json()
            assert len(answer["prompt_token_ids"]) == inputs["input_ids"].shape[1]
            assert answer["choices"][0]["token_ids"] == out[0, inputs["input_ids"].shape[1] :].tolist()


@contextmanager
def vllm_server(folder: Path, log: Path) -> Iterator[str]:
    """vLLM on the CPU with this model; its address."""
    port = free_port()
    words = ("--model", str(folder), "--served-model-name", "trained", "--host", "127.0.0.1", "--port", str(port))
    settings = ("--dtype", "float32", "--max-model-len", "512", "--enforce-eager")
    with log.open("wb") as told:
        server = subprocess.Popen(
            [os.environ[VLLM], "-m", "vllm.entrypoints.openai.api_server", *words, *settings],
            stdout=told,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        )
        try:
            deadline = time.monotonic() + 300
            while not is_up(f"http://127.0.0.1:{port}/health"):
                assert server.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def is_up(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url, timeout=5).status_code == 200
    return False


def as_url(picture: Image.Image) -> str:
    shown = io.BytesIO()
    picture.save(shown, "PNG")
    return to_data_url(shown.getvalue())


def test_a_worker_serves_the_finished_folder(trained: Trained, topology: Topology) -> None:
    topology.controller()
    worker = topology.worker("tuned", model_path=trained.tuned, extra=["--device", "cpu", "--dtype", "float32"])
    content = [
        {"type": "image_url", "image_url": {"url": as_url(draw("red", random.Random(5)))}},
        {"type": "text", "text": QUESTION},
    ]
    body = {"model": "tuned", "temperature": 0, "max_tokens": 6, "messages": [{"role": "user", "content": content}]}
    answer = httpx.post(f"{worker.url}/v1/chat/completions", json=body, headers=token_header(), timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == "red"
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_finished_run_leaves_a_plot_a_card_and_event_files(trained: Trained) -> None:
    card = (trained.tuned / "README.md").read_text()
    for promised in ("projector", "language model", "squares.json", "loss.png", "./launch.sh --model", QUESTION):
        assert promised in card
    with Image.open(trained.tuned / "loss.png") as plot:
        assert min(plot.size) > 300
    assert list((trained.tuned / "run" / "tensorboard").glob("events.*"))
    assert "stage 1 only" in json.loads((trained.aligned / "config.json").read_text())["llava_serve_note"]
    assert "llava_serve_note" not in json.loads((trained.tuned / "config.json").read_text())
