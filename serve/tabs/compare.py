"""The Compare tab: the same question to two models at once, each answering at its own pace."""

from __future__ import annotations

import gradio as gr

from serve.page.context import PageContext
from serve.tabs import Tab
from serve.tabs.parts import composer, pane


def build(context: PageContext) -> None:
    with gr.Column(elem_classes=["ls-view", "ls-view-compare"]):
        with gr.Row(elem_classes=["ls-columns"]):
            pane(context, "compare", "left")
            pane(context, "compare", "right")
        composer(context, "compare")


TAB = Tab("compare", "Compare", 20, build)
