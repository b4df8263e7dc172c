"""The built-in model's report: how often it is right per skill, beside the same questions about a blank picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from llava_core.builtin.data.sources import Pictures
from llava_core.eval.questions import SKILLS, Question, held_out, is_right
from llava_core.eval.text_questions import text_questions

Say = Callable[[str], None]
_TEXT_ANSWER = 40


@dataclass(frozen=True)
class Score:
    """Of one skill: right answers out of all, and as many without a picture. `yes` is how often "yes" was said."""

    skill: str
    asked: int
    right: int
    blind: int | None = None
    yes: int | None = None
    wrong: tuple[dict[str, str], ...] = ()

    @property
    def share(self) -> float:
        return self.right / max(self.asked, 1)


@dataclass(frozen=True)
class Report:
    """Of one model."""

    model: str
    scores: tuple[Score, ...]
    seconds: float
    text: Score | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    answerer: Any,
    sources: Pictures,
    *,
    name: str,
    per_skill: int,
    say: Say,
    skills: Sequence[str] = tuple(SKILLS),
    blind: bool = True,
    text: bool = True,
) -> Report:
    """Ask everything, with pictures and without."""
    started = time.monotonic()
    questions = held_out(sources, per_skill, skills)
    seen = ask_all(answerer, questions, say)
    unseen: list[str] = []
    if blind:
        blank = Image.new("RGB", (288, 288), (127, 127, 127))
        say("the same with a blank picture")
        unseen = ask_all(answerer, [replace(q, image=blank) for q in questions], say)
    scores: list[Score] = []
    for skill in skills:
        rows = [index for index, question in enumerate(questions) if question.skill == skill]
        right = [is_right(skill, seen[row], questions[row].key) for row in rows]
        wrong = [
            {"question": " / ".join(questions[row].turns), "answer": seen[row], "right": questions[row].key}
            for row, good in zip(rows, right, strict=True)
            if not good
        ]
        scores.append(
            Score(
                skill,
                len(rows),
                sum(right),
                sum(is_right(skill, unseen[row], questions[row].key) for row in rows) if blind else None,
                sum(seen[row].lower().startswith("yes") for row in rows) if "yes/no" in skill else None,
                tuple(wrong[:8]),
            )
        )
    return Report(
        name,
        tuple(scores),
        round(time.monotonic() - started, 1),
        text_score(answerer, say) if text else None,
    )


def ask_all(answerer: Any, questions: list[Question], say: Say) -> list[str]:
    """The last answer to each; earlier turns are answered by the model itself, which must live with what it said."""
    last = [""] * len(questions)
    chats: list[list[dict[str, str]]] = [[] for _ in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        # Of similar length side by side.
        rows = [index for index, question in enumerate(questions) if turn < len(question.turns)]
        for row in rows:
            chats[row].append({"role": "user", "content": questions[row].turns[turn]})
        for at in range(0, len(rows), 64):
            some = rows[at : at + 64]
            most = max(questions[row].most for row in some)
            answers = answerer.answer([chats[row] for row in some], [questions[row].image for row in some], most=most)
            for row, answer in zip(some, answers, strict=True):
                chats[row].append({"role": "assistant", "content": answer})
                last[row] = answer
            say(f"turn {turn + 1}: {min(at + 64, len(rows))} of {len(rows)}")
    return last


def text_score(answerer: Any, say: Say) -> Score:
    """How many of the two hundred questions without a picture are answered right."""
    asked = text_questions()
    say("two hundred questions without a picture")
    chats = [[{"role": "user", "content": question}] for question, _ in asked]
    answers: list[str] = answerer.answer(chats, [None] * len(chats), most=_TEXT_ANSWER)
    right = [
        any(is_right("text", answer, key) for key in keys.split("|"))
        for answer, (_, keys) in zip(answers, asked, strict=True)
    ]
    wrong = [
        {"question": question, "answer": answer, "right": keys}
        for (question, keys), answer, good in zip(asked, answers, right, strict=True)
        if not good
    ]
    return Score("text", len(asked), sum(right), wrong=tuple(wrong[:8]))


def load_answerer(folder: Path) -> Any:
    from llava_core.eval.answers import Answerer

    return Answerer(folder)
