"""Encodes the pictures that prefill comes to next, each picture once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch

from llava_core.checkpoints.base import LoadedCheckpoint, PreparedImage
from llava_core.engines.transformers.features import FeatureCache
from llava_core.engines.transformers.sequence import Sequence

log = logging.getLogger(__name__)


class Encoder:
    """The vision tower behind the feature cache."""

    def __init__(self, loaded: LoadedCheckpoint, cache: FeatureCache, *, batch: int) -> None:
        """`batch` is how many pictures are encoded at once while no answer waits for its next token."""
        self._loaded = loaded
        self._cache = cache
        self._batch = batch

    def prepare(self, prefilling: Seq[Sequence], *, hurry: bool, failed: Callable[[Sequence, Exception], None]) -> None:
        """Give requests the features they come to next. With `hurry` (answers are running) at most one picture is
        encoded, so that they pause for no longer. A request whose picture fails is reported to `failed`."""
        missing: dict[str, PreparedImage] = {}
        needing: list[tuple[Sequence, str]] = []
        limit = 1 if hurry else self._batch
        for sequence in prefilling:
            for placed in sequence.prompt.images:
                key = placed.image.key
                if placed.start + placed.image.tokens <= sequence.computed:
                    sequence.features.pop(key, None)
                elif key not in sequence.features:
                    found = self._cache.get(key)
                    if found is not None:
                        sequence.features[key] = found
                    elif key in missing or len(missing) < limit:
                        missing[key] = placed.image
                        needing.append((sequence, key))
        if not missing:
            return
        encoded, errors = self._encode(list(missing.values()))
        for sequence, key in needing:
            if key in encoded:
                sequence.features[key] = encoded[key]
            else:
                failed(sequence, errors[key])

    def _encode(self, images: list[PreparedImage]) -> tuple[dict[str, torch.Tensor], dict[str, Exception]]:
        try:
            features = self._loaded.encode(images)
        except Exception as error:
            if len(images) == 1:
                return {}, {images[0].key: error}
            log.warning("encoding %d pictures at once failed (%s); one by one", len(images), error)
            encoded: dict[str, torch.Tensor] = {}
            errors: dict[str, Exception] = {}
            for image in images:
                one, error = self._encode([image])
                encoded |= one
                errors |= error
            return encoded, errors
        for image, rows in zip(images, features, strict=True):
            self._cache.put(image.key, rows)
        return {image.key: rows for image, rows in zip(images, features, strict=True)}, {}
