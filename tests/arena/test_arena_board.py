"""The leaderboard: who counts, who is rated, what the files say."""

from __future__ import annotations

import csv
import io
import json
from datetime import date, timedelta
from random import Random
from typing import Any

import pytest

from llava_core.errors import BadRequest
from serve.arena.board import LEAST_FOR_STYLE, Choice, board, chosen, ratings_of, read_choice, to_csv, to_jsonl
from serve.store.battles import Style, VotedBattle
from tests.arena.voted import NOON, battle

EVE = date(2026, 4, 30)


def season(count: int = 60, **more: Any) -> list[VotedBattle]:
    """`ant` mostly beats `bee`, both mostly beat `cat`."""
    random = Random(3)
    pairs = [("ant", "bee"), ("bee", "cat"), ("ant", "cat")]
    return [
        battle(n, *pairs[n % 3], verdict=random.choices(("a", "b", "tie", "both_bad"), (6, 2, 1, 1))[0], **more)
        for n in range(count)
    ]


def test_the_best_come_first_with_their_record_and_the_rest_waits() -> None:
    made = board([*season(), battle(99, "newcomer", "ant", "a")], Choice(), offered=("idle", "bee"))
    assert [row["model"] for row in made["rows"]] == ["ant", "bee", "cat"]
    assert all(row["low"] < row["rating"] < row["high"] for row in made["rows"])
    assert made["unrated"] == [{"model": "idle", "battles": 0}, {"model": "newcomer", "battles": 1}]
    assert made["models"] == ["ant", "bee", "cat", "newcomer"]
    assert made["rates"][3][0] == 1.0
    assert made["rates"][3][1] is None
    assert made["met"][0] == [0, 20, 20, 1]
    assert made["votes"] == 61
    json.dumps(made, allow_nan=False)


@pytest.mark.parametrize(
    "battles",
    [[], [battle()], [battle(), battle(2, "cat", "dog")], [battle(n, verdict="tie") for n in range(5)]],
    ids=["none", "one", "apart", "ties"],
)
def test_few_or_strange_votes_give_a_sane_board(battles: list[VotedBattle]) -> None:
    for style in (False, True):
        json.dumps(board(battles, Choice(style=style), ("ant",)), allow_nan=False)


def test_told_names_open_battles_categories_and_days_are_left_out() -> None:
    kept = battle(1, categories=("picture", "long"))
    others = [
        battle(2, left_out="an answer said 'LLaVA'", categories=("picture",)),
        battle(3, blind=False, categories=("picture",)),
        battle(4, categories=("text",)),
        battle(5, categories=("picture",), voted_at=NOON + timedelta(days=2)),
        battle(6, categories=("picture",), voted_at=NOON - timedelta(days=2)),
    ]
    day = date(2026, 5, 1)
    assert chosen([kept, *others], Choice("picture", day, day)) == (kept,)
    assert chosen([kept, *others], Choice("long")) == (kept,)
    for choice, count in ((Choice(), 1), (Choice("picture", day), 1), (Choice("text"), 0), (Choice(until=EVE), 0)):
        assert board([kept, *others], choice)["left_out"] == count


def test_style_control_takes_from_a_model_what_it_won_by_length() -> None:
    random = Random(5)
    votes: list[VotedBattle] = []
    for number in range(600):
        long_wins = random.random() < 0.8
        wordy = random.random() < 0.85
        styles = (Style(200 if wordy else 80), Style(80 if wordy else 200))
        votes.append(battle(number, "wordy", "terse", "a" if long_wins == wordy else "b", styles=styles))
    (plain, _), (fair, styled) = ratings_of(votes, style=False), ratings_of(votes, style=True)
    gap = [first.points - second.points for first, second in (plain.rated, fair.rated)]
    assert styled
    assert gap[0] > 120
    assert abs(gap[1]) < 80
    assert board(votes, Choice(style=True))["effects"]["length"] > 50


def test_style_that_cannot_be_told_from_the_models_is_left_alone() -> None:
    few = season(LEAST_FOR_STYLE - 1)
    always = [
        battle(n, verdict="ab"[n % 2], styles=(Style(10 - 9 * (n % 2)), Style(1 + 9 * (n % 2)))) for n in range(80)
    ]
    for votes in (few, always):
        assert ratings_of(votes, style=True)[1] is False
        assert ratings_of(votes, style=True)[0] == ratings_of(votes, style=False)[0]


def test_the_table_is_a_csv_that_no_spreadsheet_runs() -> None:
    made = board(season(), Choice())
    made["rows"][0]["model"] = "=ant"
    rows = list(csv.DictReader(io.StringIO(to_csv(made["rows"]))))
    assert [row["model"] for row in rows] == ["'=ant", "bee", "cat"]
    assert float(rows[0]["rating_q025"]) < float(rows[0]["rating"]) < float(rows[0]["rating_q975"])


def test_battles_are_written_with_the_arenas_columns_and_what_was_said_only_if_recorded() -> None:
    votes = [battle(n, verdict=verdict) for n, verdict in enumerate(("a", "b", "tie"))]
    votes.append(battle(3, verdict="both_bad", language="German"))
    said = ((("Hi", "Hello"),), (("Hi", "Good day"),))
    rows = [json.loads(line) for line in to_jsonl(votes, {"battle-1": said}).splitlines()]
    assert [row["winner"] for row in rows] == ["model_a", "model_b", "tie", "tie (bothbad)"]
    plain = ["question_id", "model_a", "model_b", "winner", "judge", "turn", "anony", "language", "tstamp"]
    assert list(rows[0]) == plain
    assert [row["language"] for row in rows] == ["unknown", "unknown", "unknown", "German"]
    assert list(rows[1]) == [*plain, "conversation_a", "conversation_b"]
    assert rows[1]["conversation_b"][1] == {"role": "assistant", "content": "Good day"}
    assert rows[0]["tstamp"] == NOON.timestamp()
    assert "me" not in rows[0]["judge"].removeprefix("arena_user_")
    assert json.loads(to_jsonl([votes[0].as_nobodys()]))["judge"] == "arena_user_unknown"


@pytest.mark.parametrize("wrong", [{"category": "colour"}, {"since": "yesterday"}, {"until": "2026-13-01"}])
def test_a_choice_that_is_none_is_refused_with_a_sentence(wrong: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        read_choice(wrong)
    assert read_choice({"since": "2026-05-01", "style": True}) == Choice("", date(2026, 5, 1), None, True)
