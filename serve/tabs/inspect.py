"""The Inspect tab, "what the model sees": tiles, prompt, the answer's probabilities, and where it looked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import gradio as gr

from llava_core.errors import LlavaError
from serve.page.context import PageContext
from serve.tabs import Tab
from serve.tabs.parts import message_of, offer_of, place


def build(context: PageContext) -> None:
    inspections = context.inspections

    async def look(message: Any) -> dict[str, Any]:
        try:
            return await inspections.look(message_of(message))
        except LlavaError as error:
            return {"error": error.message}

    async def attend(message: Any) -> dict[str, Any]:
        try:
            return await inspections.attend(message_of(message))
        except LlavaError as error:
            return {"error": error.message}

    async def models(_: Any = None) -> dict[str, Any]:
        return await offer_of(context)

    # Not called `ask`: under that name scripts find an endpoint.
    async def answer(event: gr.EventData, request: gr.Request) -> AsyncIterator[dict[str, Any]]:
        message = cast("dict[str, Any]", event._data)
        try:
            async with place(context, request):
                async for shown in inspections.ask(message):
                    yield shown
        except LlavaError as error:
            yield inspections.refused(message, error)

    with gr.Column(elem_classes=["ls-view", "ls-view-inspect"]):
        made = gr.HTML(
            html_template='<div class="ls-inspect"></div>',
            # Gradio takes the quoted words in here for the events that may be listened to.
            js_on_load="LlavaServe.inspect(element, {trigger, props, server, watch, upload}); /* fires 'ask' */",
            apply_default_css=False,
            elem_classes=["ls-host", "ls-inspect-host"],
            server_functions=[models, look, attend],
            max_bytes=context.limits.max_bytes,
            examples=[
                {"file": example.file, "title": example.title, "questions": example.questions}
                for example in context.examples
            ],
        )
        made.ask(
            answer,
            outputs=made,
            concurrency_limit=context.readers_at_once,
            trigger_mode="multiple",
            show_progress="hidden",
            api_visibility="private",
        )


TAB = Tab("inspect", "Inspect", 50, build)
