"""Tries a model before it serves: that packed attention gives what its own does, and that first calls are done."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedModel

from llava_core.checkpoints.base import LoadedCheckpoint, Prompt
from llava_core.engines.transformers.attention import AttentionBackend
from llava_core.engines.transformers.detokenize import Detokenizer
from llava_core.engines.transformers.sampler import Draw
from llava_core.engines.transformers.sequence import Sequence
from llava_core.engines.transformers.step import Runs, Step, Work
from llava_core.errors import BadCheckpoint
from llava_core.types import ImagePart, Request, Sampling, user

log = logging.getLogger(__name__)

_LENGTH = 24
_LEAST_LIKENESS = 0.98
"""Cosine between both logits; half precision stays above 0.999, another kind of attention far below."""


@torch.inference_mode()
def own_logits(model: PreTrainedModel) -> torch.Tensor:
    """What the model says after a few ids by its own attention; called before that is replaced."""
    output: Any = model(input_ids=torch.tensor([_ids(model)], device=model.device), use_cache=False)
    return output.logits[0, -1].float()


@torch.inference_mode()
def check_attention(
    model: PreTrainedModel, backend: AttentionBackend, own: torch.Tensor, step: Runs | None = None
) -> None:
    """Compute the same ids in two chunks and a single token, through `step` if there is one of its own.

    BadCheckpoint where the model means something else."""
    sequence = trial(Prompt(tuple(_ids(model))))
    sequence.region = backend.allocate(_LENGTH + 1)
    if sequence.region is None:
        raise BadCheckpoint(f"no memory is left for the keys and values of {_LENGTH} tokens; free some, or use --dtype")
    step = step or Step(model, backend)
    logits = own
    try:
        for count in (_LENGTH // 2, _LENGTH - _LENGTH // 2 - 1, 1):
            logits = step.run([Work(sequence, count)])
            sequence.computed += count
    except NotImplementedError as cause:
        raise BadCheckpoint(f"{type(model).__name__} cannot be run in packed batches: {cause}") from cause
    finally:
        backend.release(sequence.region)
    likeness = float(F.cosine_similarity(logits[0].float(), own, dim=0))
    if not likeness >= _LEAST_LIKENESS:
        raise BadCheckpoint(
            f"{type(model).__name__} does not attend as packed batches assume (plain causal attention, likeness "
            f"{likeness:.3f}); serve it with another server and name its address to the controller"
        )


def warm_up(loaded: LoadedCheckpoint, backend: AttentionBackend, step: Runs | None = None) -> None:
    """Encode and prefill one small picture, so that the first person does not wait for libraries to set up.

    What goes wrong here goes wrong again with a real picture, where it is the request's own error.
    """
    if not loaded.info.accepts_images:
        return
    try:
        prompt = loaded.prompt((user(ImagePart("data:,"), "Hi"),), [Image.new("RGB", (64, 64), (128, 128, 128))])
        with torch.inference_mode():
            sequence = trial(prompt, loaded.positions(prompt))
            images = [placed.image for placed in prompt.images]
            features = loaded.encode(images)
            sequence.features = {image.key: rows for image, rows in zip(images, features, strict=True)}
            sequence.region = backend.allocate(len(prompt.ids))
            if sequence.region is None:
                return
            try:
                (step or Step(loaded.model, backend)).run([Work(sequence, len(prompt.ids))])
            finally:
                backend.release(sequence.region)
    except Exception:
        log.warning("a first picture could not be tried; requests with pictures may fail", exc_info=True)


def trial(prompt: Prompt, positions: torch.Tensor | None = None) -> Sequence:
    """A request of nobody."""
    request = Request("probe", (user("probe"),), Sampling(max_tokens=1))
    return Sequence(request, prompt, 1, Draw(request.sampling, frozenset()), Detokenizer(Tokenizer(BPE())), positions)


def _ids(model: PreTrainedModel) -> list[int]:
    """Ordinary ids: no placeholder stands among the low ones."""
    config: Any = model.config
    special = {getattr(config, name, None) for name in ("image_token_id", "image_token_index", "video_token_id")}
    vocabulary = model.config.get_text_config().vocab_size
    return [token for token in range(5, vocabulary) if token not in special][:_LENGTH]
