"""The weights of an original-format checkpoint under transformers' names, each accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llava_core.checkpoints import files
from llava_core.checkpoints.deep_projector import MOST_LAYERS
from llava_core.checkpoints.original_config import OriginalConfig
from llava_core.checkpoints.recognise import Recognised
from llava_core.checkpoints.weights import read_tensors
from llava_core.errors import BadCheckpoint

Tensors = dict[str, torch.Tensor]

EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
_TOWER = "model.vision_tower."
_PROJECTOR = "model.multi_modal_projector."

# Buffers that older transformers wrote and newer ones compute.
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")
_RENAMED = (
    (re.compile(r"^(?:model\.)?mm_projector\.(weight|bias)$"), _PROJECTOR + r"linear_1.\1"),
    # The original counts the activations between them, too.
    *(
        (re.compile(rf"^(?:model\.)?mm_projector\.{2 * layer}\.(weight|bias)$"), rf"{_PROJECTOR}linear_{layer + 1}.\1")
        for layer in range(MOST_LAYERS)
    ),
    (re.compile(r"^model\.vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?(.+)$"), _TOWER + r"\1"),
    (re.compile(r"^(?:model\.)?image_newline$"), "model.image_newline"),
    (re.compile(r"^lm_head\.weight$"), HEAD),
    (re.compile(r"^model\.(?!language_model\.)(.+)$"), r"model.language_model.\1"),
)


@dataclass(frozen=True)
class OriginalFiles:
    """Tensors as the files name them: the checkpoint's own over its base's, and the base's folder."""

    tensors: Tensors
    base: Path | None
    """Where tokenizer and language model come from, when not from the checkpoint itself."""


def read_original_files(found: Recognised) -> OriginalFiles:
    """Read a checkpoint and, where it needs one, its base. BadCheckpoint where the base is missing or no base."""
    if found.kind == "original":
        return OriginalFiles(read_tensors(found.weights), None)
    base = base_folder(found)
    tensors = read_tensors(files.weight_files(base))
    name = "mm_projector.bin" if found.kind == "projector" else "non_lora_trainables.bin"
    own = read_tensors([found.folder / name])
    return OriginalFiles(tensors | {_without_wrapping(key): value for key, value in own.items()}, base)


def base_folder(found: Recognised) -> Path:
    """The folder of the language model a projector or adapter stands on."""
    if not found.base:
        raise BadCheckpoint(
            f"{found.folder.name!r} is only a {'projector' if found.kind == 'projector' else 'LoRA adapter'}; name "
            "the language model it belongs to with --model-base"
        )
    try:
        folder = files.find_folder(found.base, beside=found.folder)
    except BadCheckpoint as cause:
        raise BadCheckpoint(
            f"{found.folder.name!r} stands on the language model {found.base!r}, which is not here ({cause}); name "
            "its folder with --model-base"
        ) from cause
    if not files.weight_files(folder):
        raise BadCheckpoint(
            f"the base {found.base!r} of {found.folder.name!r} has no weights: {files.found_in(folder)}"
        )
    return folder


def _without_wrapping(name: str) -> str:
    """`base_model.model.model.x` and `model.model.x`, as peft's wrappers leave names, to `model.x`."""
    name = name.removeprefix("base_model.")
    return name.removeprefix("model.") if name.startswith(("model.model.", "model.lm_head.")) else name


def read_tower(folder: Path) -> Tensors:
    """Weights of a separate vision tower, a whole CLIP's text side left behind."""
    tensors = read_tensors(files.weight_files(folder))
    whole = any(name.startswith("text_model.") for name in tensors)
    return {
        _TOWER + name.removeprefix("vision_model."): tensor
        for name, tensor in tensors.items()
        if not _COMPUTED.search(name) and (name.startswith("vision_model.") or not whole)
    }


def has_tower(tensors: Mapping[str, torch.Tensor]) -> bool:
    return any(name.startswith("model.vision_tower.") for name in tensors)


def rename(tensors: Tensors) -> Tensors:
    """Tensors under transformers' names. Names nobody knows stay as they are, to be found left over."""
    renamed: Tensors = {}
    names: dict[str, str] = {}
    for name, tensor in tensors.items():
        if _COMPUTED.search(name):
            continue
        new = next((pattern.sub(target, name) for pattern, target in _RENAMED if pattern.match(name)), name)
        if new in renamed:
            raise BadCheckpoint(f"the checkpoint holds {name!r} twice, also as {names[new]!r}")
        renamed[new] = tensor
        names[new] = name
    return renamed


def complete(tensors: Tensors, config: OriginalConfig, *, vocabulary: int) -> None:
    """Add, in place, what transformers' classes have and the original lacks, and nothing that would hide a loss.

    `vocabulary` is the number of rows the model gets. Rows beyond the checkpoint's are the mean of the others:
    the logit of such a row is the mean logit, which never wins.
    """
    if config.text.tie_word_embeddings and HEAD not in tensors and EMBEDDING in tensors:
        tensors[HEAD] = tensors[EMBEDDING]
    for name in (EMBEDDING, HEAD):
        if name in tensors and tensors[name].ndim == 2 and tensors[name].shape[0] < vocabulary:
            rows = tensors[name]
            mean = rows.float().mean(0, keepdim=True).to(rows.dtype)
            tensors[name] = torch.cat((rows, mean.expand(vocabulary - rows.shape[0], -1)))
    # An identity after, or instead of, the projector's one layer changes no bit.
    size = int(config.text.hidden_size)
    for layer in ("linear_1", "linear_2")[config.projector_depth :]:
        for name, value in (("weight", torch.eye(size)), ("bias", torch.zeros(size))):
            if tensors.setdefault(f"{_PROJECTOR}{layer}.{name}", value) is not value:
                raise BadCheckpoint(
                    f"the checkpoint has {original_name(f'{_PROJECTOR}{layer}.{name}')}, but the mm_projector_type in "
                    "its config.json has no such layer"
                )


def original_name(name: str) -> str:
    """What the original format calls a weight of transformers' classes."""
    for ours, theirs in _BACK:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


_BACK = (
    *((f"{_PROJECTOR}linear_{layer + 1}.", f"model.mm_projector.{2 * layer}.") for layer in range(MOST_LAYERS)),
    (_TOWER, "model.vision_tower.vision_tower.vision_model."),
    ("model.language_model.", "model."),
)
