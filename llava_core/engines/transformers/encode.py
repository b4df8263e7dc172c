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
Needed = dict[str, dict[Sequence, PreparedImage]]
"""By key: who needs it, and as what it was prepared."""


@dataclass(frozen=True)
class _Job:
    """Pictures on their way through the vision tower."""

    images: list[PreparedImage]
    task: Task[list[torch.Tensor]]


class Encoder:
    """The vision tower behind the feature cache; belongs to the model's thread."""

    def __init__(self, loaded: LoadedCheckpoint, cache: FeatureCache, *, batch: int) -> None:
        """`batch` is how many pictures are encoded at once while no answer waits for its next token."""
        self._loaded = loaded
        self._cache = cache
        self._batch = batch
        self._token_work = token_work(loaded.model)
        self._job: _Job | None = None
        self._alone: set[str] = set()
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
            self._job = _Job(images, Task(lambda: self._loaded.encode(images)))
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
            for image, rows in zip(job.images, features, strict=True):
                self._cache.put(image.key, rows)
                for sequence in needed.get(image.key, ()):
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
                    found = self._cache.get(key)
                    if found is not None:
                        sequence.features[key] = found
                    else:
                        needed.setdefault(key, {})[sequence] = placed.image
        return needed

    def _choose(self, needed: Needed, most: int) -> list[PreparedImage]:
        images = [next(iter(users.values())) for users in needed.values()]
        together = [image for image in images[:most] if image.key not in self._alone]
        return together or images[:1]

    def _is_wanted(self, job: _Job, needed: Needed, waiting: Iterable[Sequence]) -> bool:
        keys = {image.key for image in job.images}
        return not keys.isdisjoint(needed) or any(
            placed.image.key in keys for sequence in waiting for placed in sequence.prompt.images
        )

    def _report(
        self,
        job: _Job,
        error: Exception,
        needed: Needed,
        failed: Failed,
    ) -> None:
        if len(job.images) > 1:
            log.warning("encoding %d pictures at once failed (%s); one by one", len(job.images), error)
            self._alone.update(image.key for image in job.images)
            return
        for sequence in needed.get(job.images[0].key, ()):
            failed(sequence, error)
