"""The Status tab: which workers there are, how busy they are, and how they did in the last minutes."""

from __future__ import annotations

from typing import Any

import gradio as gr

from serve.page.context import PageContext
from serve.tabs import Tab


def build(context: PageContext) -> None:
    async def report(_: Any = None) -> dict[str, Any]:
        return await context.status.report()

    with gr.Column(elem_classes=["ls-view", "ls-view-status"]):
        gr.HTML(
            html_template='<div class="ls-status"></div>',
            js_on_load="LlavaServe.status(element, {server});",
            apply_default_css=False,
            elem_classes=["ls-host", "ls-status-host"],
            server_functions=[report],
        )


TAB = Tab("status", "Status", 60, build)
