"""What controller and workers tell each other: which addresses and numbers are taken, and other servers' lists."""

from __future__ import annotations

import pytest

from llava_core.errors import BadRequest
from llava_core.types import ModelInfo
from serve.protocol import ModelCard, Registration, WorkerStatus, check_address, read_models, write_models

GOOD = WorkerStatus(("m",))


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:21002",
        "http://127.0.0.1:21002",
        "https://worker-3.example.org",
        "http://10.0.0.7:80",
        "http://[::1]:21002",
        "http://gpu1",
    ],
)
def test_addresses_of_workers_are_taken(address: str):
    check_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost:21002",
        "ftp://localhost",
        "file:///etc/passwd",
        "gopher://localhost:70",
        "http://",
        "http://:80",
        "http://localhost:99999",
        "http://localhost:0",
        "http://localhost:port",
        "http://user:secret@localhost",
        "http://localhost@evil.example",
        "http://localhost/",
        "http://localhost/v1",
        "http://localhost?x=1",
        "http://localhost#x",
        "http://local host",
        "http://localhost\r\nX: y",
        "http://localhost\\@evil",
        "http://lоcalhost",
        "http://169.254.169.254",
        "http://[fe80::1]",
        "http://[::ffff:169.254.169.254]",
        "http://0.0.0.0:80",
        "http://[::]:80",
        "http://224.0.0.1",
        "http://2852039166",
        "http://0xa9fea9fe",
        "http://169.254.43518",
        "http://127.1",
        "http://[",
        "http://" + "a" * 600,
    ],
)
def test_what_is_no_address_of_a_worker_is_refused(address: str):
    with pytest.raises(BadRequest):
        check_address(address)
    with pytest.raises(BadRequest):
        Registration(address, GOOD)


@pytest.mark.parametrize(
    "wrong",
    [
        {"speed": 0.0},
        {"speed": -1.0},
        {"speed": float("nan")},
        {"speed": float("inf")},
        {"queue_length": -999},
        {"queue_length": 10**9},
        {"capacity": 0},
        {"model_names": ()},
        {"model_names": ("",)},
        {"model_names": ("m",) * 65},
        {"model_names": ("m" * 600,)},
        {"model_names": ("m\n",)},
        {"model_names": ("\ud800",)},
        {"models": (ModelInfo("m", "echo", 1, note="\ud800"),)},
        {"models": (ModelInfo("other", "echo", 1),)},
    ],
)
def test_a_status_that_would_upset_the_dispatch_cannot_be_built(wrong: dict[str, object]):
    with pytest.raises(BadRequest):
        WorkerStatus(**{"model_names": ("m",), **wrong})  # type: ignore[arg-type]


def test_a_list_of_models_survives_the_wire():
    cards = (ModelCard(ModelInfo("a", "echo", 5, note="wiring only"), 2), ModelCard(ModelInfo("b", "echo", 6), 1))
    assert read_models(write_models(cards, created=1)) == cards


def test_another_servers_models_are_shown_by_name():
    body = {"object": "list", "data": [{"id": "z", "max_model_len": 8192}, {"id": "a", "info": "?", "object": "model"}]}
    assert [(card.info.name, card.info.context_length) for card in read_models(body)] == [("a", 0), ("z", 8192)]
    with pytest.raises(ValueError, match="validation error"):
        read_models({"models": []})
