"""Answers outside a chat: whose caches they may use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr
from starlette.requests import Request

from serve.quotas import Quotas
from serve.tabs.parts import owner_of

CONTEXT: Any = SimpleNamespace(quotas=Quotas())


def asked_by(address: str, name: str | None = None) -> str:
    scope = {"type": "http", "client": (address, 5), "headers": [], "method": "POST", "path": "/", "query_string": b""}
    return owner_of(CONTEXT, gr.Request(request=Request(scope), username=name))


def test_two_addresses_and_two_names_share_nothing_and_one_shares_with_itself() -> None:
    assert asked_by("10.0.0.1") == asked_by("10.0.0.1")
    assert asked_by("10.0.0.1") != asked_by("10.0.0.2")
    assert asked_by("10.0.0.1", "ann") == asked_by("10.0.0.2", "ann") != asked_by("10.0.0.1", "bob")
    assert asked_by("10.0.0.1")
