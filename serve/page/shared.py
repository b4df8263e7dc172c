"""A shared chat as a page of its own, to read: plain HTML that needs neither Gradio nor a model to be running."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from llava_core.errors import LlavaError
from serve.page.assets import reading
from serve.page.history import History
from serve.page.markdown import blocks
from serve.store.records import KeptMessage, KeptPicture, Shared

_HEADERS = {"Cache-Control": "no-store", "X-Robots-Tag": "noindex"}


def routes(history: History) -> list[Route]:
    """`/shared/TOKEN` and the pictures below it, for as long as the chat is shared."""

    drawing = asyncio.Lock()

    async def page(request: Request) -> Response:
        try:
            shared = await history.shared(request.path_params["token"])
        except LlavaError as error:
            return _page("Not now", f"<p>{escape(error.message)}.</p>", 503)
        if shared is None:
            return _page("Nothing is shared here", "<p>The link was withdrawn, or the chat was deleted.</p>", 404)
        # A chat that was brought in may be of any length, and nobody waits for its Markdown but who reads it.
        async with drawing:
            body = await asyncio.to_thread(_chat, shared, request.path_params["token"])
        return _page(shared.title, body, 200)

    async def picture(request: Request) -> Response:
        try:
            shared = await history.shared(request.path_params["token"])
            kept = _pictures(shared.messages) if shared else []
            number = request.path_params["number"]
            sha256 = kept[number].sha256 if number < len(kept) else None
            image = await history.image(sha256) if sha256 else None
        except LlavaError:
            return Response(status_code=503, headers=_HEADERS)
        if image is None:
            return Response(status_code=404, headers=_HEADERS)
        return Response(image.data, media_type=image.mime, headers=_HEADERS)

    return [Route("/shared/{token}", page), Route("/shared/{token}/{number:int}", picture)]


def _pictures(messages: Sequence[KeptMessage]) -> list[KeptPicture]:
    return [picture for message in messages for picture in message.pictures]


def _chat(shared: Shared, token: str) -> str:
    parts: list[str] = []
    number = 0
    for message in shared.messages:
        if message.role == "assistant":
            parts.append(_answer(message))
            continue
        images: list[str] = []
        for picture in message.pictures:
            where = f"shared/{escape(token)}/{number}"
            images.append(f'<a class="ls-picture" href="{where}"><img src="{where}" alt="{escape(picture.name)}"></a>')
            number += 1
        bubble = f'<div class="ls-bubble">{escape(message.text)}</div>' if message.text else ""
        shown = f'<div class="ls-pictures" data-count="{min(len(images), 4)}">{"".join(images)}</div>' if images else ""
        parts.append(f'<section class="ls-question" aria-label="Question">{shown}{bubble}</section>')
    about = f"A chat as it was on {shared.created_at:%d %B %Y}, to read. Models make mistakes; check what matters."
    return f'<p class="ls-shared-about">{about}</p><div class="ls-turns">{"".join(parts)}</div>'


def _answer(message: KeptMessage) -> str:
    model = escape(message.generation.model if message.generation else "")
    text = "".join(f'<div class="ls-block">{block}</div>' for block in blocks(message.text))
    if not text:
        text = '<p class="ls-left-out">No answer</p>'
    return (
        f'<section class="ls-answer" aria-label="Answer"><div class="ls-answer-head">'
        f'<span class="ls-model-tag">{model}</span></div><div class="ls-answer-text">{text}</div></section>'
    )


def _page(title: str, body: str, status: int) -> HTMLResponse:
    styles, scripts = reading()
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><base href="../">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">'
        f"<title>{escape(title)} · LLaVA Serve</title>"
        f'<link rel="icon" href="favicon.ico"><style>{styles}</style></head>'
        '<body class="ls-shared"><div class="ls-host"><header class="ls-header"></header></div>'
        f'<main class="ls-pane"><h1>{escape(title)}</h1>{body}</main><script>{scripts}</script></body></html>',
        status,
        _HEADERS,
    )
