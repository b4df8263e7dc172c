"""The Chat tab: one model, one conversation about as many pictures as one likes."""

from __future__ import annotations

import gradio as gr

from serve.page.context import PageContext
from serve.tabs import Tab
from serve.tabs.parts import composer, history, pane


def build(context: PageContext) -> None:
    with gr.Column(elem_classes=["ls-view", "ls-view-chat"]):
        if context.history.is_on:
            history(context)
        pane(context, "chat")
        composer(context, "chat")


TAB = Tab("chat", "Chat", 10, build)
