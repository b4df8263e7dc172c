"""The pieces that tabs are put together from: a pane that shows a conversation, a composer to write in.

Both are `gr.HTML` with a fixed template; the scripts in `static/` draw inside it. What starts an answer comes to
Python as the event `act`, which streams it; what needs no stream goes through the `server_functions`, which do not
wait in Gradio's queue, so that Stop gets through however many answers are streaming.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import gradio as gr

from llava_core.errors import LlavaError
from serve.page.context import PageContext
from serve.page.models import Offer


def pane(context: PageContext, view: str, side: str = "only") -> gr.HTML:
    """A model picker and the conversation with the model. Panes of one `view` share its composer.

    Each has its own listener and its own limit, so that no column waits for another.
    """

    async def act(event: gr.EventData, request: gr.Request) -> AsyncIterator[dict[str, Any]]:
        try:
            async for shown in context.rooms.act(cast("dict[str, Any]", event._data), request.session_hash or ""):
                yield shown
        except LlavaError as error:
            raise gr.Error(error.message, print_exception=False) from error

    async def models(_: Any = None) -> dict[str, Any]:
        return _offer(await context.models.offer())

    async def tell(message: Any) -> dict[str, Any]:
        try:
            return await context.rooms.tell(_only(message))
        except LlavaError as error:
            return {"error": error.message}

    async def export(message: Any) -> dict[str, str]:
        try:
            return {"text": await context.rooms.export(_only(message))}
        except LlavaError as error:
            return {"error": error.message}

    made = gr.HTML(
        html_template=f'<div class="ls-pane" data-view="{view}" data-side="{side}"></div>',
        # Gradio takes the quoted words in here for the events that may be listened to.
        js_on_load="LlavaServe.pane(element, {trigger, props, server, watch}); /* fires 'act' */",
        apply_default_css=False,
        elem_classes=["ls-host", "ls-pane-host", f"ls-side-{side}"],
        server_functions=[models, tell, export],
    )
    made.act(
        act,
        outputs=made,
        concurrency_limit=context.readers_at_once,
        concurrency_id=f"{view}-{side}",
        trigger_mode="multiple",
        show_progress="hidden",
        api_visibility="private",
    )
    return made


def composer(context: PageContext, view: str) -> gr.HTML:
    """Text, pictures and settings; what is sent goes to every pane of the `view`."""
    return gr.HTML(
        html_template=f'<div class="ls-composer" data-view="{view}"></div>',
        js_on_load="LlavaServe.composer(element, {props, upload});",
        apply_default_css=False,
        elem_classes=["ls-host", "ls-composer-host"],
        max_bytes=context.limits.max_bytes,
        max_images=context.limits.max_images,
        promise=context.feedback.promise,
        examples=[
            {"file": example.file, "title": example.title, "questions": example.questions, "credit": example.credit}
            for example in context.examples
        ],
    )


def _only(message: Any) -> dict[str, Any]:
    """A server function gets its arguments as a list or, if there is one, perhaps bare."""
    first = message[0] if isinstance(message, list) and message else message
    return cast("dict[str, Any]", first) if isinstance(first, dict) else {}


def _offer(offer: Offer) -> dict[str, Any]:
    return {
        "trouble": offer.trouble,
        "models": [
            {
                "name": card.info.name,
                "note": card.info.note,
                "workers": card.workers,
                "engine": card.info.engine,
                "device": card.info.device,
                "dtype": card.info.dtype,
                "context": card.info.context_length,
                "images": card.info.accepts_images,
            }
            for card in offer.cards
        ],
    }
