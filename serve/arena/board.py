"""The leaderboard as plain data: ratings, who wins against whom, who is still to be rated; and as files to keep."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from llava_core.errors import BadRequest
from serve.arena.language import UNKNOWN
from serve.ratings import Battle, Ratings, rate, win_rates
from serve.store.battles import NOBODY, Conversation, Style, VotedBattle

CATEGORIES = ("picture", "text", "long")
LEAST_FOR_STYLE = 50
"""Votes from which on the effect of style can be told from the models'."""
_WILD = 10_000.0
_WILD_EFFECT = 1000.0
"""Points beyond which a likelihood has no maximum, rather than a model that strength."""
_SCORES = {"a": 1.0, "b": 0.0, "tie": 0.5, "both_bad": 0.5}
_WINNERS = {"a": "model_a", "b": "model_b", "tie": "tie", "both_bad": "tie (bothbad)"}
_COLUMNS = ("rank", "model", "rating", "rating_q025", "rating_q975", "num_battles", "wins", "ties")


@dataclass(frozen=True)
class Choice:
    """Which battles count: of one category, voted in these days, first and last included; and how they are rated."""

    category: str = ""
    since: date | None = None
    until: date | None = None
    style: bool = False


def read_choice(message: Mapping[str, Any]) -> Choice:
    """What the browser asks for. Raises BadRequest for what is none."""
    category = str(message.get("category") or "")
    if category and category not in CATEGORIES:
        raise BadRequest(f"there is no category {category[:40]!r}, only {', '.join(CATEGORIES)}", param="category")
    try:
        since, until = (
            date.fromisoformat(str(message[name])) if message.get(name) else None for name in ("since", "until")
        )
    except ValueError:
        raise BadRequest("a day is written like 2026-05-01", param="since") from None
    return Choice(category, since, until, bool(message.get("style")))


def chosen(battles: Iterable[VotedBattle], choice: Choice) -> tuple[VotedBattle, ...]:
    """Those that count: blind, with nobody's name told, and what the choice lets through."""
    return tuple(battle for battle in battles if not battle.left_out and _is_let_through(battle, choice))


def ratings_of(battles: Sequence[VotedBattle], *, style: bool) -> tuple[Ratings, bool]:
    """The ratings, and whether style is accounted for: too few votes, or all of one kind, cannot tell its effect."""
    if style and len(battles) >= LEAST_FOR_STYLE:
        try:
            with np.errstate(all="ignore"):
                rated = rate(map(_styled, battles))
        except np.linalg.LinAlgError:
            rated = None
        if rated and any(rated.style) and _is_sane(rated):
            return rated, True
    return rate(map(_plain, battles)), False


def points_of(battles: Iterable[VotedBattle]) -> dict[str, float]:
    """Points of every model that is rated."""
    rated, _ = ratings_of(chosen(battles, Choice()), style=False)
    return {rating.model: float(rating.points) for rating in rated.rated}


def board(battles: Iterable[VotedBattle], choice: Choice, offered: Iterable[str] = ()) -> dict[str, Any]:
    """What the page draws. `offered` models that nobody voted on yet are listed as such."""
    given = list(battles)
    counted = chosen(given, choice)
    ratings, styled = ratings_of(counted, style=choice.style)
    names, rates, met = win_rates(map(_plain, counted))
    votes = Counter(name for battle in counted for name in set(battle.models))
    unrated = sorted({*ratings.unrated, *offered} - {rating.model for rating in ratings.rated})
    order = [rating.model for rating in ratings.rated] + [name for name in unrated if votes[name]]
    at = [names.index(name) for name in order]
    return {
        "rows": [
            {
                "rank": rating.rank,
                "model": rating.model,
                "rating": float(rating.points),
                "low": float(rating.low),
                "high": float(rating.high),
                "battles": rating.battles,
                "wins": rating.wins,
                "ties": rating.ties,
            }
            for rating in ratings.rated
        ],
        "unrated": [{"model": name, "battles": votes[name]} for name in unrated],
        "models": order,
        "rates": [[None if np.isnan(rates[i, j]) else float(rates[i, j]) for j in at] for i in at],
        "met": [[int(met[i, j]) for j in at] for i in at],
        "votes": len(counted),
        "left_out": sum(bool(battle.left_out) and _is_let_through(battle, choice) for battle in given),
        "styled": styled,
        "effects": dict(zip(("length", "headings", "lists", "bold"), ratings.style, strict=False)) if styled else {},
        "least_for_style": LEAST_FOR_STYLE,
    }


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """The table, in the words of LMArena's."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        figures = [round(row[name], 2) for name in ("rating", "low", "high")]
        # A name that a spreadsheet would take for a formula stays a name.
        model = f"'{row['model']}" if row["model"][:1] in "=+-@" else row["model"]
        writer.writerow([row["rank"], model, *figures, row["battles"], row["wins"], row["ties"]])
    return text.getvalue()


def to_jsonl(
    battles: Iterable[VotedBattle], conversations: Mapping[str, tuple[Conversation, Conversation]] | None = None
) -> str:
    """A line per battle, with the columns of LMArena's public data; what was said only where it was recorded."""
    lines: list[str] = []
    for battle in battles:
        row: dict[str, Any] = {
            "question_id": battle.id,
            "model_a": battle.models[0],
            "model_b": battle.models[1],
            "winner": _WINNERS[battle.verdict],
            "judge": f"arena_user_{_judge(battle.owner)}",
            "turn": battle.turns,
            "anony": battle.blind,
            "language": battle.language or UNKNOWN,
            "tstamp": battle.voted_at.timestamp(),
        }
        said = (conversations or {}).get(battle.id)
        if said:
            row |= {"conversation_a": _messages(said[0]), "conversation_b": _messages(said[1])}
        lines.append(json.dumps(row, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines)


def now_name(kind: str) -> str:
    """A file's name."""
    ending = "csv" if kind == "leaderboard" else "jsonl"
    return f"{kind}-{datetime.now(UTC):%Y-%m-%d}.{ending}"


def _is_let_through(battle: VotedBattle, choice: Choice) -> bool:
    day = battle.voted_at.astimezone(UTC).date()
    return (
        battle.blind
        and (not choice.category or choice.category in battle.categories)
        and (choice.since is None or day >= choice.since)
        and (choice.until is None or day <= choice.until)
    )


def _plain(battle: VotedBattle) -> Battle:
    return Battle(*battle.models, _SCORES[battle.verdict])


def _styled(battle: VotedBattle) -> Battle:
    a, b = battle.styles
    return Battle(*battle.models, _SCORES[battle.verdict], tuple(map(_difference, _features(a), _features(b))))


def _features(style: Style) -> tuple[int, int, int, int]:
    return style.words, style.headers, style.lists, style.bold


def _difference(a: int, b: int) -> float:
    """How much more of it one side has, as a share of what both have."""
    return (a - b) / (a + b) if a + b else 0.0


def _is_sane(ratings: Ratings) -> bool:
    bounds = [bound for rating in ratings.rated for bound in (rating.low, rating.high)]
    return all(abs(each) < _WILD for each in bounds) and all(abs(each) < _WILD_EFFECT for each in ratings.style)


def _judge(owner: str) -> str:
    """Tells voters apart without telling under what their chats are kept."""
    if owner == NOBODY:
        return UNKNOWN
    return hashlib.sha256(f"judge {owner}".encode()).hexdigest()[:12]


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for pair in conversation
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
