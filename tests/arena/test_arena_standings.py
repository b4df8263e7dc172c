"""Ratings are computed when there is another vote, not for everybody who looks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve.arena import standings as module
from serve.arena.board import Choice, board
from serve.arena.ledger import Ledger
from serve.arena.standings import Standings
from tests.arena.voted import battle


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Choice]:
    """The choices for which a board was computed."""
    made: list[Choice] = []

    def counted(battles: Any, choice: Choice, offered: Any) -> dict[str, Any]:
        made.append(choice)
        return board(battles, choice, offered)

    monkeypatch.setattr(module, "board", counted)
    return made


async def test_a_board_is_computed_once_for_all_until_another_vote(computed: list[Choice]) -> None:
    ledger = Ledger(None)
    standings, text = Standings(ledger), Choice("text")
    for number, verdict in enumerate("abab"):
        ledger.add(battle(number, verdict=verdict))
    boards = await asyncio.gather(*(standings.board(choice, ["ant"]) for choice in (Choice(), Choice(), text, text)))
    assert sorted(computed, key=str) == sorted([Choice(), text], key=str)
    assert boards[0] == board(await ledger.battles(), Choice(), ["ant"])
    assert (await standings.board(Choice(), ["ant", "cat"]))["unrated"] == [{"model": "cat", "battles": 0}]
    computed.clear()
    ledger.add(battle(1, verdict="b", reason="clearer"))
    await standings.board(text, ["ant"])
    assert computed == []
    ledger.add(battle(9))
    assert (await standings.board(text, ["ant"]))["votes"] == 5
    assert computed == [text]


async def test_what_failed_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    standings = Standings(Ledger(None))
    with monkeypatch.context() as broken:
        broken.setattr(module, "board", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await standings.board(Choice(), [])
    assert (await standings.board(Choice(), []))["votes"] == 0
