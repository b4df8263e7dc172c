"""The Inspect tab, "what the model sees": tiles, prompt, the answer's probabilities, and where it looked."""

from __future__ import annotations

from typing import Any

import gradio as gr

from llava_core.errors import LlavaError
from serve.page.context import PageContext
from serve.tabs import Tab
from serve.tabs.parts import check_pictures, message_of, offer_of


def build(context: PageContext) -> None:
    inspections = context.inspections

    async def look(message: Any, request: gr.Request) -> dict[str, Any]:
        try:
            check_pictures(context, request, message_of(message))
            return await inspections.look(message_of(message))
        except LlavaError as error:
            return {"error": error.message}

    async def attend(message: Any, request: gr.Request) -> dict[str, Any]:
        try:
            check_pictures(context, request, message_of(message))
            return await inspections.attend(message_of(message))
        except LlavaError as error:
            return {"error": error.message}

    async def models(message: Any = None) -> dict[str, Any]:
        return await offer_of(context, message)

    # Answers come past Gradio, see `serve/page/live.py`.
    with gr.Column(elem_classes=["ls-view", "ls-view-inspect"]):
        gr.HTML(
            html_template='<div class="ls-inspect"></div>',
            js_on_load="LlavaServe.inspect(element, {props, server, upload});",
            apply_default_css=False,
            elem_classes=["ls-host", "ls-inspect-host"],
            server_functions=[models, look, attend],
            max_bytes=context.limits.max_bytes,
            examples=[
                {"file": example.file, "title": example.title, "questions": example.questions}
                for example in context.examples
            ],
        )


TAB = Tab("inspect", "Inspect", 50, build)
