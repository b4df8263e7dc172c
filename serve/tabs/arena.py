"""The Arena tab: one question to two models that nobody names, a vote, and only then who they were."""

from __future__ import annotations

from typing import Any

import gradio as gr

from llava_core.errors import LlavaError
from serve.page.context import PageContext
from serve.tabs import Tab
from serve.tabs.parts import composer, message_of, pane


def build(context: PageContext) -> None:
    with gr.Column(elem_classes=["ls-view", "ls-view-arena"]):
        with gr.Row(elem_classes=["ls-columns"]):
            # Conversations with models that have no names yet.
            pane(context, "arena", "left", behind=context.arena, script="arenaPane")
            pane(context, "arena", "right", behind=context.arena, script="arenaPane")
        _ballot(context)
        composer(context, "arena", kept=context.arena.promise)


def _ballot(context: PageContext) -> gr.HTML:
    """Where people vote, and where the names are told."""
    arena = context.arena

    async def vote(message: Any) -> dict[str, Any]:
        try:
            return {**await arena.vote(message_of(message)), "trouble": arena.ledger.trouble}
        except LlavaError as error:
            return {"error": error.message}

    return gr.HTML(
        html_template='<div class="ls-ballot"></div>',
        js_on_load="LlavaServe.ballot(element, {props, server});",
        apply_default_css=False,
        elem_classes=["ls-host", "ls-ballot-host"],
        server_functions=[vote],
        promise=arena.promise,
        recording=arena.recording,
    )


TAB = Tab("arena", "Arena", 30, build)
