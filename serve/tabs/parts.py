"""The pieces that tabs are put together from: a pane that shows a conversation, a composer to write in.

Both are `gr.HTML` with a fixed template; the scripts in `static/` draw inside it. What is said in a conversation goes
past Gradio, see `serve/page/live.py`; what else they ask for goes through the `server_functions`, which do not wait in
Gradio's queue.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, cast

import gradio as gr
from starlette.requests import Request as HttpRequest

from llava_core.config import StoreLimits
from llava_core.errors import LlavaError
from serve.page import tending
from serve.page.context import PageContext
from serve.page.messages import Message, read_owner
from serve.page.models import Offer


class Exports(Protocol):
    """Has the conversations of a pane as files."""

    async def export(self, message: Message) -> str: ...


def pane(
    context: PageContext,
    view: str,
    side: str = "only",
    *,
    behind: Exports | None = None,
    script: str = "pane",
) -> gr.HTML:
    """A model picker and the conversation with the model. Panes of one `view` share its composer.

    `behind` stands in the place of the page's rooms, and `script` draws it.
    """
    behind = behind or context.rooms

    async def models(message: Any = None) -> dict[str, Any]:
        return await offer_of(context, message)

    return gr.HTML(
        html_template=f'<div class="ls-pane" data-view="{view}" data-side="{side}"></div>',
        js_on_load=f"LlavaServe.{script}(element, {{server}});",
        apply_default_css=False,
        elem_classes=["ls-host", "ls-pane-host", f"ls-side-{side}"],
        server_functions=[models, _export(behind)],
    )


def place(context: PageContext, request: gr.Request) -> AbstractAsyncContextManager[None]:
    """Around an answer: one of the places that who is logged in has, else the browser's address. Raises Overloaded."""
    return context.quotas.place(_scope(request))


def owner_of(context: PageContext, request: gr.Request) -> str:
    """Whose caches an answer outside a chat may use: those of who is logged in, else of the browser's address."""
    return f"api/{request.username or context.quotas.address_of(_scope(request))}"


def check_pictures(context: PageContext, request: gr.Request, message: dict[str, Any]) -> None:
    """Raises BadImage where one of them was sent by another browser. For server functions, which Gradio gives the
    request itself, whatever they say they take."""
    context.uploads.check(cast("HttpRequest", request), message)


def _scope(request: gr.Request) -> dict[str, Any]:
    headers = [(name.lower().encode(), str(value).encode()) for name, value in request.headers.items()]
    caller = (request.client.host, 0) if request.client is not None else None
    return {"type": "http", "client": caller, "headers": headers, "caller": request.username or ""}


def composer(context: PageContext, view: str, kept: str = "", more: str = "") -> gr.HTML:
    """Text, pictures and settings; what is sent goes to every pane of the `view`.

    `kept` says what is kept of it, where that is not what is kept of chats; `more` what is kept beside them.
    """
    return gr.HTML(
        html_template=f'<div class="ls-composer" data-view="{view}"></div>',
        js_on_load="LlavaServe.composer(element, {props, upload});",
        apply_default_css=False,
        elem_classes=["ls-host", "ls-composer-host"],
        max_bytes=context.limits.max_bytes,
        max_images=context.limits.max_images,
        promise="" if kept else context.feedback.promise,
        kept=kept or context.history.promise,
        more=more,
        examples=[
            {"file": example.file, "title": example.title, "questions": example.questions, "credit": example.credit}
            for example in context.examples
        ],
    )


def history(context: PageContext) -> gr.HTML:
    """The list of this browser's chats, and what can be done with them."""

    async def chats(message: Any) -> dict[str, Any]:
        try:
            return await tending.listed(context.rooms, message_of(message))
        except LlavaError as error:
            return {"error": error.message}

    async def tend(message: Any) -> dict[str, Any]:
        try:
            return await tending.tend(context.rooms, message_of(message), (context.arena, context.open_votes))
        except LlavaError as error:
            return {"error": error.message}

    return gr.HTML(
        html_template='<nav class="ls-history" aria-label="Your chats"></nav>',
        js_on_load="LlavaServe.history(element, {props, server});",
        apply_default_css=False,
        elem_classes=["ls-host", "ls-history-host"],
        server_functions=[chats, tend, _export(context.rooms)],
        max_import=StoreLimits().max_import_bytes,
    )


def _export(behind: Exports) -> Callable[[Any], Awaitable[dict[str, str]]]:
    async def export(message: Any) -> dict[str, str]:
        try:
            return {"text": await behind.export(message_of(message))}
        except LlavaError as error:
            return {"error": error.message}

    return export


def message_of(message: Any) -> dict[str, Any]:
    """A server function gets its arguments as a list or, if there is one, perhaps bare."""
    first = message[0] if isinstance(message, list) and message else message
    return cast("dict[str, Any]", first) if isinstance(first, dict) else {}


async def offer_of(context: PageContext, message: Any) -> dict[str, Any]:
    """The models, and whether chats are kept: what every tab asks for now and then."""
    unkept = context.rooms.unkept(read_owner(message_of(message)))
    return {**_offer(await context.models.offer()), "store": {**context.history.report(), "unkept": unkept}}


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
                "inspects": card.info.inspects,
            }
            for card in offer.cards
        ],
    }
