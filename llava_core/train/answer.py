"""Answers a held-out question while a model trains: greedy, one at a time, through the same prompt as serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from llava_core.train.dataset import Lessons
from llava_core.train.lessons import Teacher
from llava_core.train.records import Picture
from llava_core.types import ImagePart


@dataclass(frozen=True)
class Answered:
    """A question, what the data says, and what the model says now."""

    place: str
    pictures: tuple[str, ...]
    question: str
    truth: str
    answer: str

    @property
    def right(self) -> bool:
        return _plain(self.truth) == _plain(self.answer)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"right": self.right}


@torch.no_grad()
def answer_sample(model: Any, lessons: Lessons, index: int, *, most: int) -> Answered:
    """Answer the first question of a sample. Raises BadSample."""
    sample = lessons.sample(index)
    first = next(place for place, message in enumerate(sample.messages) if message.role == "assistant")
    asked, truth = sample.messages[:first], sample.messages[first].text
    shown = sample.pictures[: sum(len(message.images) for message in asked)]
    lengths = [lessons.side.count(picture) for picture in shown]
    ids = lessons.teacher.question(asked, lengths)
    text = _greedy(model, ids, _rows(model, lessons, shown), lessons.teacher, most=most)
    words = "\n".join("".join("" if isinstance(p, ImagePart) else p.text for p in m.parts) for m in asked)
    names = tuple(str(picture) if not isinstance(picture, bytes) else "" for picture in shown)
    return Answered(sample.place, names, words, truth, text.strip())


def _rows(model: Any, lessons: Lessons, pictures: Sequence[Picture]) -> list[torch.Tensor]:
    if not pictures:
        return []
    features: list[torch.Tensor] = []
    sizes: list[tuple[int, int]] = []
    for picture in pictures:
        if lessons.cache is not None:
            known = lessons.cache.load(lessons.cache.key_of(picture))
            features.append(known.rows)
            sizes.append((known.size[1], known.size[0]))
        else:
            pixels, size, _ = lessons.side.prepare(picture)
            features.append(model.tower_features(pixels))
            sizes.append(size)
    tiles = [len(each) for each in features]
    return model.picture_rows(torch.cat(features), tiles, torch.tensor(sizes))


def _greedy(model: Any, ids: Sequence[int], rows: Sequence[torch.Tensor], teacher: Teacher, *, most: int) -> str:
    from transformers import DynamicCache

    tokenizer: Any = teacher.tokenizer
    device = model.lm_head.weight.device
    known = DynamicCache(config=model.config.get_text_config())
    fed = model.embed(torch.tensor([ids], device=device), rows)
    said: list[int] = []
    text = ""
    past = 0
    while len(said) < most:
        places = torch.arange(past, past + fed.shape[1], device=device)[None]
        hidden = model.model.language_model(
            inputs_embeds=fed, position_ids=places, past_key_values=known, use_cache=True
        ).last_hidden_state
        past += fed.shape[1]
        scores = model.lm_head(hidden[:, -1]).float()
        scores[:, model.config.image_token_id] = -torch.inf
        token = int(scores.argmax())
        if token in teacher.ends:
            break
        said.append(token)
        text = tokenizer.decode(said, skip_special_tokens=True)
        if any(stop in text for stop in teacher.stops):
            return min((text.split(stop)[0] for stop in teacher.stops), key=len)
        fed = model.model.get_input_embeddings()(torch.tensor([[token]], device=device))
    return text


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .!?\"'")
