"""Real processes: a controller with its gateway, echo workers, the `openai` client; and what happens when one dies."""

from __future__ import annotations

import asyncio
import base64
import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from llava_core.errors import LlavaError, WorkerLost
from llava_core.types import Chunk, ImagePart, Request, user
from serve.client import Client
from serve.credentials import make_token
from tests.topology import Server, Topology


def sdk(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=make_token(), max_retries=0, timeout=30)


def picture(width: int = 40, height: int = 30) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def until(condition: Callable[[], bool], within_s: float = 20) -> None:
    for _ in range(round(within_s / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


async def collect(url: str, request: Request, into: list[Chunk]) -> None:
    async with Client(url) as client:
        async for chunk in client.stream(request):
            into.append(chunk)


def test_the_openai_client_talks_to_gateway_and_worker(topology: Topology):
    gateway = topology.controller()
    worker = topology.worker("echo")
    with_picture: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": picture()}},
                {"type": "text", "text": "What is <image> this </s>?"},
            ],
        },
    ]
    for server in (gateway, worker):
        client = sdk(server)
        assert [model.id for model in client.models.list()] == ["echo"]
        assert client.models.retrieve("echo").id == "echo"
        whole = client.chat.completions.create(model="echo", messages=with_picture)
        text = whole.choices[0].message.content or ""
        assert "(40x30)" in text
        assert "You said: What is <image> this </s>?" in text
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        events = list(
            client.chat.completions.create(
                model="echo", messages=with_picture, stream=True, stream_options={"include_usage": True}
            )
        )
        assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == text
        assert events[-1].usage is not None
        assert events[-1].usage.completion_tokens == whole.usage.completion_tokens
        cut = client.chat.completions.create(model="echo", messages=say("hi"), max_tokens=2)
        assert cut.choices[0].finish_reason == "length"


def test_errors_reach_the_openai_client_by_their_class(topology: Topology):
    gateway = topology.controller()
    topology.worker("echo")
    client = sdk(gateway)
    with pytest.raises(openai.NotFoundError, match="running: echo"):
        client.chat.completions.create(model="gpt-5", messages=say("hi"))
    bad_image: list[Any] = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
    ]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="echo", messages=bad_image, stream=stream)
        assert caught.value.code == "BadImage"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="echo", messages=say("hi"), temperature=9)
    with pytest.raises(openai.BadRequestError) as overflow:
        client.chat.completions.create(model="echo", messages=say("word " * 9000))
    assert overflow.value.code == "ContextOverflow"
    assert client.chat.completions.create(model="echo", messages=say("hi")).choices[0].finish_reason == "stop"


def test_a_worker_alone_answers_without_a_controller(topology: Topology):
    worker = topology.worker("alone", register=False)
    answer = sdk(worker).chat.completions.create(model="alone", messages=say("hi"))
    assert "You said: hi" in (answer.choices[0].message.content or "")


def test_two_workers_with_one_model_share_the_work_and_survive_a_death(topology: Topology):
    gateway = topology.controller()
    workers = [topology.worker("echo"), topology.worker("echo")]
    client = sdk(gateway)
    listed = httpx.get(f"{topology.api_url}/v1/models", timeout=30).json()
    assert listed["data"][0]["workers"] == 2, listed
    for number in range(6):
        client.chat.completions.create(model="echo", messages=say(str(number)))
    assert all("outcome=stop" in worker.log_text() for worker in workers)
    workers[0].kill()
    # Still on the controller's list: it is the request that finds out, and goes to the other.
    for number in range(6):
        assert client.chat.completions.create(model="echo", messages=say(str(number))).choices


async def test_a_worker_killed_in_the_middle_is_a_lost_worker_at_client_and_gateway(topology: Topology):
    gateway = topology.controller()
    worker = topology.worker("echo", delay_s=0.05)
    got: list[Chunk] = []
    request = Request("echo", (user("one two three " * 50),))
    direct = asyncio.create_task(collect(gateway.url, request, got))
    started = threading.Event()

    def through_the_gateway() -> None:
        for _ in sdk(gateway).chat.completions.create(model="echo", messages=say("one two three " * 50), stream=True):
            started.set()

    relayed = asyncio.create_task(asyncio.to_thread(through_the_gateway))
    assert await asyncio.to_thread(started.wait, 20)
    await until(lambda: bool(got))
    killed = time.monotonic()
    worker.kill()
    with pytest.raises(WorkerLost):
        await direct
    with pytest.raises(openai.APIError) as caught:
        await relayed
    assert time.monotonic() - killed < 5
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["code"] == "WorkerLost"
    assert got


def test_a_restarted_controller_has_everybody_back(topology: Topology):
    first = topology.controller()
    workers = [topology.worker("a"), topology.worker("b")]
    first.kill()
    second = topology.controller(port=first.port)
    for worker in workers:
        topology.until_listed(worker)
    assert [model.id for model in sdk(second).models.list()] == ["a", "b"]
    assert sdk(second).chat.completions.create(model="b", messages=say("hi")).choices


async def test_streams_of_a_client_outlive_the_controller(topology: Topology):
    controller = topology.controller()
    topology.worker("echo", delay_s=0.02)
    got: list[Chunk] = []
    async with Client(controller.url) as client:
        stream = client.stream(Request("echo", (user("one two three " * 20),)))
        got.append(await anext(stream))
        controller.kill()
        async for chunk in stream:
            got.append(chunk)
        assert got[-1].finish_reason == "stop"
        # New requests go to the worker that was found before.
        again = [chunk async for chunk in client.stream(Request("echo", (user("hi"),)))]
        assert again[-1].finish_reason == "stop"


def test_sigterm_lets_running_answers_finish_and_takes_no_new_ones(topology: Topology):
    gateway = topology.controller()
    worker = topology.worker("echo", delay_s=0.05)
    started = threading.Barrier(5)

    def answer(number: int) -> str:
        text = ""
        for event in sdk(gateway).chat.completions.create(
            model="echo", messages=say(f"{number} one two three four five six seven eight"), stream=True
        ):
            if not text:
                started.wait(60)
            text += event.choices[0].delta.content or ""
        return text

    # Somebody who holds a connection and sends nothing must not hold up the end.
    with ThreadPoolExecutor(4) as threads, httpx.Client(trust_env=False, timeout=30) as idle:
        idle.get(f"{worker.url}/health/live")
        answers = [threads.submit(answer, number) for number in range(4)]
        started.wait(60)
        worker.signal(signal.SIGTERM)
        texts = [each.result() for each in answers]
    assert all("seven eight" in text for text in texts)
    assert worker.wait() == 0
    with pytest.raises(openai.InternalServerError) as caught:
        sdk(gateway).chat.completions.create(model="echo", messages=say("hi"))
    assert (caught.value.status_code, caught.value.code) == (503, "NoWorker")
    assert "said goodbye" in gateway.log_text()


def test_a_second_signal_ends_at_once(topology: Topology):
    worker = topology.worker("echo", delay_s=5, register=False)
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(sdk(worker).chat.completions.create, model="echo", messages=say("a b c d e"))
        while httpx.post(f"{worker.url}/worker_get_status", timeout=30).json()["queue_length"] == 0:
            time.sleep(0.02)
        worker.signal(signal.SIGTERM)
        while "stopping" not in worker.log_text():
            time.sleep(0.02)
        worker.signal(signal.SIGTERM)
        assert worker.wait(30) == 130
        with pytest.raises(openai.APIConnectionError):
            asking.result()


async def test_a_stopped_worker_is_left_for_another_and_comes_back(topology: Topology):
    gateway = topology.controller()
    hung = topology.worker("echo")
    good = topology.worker("echo")
    hung.signal(signal.SIGSTOP)
    got: list[Chunk] = []
    await asyncio.gather(*(collect(gateway.url, Request("echo", (user("hi"),)), got) for _ in range(4)))
    assert len([chunk for chunk in got if chunk.finish_reason == "stop"]) == 4
    await until(lambda: good.log_text().count("outcome=stop") == 4)
    hung.signal(signal.SIGCONT)
    await until(lambda: "outcome=left" in hung.log_text())
    assert "outcome=stop" not in hung.log_text()
    topology.until_listed(hung)


def test_what_cannot_be_loaded_or_run_ends_with_a_sentence_and_a_code(topology: Topology, tmp_path: Any):
    (tmp_path / "empty").mkdir()
    taken = topology.controller()
    attempts = [
        topology.worker("x", model_path=tmp_path / "empty", register=False, wait=False),
        topology.worker("x", register=False, wait=False, extra=("--load-4bit", "--load-8bit")),
        topology.worker("x", register=False, wait=False, port=taken.port),
        topology.worker("x", register=False, wait=False, extra=("--worker-address", "ftp://x")),
        topology.start("worker", "serve.model_worker", ("--no-register",)),
        topology.start("worker", "serve.model_worker", ("--engine", "magic")),
        topology.start("controller", "serve.controller", ("--dispatch-method", "magic")),
        topology.start("controller", "serve.controller", (), port=taken.port),
    ]
    for server in attempts:
        assert server.wait(60) == 2, server.log_text()
        assert server.log_text().strip()
        assert "Traceback" not in server.log_text()


def test_help_comes_without_torch(topology: Topology):
    for module in ("serve.controller", "serve.model_worker"):
        server = topology.start("help", module, ("--help",))
        assert server.wait(30) == 0
        assert "--host" in server.log_text()
    probe = (
        "import sys, serve.controller, serve.model_worker, serve.client; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'gradio')))"
    )
    assert subprocess.run([sys.executable, "-c", probe], timeout=60, check=False).returncode == 0


def test_errors_of_the_client_are_the_known_classes_only(topology: Topology):
    gateway = topology.controller()
    topology.worker("echo")
    wrong = Request("echo", (user(ImagePart("data:image/png;base64,AAAA"), "hi"),))
    with pytest.raises(LlavaError) as caught:
        asyncio.run(collect(gateway.url, wrong, []))
    assert caught.value.code == "BadImage"
