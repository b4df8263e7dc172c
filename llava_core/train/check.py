"""Checks samples before they train: each that is wrong is named with its line and the reason, and lengths are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llava_core.errors import BadRequest
from llava_core.train.pictures import read_picture
from llava_core.train.records import BadSample, to_sample
from llava_core.train.sources import Source, locate

if TYPE_CHECKING:
    from llava_core.train.dataset import Lessons

SHOWN = 20
"""Problems that an error lists; the rest are counted."""


@dataclass(frozen=True)
class Problem:
    place: str
    id: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """What was found. `lengths` are tokens per sample, 0 for a bad one; `pictures` are pictures per sample."""

    lengths: np.ndarray
    pictures: np.ndarray
    taught: np.ndarray
    problems: tuple[Problem, ...]

    @property
    def good(self) -> np.ndarray:
        """Indices of samples that can be used."""
        return np.flatnonzero(self.lengths)


Tick = Callable[[int], None]
"""Called with how many samples are done."""


def _ignore(done: int) -> None:
    del done


def check_records(source: Source, *, tick: Tick = _ignore) -> Survey:
    """What can be told without a checkpoint: form, roles, marks and pictures. Lengths count words."""
    lengths, pictures = np.zeros(len(source), np.int32), np.zeros(len(source), np.int32)
    problems: list[Problem] = []
    for index in range(len(source)):
        inner, at = locate(source, index)
        try:
            sample = to_sample(inner.record(at), inner.place(at), inner.pictures)
            for picture in sample.pictures:
                read_picture(picture)
            lengths[index] = max(1, sum(len(message.text.split()) for message in sample.messages))
            pictures[index] = len(sample.pictures)
        except BadSample as cause:
            problems.append(Problem(source.place(index), _id(source, index), str(cause)))
        tick(index + 1)
    return Survey(lengths, pictures, lengths, tuple(problems))


def check_lessons(lessons: Lessons, *, workers: int = 0, tick: Tick = _ignore) -> Survey:
    """All of it, down to the ids that will be learned and the last row of each picture.

    Pictures are decoded, since one that was cut off has a header as good as any.
    """
    from torch.utils.data import DataLoader

    size = len(lessons)
    lengths, pictures, taught = (np.zeros(size, np.int32) for _ in range(3))
    problems: list[Problem] = []
    found = DataLoader(_Examined(lessons), batch_size=None, num_workers=workers)  # pyright: ignore[reportArgumentType]
    for index, (length, shown, learned, reason) in enumerate(found):
        lengths[index], pictures[index], taught[index] = length, shown, learned
        if reason:
            problems.append(Problem(lessons.source.place(index), _id(lessons.source, index), reason))
        tick(index + 1)
    return Survey(lengths, pictures, taught, tuple(problems))


def check_once(lessons: Lessons, folder: Path, key: str, *, workers: int = 0, tick: Tick = _ignore) -> Survey:
    """`check_lessons`, remembered in `folder` until data, checkpoint or settings change."""
    stamp = hashlib.sha256(f"{key}|{lessons.source.stamp()}|{lessons.max_length}|{lessons.pictures_first}".encode())
    file = folder / f"checked-{stamp.hexdigest()[:16]}.npz"
    if file.is_file():
        with np.load(file) as kept:
            return Survey(kept["lengths"], kept["pictures"], kept["taught"], ())
    survey = check_lessons(lessons, workers=workers, tick=tick)
    if not survey.problems:  # what is wrong may be put right without a change that shows here, as a missing picture
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".tmp.npz")
        np.savez(unfinished, lengths=survey.lengths, pictures=survey.pictures, taught=survey.taught)
        unfinished.replace(file)
    return survey


def refuse(problems: Sequence[Problem], total: int) -> BadRequest:
    """The error for samples that are wrong, with the first of them by line and reason."""
    listed = "".join(f"\n  {each.place}: {each.reason}" for each in problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return BadRequest(
        f"{len(problems)} of {total} samples are wrong:{listed}{more}\nPut them right, or leave them out with "
        "--skip-bad; `python -m llava_core.train check` lists them all",
        param="--data",
    )


class _Examined:
    def __init__(self, lessons: Lessons) -> None:
        self._lessons = lessons

    def __len__(self) -> int:
        return len(self._lessons)

    def __getitem__(self, index: int) -> tuple[int, int, int, str]:
        try:
            sample = self._lessons.sample(index)
            lesson = self._lessons.lesson(sample)
            for picture in sample.pictures:
                read_picture(picture)
        except BadSample as cause:
            return 0, 0, 0, str(cause)
        return len(lesson.ids), len(sample.pictures), sum(end - begin for begin, end in lesson.taught), ""


def _id(source: Source, index: int) -> str:
    record = source.record(index)
    return str(record.get("id", "")) if isinstance(record, dict) else ""
