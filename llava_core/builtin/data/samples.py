"""Training samples in LLaVA's JSON: captions for the first stage, chats for the second, their pictures beside them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_core.builtin.data.drawing import Drawn
from llava_core.builtin.data.drills import drill
from llava_core.builtin.data.sources import Pictures
from llava_core.builtin.data.talk import Ask, asks, caption, described, references

CHATS: Mapping[str, float] = {
    "shapes": 0.4, "photo shapes": 0.05, "text": 0.17, "photo text": 0.03, "chart": 0.09,
    "icon": 0.05, "photo icon": 0.04, "icons": 0.04, "photo icons": 0.02, "photo": 0.1, "real photo": 0.06,
}  # fmt: skip
"""How often each kind of picture is talked about."""
PRACTICE: Mapping[str, float] = {
    "shapes": 0.45, "icon": 0.15, "photo icon": 0.1, "icons": 0.1, "text": 0.12, "photo text": 0.03, "photo": 0.05,
}  # fmt: skip
"""The same for a second round about what the first leaves unsure: places, names of drawings, letters."""
DRILLS: Mapping[str, float] = {
    "shapes": 0.40, "photo shapes": 0.03, "icon": 0.26, "icons": 0.07, "photo icon": 0.04, "text": 0.08,
    "photo text": 0.01, "chart": 0.05, "photo": 0.04, "real photo": 0.02,
}  # fmt: skip
"""For the rounds after it, in which scenes and names are drilled and the rest is kept awake."""
SCENE_DRILLS: Mapping[str, float] = {
    "shapes": 0.56, "photo shapes": 0.03, "icon": 0.15, "icons": 0.04, "photo icon": 0.02, "text": 0.08,
    "chart": 0.04, "photo": 0.05, "real photo": 0.03,
}  # fmt: skip
KEPT_AWAKE: Mapping[str, float] = {
    "shapes": 0.38, "photo shapes": 0.03, "icon": 0.25, "icons": 0.04, "photo icon": 0.04, "text": 0.10,
    "photo text": 0.01, "chart": 0.05, "photo": 0.10,
}  # fmt: skip
"""All else, for the round in which photographs are practised."""
DESCRIBED: Mapping[str, float] = {
    "shapes": 0.52, "photo shapes": 0.04, "icon": 0.12, "icons": 0.04, "text": 0.09, "photo text": 0.01, "chart": 0.10,
    "photo": 0.08,
}  # fmt: skip
PRACTISED = ("position", "at place", "reference", "count", "color", "icon", "list", "reading", "photo", "yes/no")
_REFERENCES = 0.35
"""Part of the scenes that a chat of three turns leads through, each leaning on the last."""
_TURNS = 5
_AFTER_OPENING = 3
Record = dict[str, Any]


def write_samples(
    sources: Pictures,
    folder: Path,
    *,
    pictures: int,
    captions: int,
    rounds: int,
    texts: Iterable[tuple[str, str]],
    seed: int,
    say: Callable[[str], None],
    skills: Collection[str] = (),
    kinds: Mapping[str, float] = CHATS,
    drilled: bool = False,
    opened: bool = False,
) -> tuple[Path, Path]:
    """Files for the two stages: the first pictures with captions, all of them with `rounds` chats each.

    `texts` are questions without a picture, with answers, mixed into the second. Of `skills`, when there are any, is
    all that is asked; `kinds` says how often there is which picture. `opened` chats begin with what people ask first:
    what the picture shows.
    """
    place = folder / "pictures"
    place.mkdir(parents=True, exist_ok=True)
    aligned: list[Record] = []
    talked: list[Record] = []
    for index in range(pictures):
        drawn = _drawn(sources, kinds, seed, index)
        path = _saved(drawn, place, f"{seed}-{index}")
        if index < captions:
            words = caption(drawn, random.Random(f"{seed}/caption/{index}"))
            aligned.append(record(f"caption-{index}", path, [("", words)]))
        for turn in range(rounds):
            dice = random.Random(f"{seed}/chat/{index}/{turn}")
            if drilled and turn and drawn.kind != "shapes":
                continue
            about = drill(drawn, dice) if drilled else chat_about(drawn, dice, skills=skills)
            if opened and (first := described(drawn, dice)):
                about = [*first, *about[:_AFTER_OPENING]]
            turns = [(ask.question, ask.answer) for ask in about]
            if turns:
                talked.append(record(f"chat-{index}-{turn}", path, turns))
    say(f"{len(aligned)} captions and {len(talked)} chats about {pictures} pictures written")
    talked += [record(f"text-{index}", None, [pair]) for index, pair in enumerate(texts)]
    random.Random(seed).shuffle(talked)
    first, second = folder / "captions.json", folder / "chats.json"
    first.write_text(json.dumps(aligned, indent=1) + "\n", "utf-8")
    second.write_text(json.dumps(talked, indent=1) + "\n", "utf-8")
    return first, second


def chat_about(drawn: Drawn, dice: random.Random, turns: int = _TURNS, skills: Collection[str] = ()) -> list[Ask]:
    """Questions about one picture, as one person might ask them in turn; only of these skills, if any are named."""
    led = references(drawn, dice) if dice.random() < _REFERENCES and (not skills or "reference" in skills) else []
    others = [ask for ask in asks(drawn, dice) if not skills or ask.skill in skills]
    # One question of a kind first, so that rare ones are not crowded out.
    seen: set[str] = set()
    fresh: list[Ask] = []
    again: list[Ask] = []
    for ask in others:
        (again if ask.skill in seen else fresh).append(ask)
        seen.add(ask.skill)
    return led + [*fresh, *again][: max(turns - len(led), 1)]


def _drawn(sources: Pictures, kinds: Mapping[str, float], seed: int, index: int) -> Drawn:
    dice = random.Random(f"{seed}/picture/{index}")
    return sources.draw(dice.choices(list(kinds), list(kinds.values()))[0], dice)


def _saved(drawn: Drawn, pictures: Path, stem: str) -> str:
    path = pictures / f"{stem}.jpg"
    if not path.exists():
        drawn.image.save(path, quality=95, subsampling=0)
    return f"pictures/{path.name}"


def record(name: str, picture: str | None, turns: Iterable[tuple[str, str]]) -> Record:
    """One sample of questions and answers in turn; `picture` is relative to its file."""
    conversations: list[dict[str, str]] = []
    for index, (question, answer) in enumerate(turns):
        mark = "<image>\n" if picture and index == 0 else ""
        conversations.append({"from": "human", "value": f"{mark}{question}".strip()})
        conversations.append({"from": "gpt", "value": answer})
    return {"id": name, **({"image": picture} if picture else {}), "conversations": conversations}
