"""The Compare tab: the same question to two, three or four models at once, each answering at its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

from llava_core.config import CompareLimits
from llava_core.errors import LlavaError
from serve.page.context import PageContext
from serve.page.differences import differing, read_answers, read_base
from serve.tabs import Tab
from serve.tabs.parts import composer, message_of, pane

SIDES = ("a", "b", "c", "d")
"""All columns there can be; the page shows those that a person opened."""


def build(context: PageContext) -> None:
    with gr.Column(elem_classes=["ls-view", "ls-view-compare"]):
        with gr.Row(elem_classes=["ls-columns"]):
            for side in SIDES[: CompareLimits().columns]:
                pane(context, "compare", side, script="comparePane")
        _verdict(context)
        composer(context, "compare", more=context.open_votes.promise)


def _verdict(context: PageContext) -> gr.HTML:
    """Where people say which answer is best; the differences between answers come by it too."""
    votes = context.open_votes

    async def vote(message: Any) -> dict[str, Any]:
        return await _answered(votes.vote, message_of(message))

    async def standing(message: Any) -> dict[str, Any]:
        return await _answered(votes.standing, message_of(message))

    async def differences(message: Any) -> dict[str, Any]:
        async def find(asked: dict[str, Any]) -> dict[str, Any]:
            turns = read_answers(asked.get("turns"))
            base = read_base(asked.get("base", 0), turns)
            async with asyncio.timeout(CompareLimits().compare_s):
                return {"turns": await asyncio.to_thread(lambda: [differing(answers, base) for answers in turns])}

        return await _answered(find, message_of(message))

    return gr.HTML(
        html_template='<div class="ls-ballot ls-ballot-open"></div>',
        js_on_load="LlavaServe.openBallot(element, {props, server});",
        apply_default_css=False,
        elem_classes=["ls-host", "ls-ballot-host"],
        server_functions=[vote, standing, differences],
    )


async def _answered(
    ask: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]], message: dict[str, Any]
) -> dict[str, Any]:
    try:
        return await ask(message)
    except LlavaError as error:
        return {"error": error.message}
    except TimeoutError:
        return {"error": "these answers take too long to compare"}


TAB = Tab("compare", "Compare", 20, build)
