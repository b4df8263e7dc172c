"""Encodes the pictures that prefill comes to next, each picture once, in pieces that running answers hardly notice."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from llava_core.checkpoints.base import LoadedCheckpoint, PreparedImage
from llava_core.engines.transformers.features import FeatureCache
from llava_core.engines.transformers.pieces import Task, token_work
from llava_core.engines.transformers.sequence import Sequence

log = logging.getLogger(__name__)

Failed = Callable[[Sequence, Exception], None]
Named = tuple[str, str]
"""Whose picture it is and its key. Nobody's picture speeds up another person's, because timing would tell."""
Needed = dict[Named, dict[Sequence, PreparedImage]]
"""Who needs it, and as what it was prepared."""


@dataclass(frozen=True)
class _Job:
    """Pictures on their way through the vision tower."""

    images: dict[Named, PreparedImage]
    task: Task[list[torch.Tensor]]


class Encoder:
    """The vision tower behind the feature cache; belongs to the model's thread."""

    def __init__(
        self, loaded: LoadedCheckpoint, cache: FeatureCache, *, batch: int, share_between_owners: bool = False
    ) -> None:
        """`batch` is how many pictures are encoded at once while no answer waits for its next token."""
        self._loaded = loaded
        self._cache = cache
        self._batch = batch
        self._share_between_owners = share_between_owners
        self._token_work = token_work(loaded.model)
        self._job: _Job | None = None
        self._alone: set[Named] = set()
        """Pictures of a batch that failed, to be tried one by one."""

    @property
    def busy(self) -> bool:
        """Whether pictures are on their way through the tower."""
        return self._job is not None

    def advance(
        self, prefilling: Seq[Sequence], waiting: Iterable[Sequence], *, tokens: int, hurry: bool, failed: Failed
    ) -> int:
        """Give requests the features they come to next, and encode on for about as long as `tokens` of text would
        take to prefill; returns how many it was.

        With `hurry` (answers are running) pictures are taken one at a time. Pictures that nobody needs any more,
        `waiting` requests included, are left where they are. A request whose picture fails is reported to `failed`.
        """
        needed = self._supply(prefilling)
        self._alone.intersection_update(needed)
        if self._job is not None and not self._is_wanted(self._job, needed, waiting):
            self.stop()
        if self._job is None:
            images = self._choose(needed, 1 if hurry else self._batch)
            if not images:
                return 0
            self._job = _Job(images, Task(lambda: self._loaded.encode(list(images.values()))))
        job, features, failure = self._job, None, None
        try:
            if job.task.advance(tokens * self._token_work):
                features = job.task.result
        except Exception as error:
            failure = error
        if failure is not None:
            self._job = None
            self._report(job, failure, needed, failed)
        elif features is not None:
            self._job = None
            for (name, image), rows in zip(job.images.items(), features, strict=True):
                self._cache.put(name, rows)
                for sequence in needed.get(name, ()):
                    sequence.features[image.key] = rows
        return math.ceil(job.task.spent / self._token_work)

    def stop(self) -> None:
        """Leave what is being encoded."""
        if self._job is not None:
            self._job.task.stop()
            self._job = None

    def _supply(self, prefilling: Seq[Sequence]) -> Needed:
        """Hand out what is known and take back what was used; returns what is missing, in the order it is needed."""
        needed: Needed = {}
        for sequence in prefilling:
            for placed in sequence.prompt.images:
                key = placed.image.key
                if placed.start + placed.image.tokens <= sequence.computed:
                    sequence.features.pop(key, None)
                elif key not in sequence.features:
                    name = self._name(sequence, key)
                    found = self._cache.get(name)
                    if found is not None:
                        sequence.features[key] = found
                    else:
                        needed.setdefault(name, {})[sequence] = placed.image
        return needed

    def _choose(self, needed: Needed, most: int) -> dict[Named, PreparedImage]:
        images = [(name, next(iter(users.values()))) for name, users in needed.items()]
        together = [(name, image) for name, image in images[:most] if name not in self._alone]
        return dict(together or images[:1])

    def _is_wanted(self, job: _Job, needed: Needed, waiting: Iterable[Sequence]) -> bool:
        return not job.images.keys().isdisjoint(needed) or any(
            self._name(sequence, placed.image.key) in job.images
            for sequence in waiting
            for placed in sequence.prompt.images
        )

    def _name(self, sequence: Sequence, key: str) -> Named:
        return ("" if self._share_between_owners else sequence.owner), key

    def _report(
        self,
        job: _Job,
        error: Exception,
        needed: Needed,
        failed: Failed,
    ) -> None:
        if len(job.images) > 1:
            log.warning("encoding %d pictures at once failed (%s); one by one", len(job.images), error)
            self._alone.update(job.images)
            return
        for sequence in needed.get(next(iter(job.images)), ()):
            failed(sequence, error)
