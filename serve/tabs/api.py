"""Two endpoints for `gradio_client` and scripts: which models there are, and one answer to one question."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import gradio as gr
from gradio.events import api

from llava_core.errors import BadRequest, LlavaError
from llava_core.types import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    ImagePart,
    Part,
    Request,
    Sampling,
    TextPart,
    user,
)
from serve.page.context import PageContext
from serve.tabs.parts import owner_of, place


def add_endpoints(context: PageContext) -> None:
    async def models() -> list[str]:
        """The names of the models that can be asked now."""
        offer = await context.models.offer()
        return [card.info.name for card in offer.cards]

    async def ask(
        caller: gr.Request,
        model: str,
        question: str,
        images: list[str] | None = None,
        temperature: float = DEFAULT_TEMPERATURE,
        top_p: float = DEFAULT_TOP_P,
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> AsyncIterator[str]:
        """The answer so far, again and again until it is complete. Pictures are data: URLs."""
        try:
            sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
            if not question and not images:
                raise BadRequest("there is nothing to send; write a question or attach a picture")
            parts: list[Part] = [ImagePart(url) for url in images or []]
            request = Request(model, (user(*parts, TextPart(question)),), sampling, owner=owner_of(context, caller))
            said = ""
            async with place(context, caller), aclosing(cast("Any", context.source.stream(request))) as chunks:
                async for chunk in chunks:
                    if chunk.text:
                        said += chunk.text
                        yield said
        except LlavaError as error:
            raise gr.Error(error.message, print_exception=False) from error

    api(models, api_name="models", concurrency_limit=None)
    api(ask, api_name="ask", concurrency_limit=context.readers_at_once)
