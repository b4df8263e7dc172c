"""The Leaderboard tab: how strong the models are, by what people voted in the arena."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import gradio as gr

from llava_core.errors import LlavaError
from serve.arena import board as boards
from serve.arena.board import Choice
from serve.page.context import PageContext
from serve.ratings import Rating
from serve.tabs import Tab
from serve.tabs.parts import message_of


def build(context: PageContext) -> None:
    ledger = context.arena.ledger

    async def board(message: Any) -> dict[str, Any]:
        try:
            choice = boards.read_choice(message_of(message))
        except LlavaError as error:
            return {"error": error.message}
        made = await _board(context, choice)
        if choice in (Choice(), Choice(style=True)):
            rated = [Rating(**_rating(row)) for row in made["rows"]]
            ledger.note_ratings(rated, {"style": made["styled"], "level": 0.95}, made["votes"])
        return {**made, "trouble": ledger.trouble}

    async def download(message: Any) -> dict[str, str]:
        asked = message_of(message)
        try:
            choice = boards.read_choice(asked)
        except LlavaError as error:
            return {"error": error.message}
        if asked.get("kind") == "leaderboard":
            made = await _board(context, choice)
            return {"name": boards.now_name("leaderboard"), "text": boards.to_csv(made["rows"])}
        # Without what was said, recorded or not: that is the operator's, `python -m serve.arena.export` writes it.
        battles = boards.chosen(await ledger.battles(), choice)
        text = await asyncio.to_thread(partial(boards.to_jsonl, battles))
        return {"name": boards.now_name("battles"), "text": text}

    with gr.Column(elem_classes=["ls-view", "ls-view-leaderboard"]):
        gr.HTML(
            html_template='<div class="ls-board"></div>',
            js_on_load="LlavaServe.board(element, {props, server});",
            apply_default_css=False,
            elem_classes=["ls-host", "ls-board-host"],
            server_functions=[board, download],
        )


async def _board(context: PageContext, choice: Choice) -> dict[str, Any]:
    offered = [card.info.name for card in (await context.models.offer()).cards]
    return await context.arena.standings.board(choice, offered)


def _rating(row: dict[str, Any]) -> dict[str, Any]:
    return {("points" if name == "rating" else name): value for name, value in row.items()}


TAB = Tab("leaderboard", "Leaderboard", 40, build)
