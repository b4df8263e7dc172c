"""Decides whether the kernel computes a model's layers, and gives it their weights."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass

from transformers import PreTrainedModel

from llava_core.config import Kernel
from llava_core.engines.transformers.native.build import NotBuilt, kernel
from llava_core.engines.transformers.native.step import NativeStep
from llava_core.engines.transformers.native.tower import take_tower
from llava_core.engines.transformers.native.weights import Packed, take_weights, unsuited

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """A model whose layers the kernel computes from now on."""

    model: PreTrainedModel
    library: ctypes.CDLL
    packed: Packed

    def step(self) -> NativeStep:
        """Runs passes over regions of a `CpuAttention` that keeps bfloat16."""
        return NativeStep(self.model, self.library, self.packed)


def take_over(model: PreTrainedModel, wanted: Kernel) -> Taken | None:
    """None where the model stays with torch; the log says why."""
    if model.device.type != "cpu" or wanted == "off":
        return None
    reason = unsuited(model)
    if not reason:
        try:
            library = kernel()
            packed = take_weights(model, library)
            tower = take_tower(model, library)
        except NotBuilt as cause:
            reason = str(cause)
        else:
            also = " and its vision tower" if tower else ""
            words = "tiles" if library.has_tiles() else "vectors"
            log.info("%s%s is computed by a kernel built for this processor's %s", type(model).__name__, also, words)
            return Taken(model, library, packed)
    log.info(
        "%s is computed by torch, not by a kernel built for this processor, since %s", type(model).__name__, reason
    )
    return None
