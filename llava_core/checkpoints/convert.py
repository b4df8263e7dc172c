"""Write an original-format checkpoint in llava-hf format, which plain transformers, vLLM and others load."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict

from llava_core.checkpoints import original_weights as named
from llava_core.checkpoints.converted_tokenizer import converted_tokenizer
from llava_core.checkpoints.deep_projector import LOADS_ONLY_HERE
from llava_core.checkpoints.jinja_template import chat_template
from llava_core.checkpoints.original import IMAGE_WRAP, OriginalParts, load_model, read_original
from llava_core.checkpoints.original_vision import load_processor
from llava_core.checkpoints.placement import Placement
from llava_core.checkpoints.prompting import IMAGE_MARK
from llava_core.checkpoints.recognise import Recognised
from llava_core.checkpoints.tokens import NOTE_KEY, STOP_KEY, answer_ends
from llava_core.errors import BadCheckpoint

# The names of the hub's llava-hf repositories; transformers renames them while loading, others expect them so.
_HUB_NAMES = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
)


@dataclass(frozen=True)
class Converted:
    """Where it was written, and what plain transformers will do otherwise than the original."""

    folder: Path
    differences: tuple[str, ...]


def convert(found: Recognised, out: Path, *, conv_template: str | None = None) -> Converted:
    """Write `found` into the folder `out`, in the precision it is kept in. BadCheckpoint where that cannot be."""
    if found.kind in ("hub", "text"):
        raise BadCheckpoint(f"{found.folder.name!r} is in transformers' format already; there is nothing to convert")
    if out.exists() and any(out.iterdir()):
        raise BadCheckpoint(f"{str(out)!r} is not empty; name a new folder to write into")
    parts = read_original(found, conv_template=conv_template)
    if parts.config.aspect == "anyres" and parts.config.merge != "spatial_unpad":
        raise BadCheckpoint(
            f"{found.folder.name!r} packs its tiles {parts.config.merge!r}; llava-hf knows 'spatial_unpad' only"
        )
    kept = parts.tensors[named.EMBEDDING].dtype
    model: Any = load_model(parts, Placement(torch.device("cpu"), kept))
    # Under another name until it is whole, so that a conversion cut short is not taken for a checkpoint.
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write_config(parts, model, kept, unfinished)
    _write_processor(parts, unfinished)
    save_torch_state_dict({_hub_name(name): tensor for name, tensor in model.state_dict().items()}, unfinished)
    for weights in unfinished.glob("*.safetensors"):  # written for the owner alone
        weights.chmod((unfinished / "config.json").stat().st_mode)
    unfinished.replace(out)
    return Converted(out, _differences(parts))


def _hub_name(name: str) -> str:
    return next((theirs + name.removeprefix(ours) for ours, theirs in _HUB_NAMES if name.startswith(ours)), name)


def _write_config(parts: OriginalParts, model: Any, kept: torch.dtype, out: Path) -> None:
    config = parts.model_config
    config.architectures = [type(model).__name__]
    config.dtype = kept
    config.save_pretrained(out)
    tokenizer = parts.tokenizer.tokenizer
    ends, strings = answer_ends(tokenizer, [parts.found.config.get("eos_token_id")], parts.template.stop)
    # transformers keeps keys it does not know. In generation_config.json stop strings would break a plain generate().
    ours = {NOTE_KEY: parts.found.config.get(NOTE_KEY), STOP_KEY: list(strings)}
    file = out / "config.json"
    content = json.loads(file.read_text()) | {key: value for key, value in ours.items() if value}
    file.write_text(json.dumps(content, indent=2) + "\n")
    settings = model.generation_config
    settings.bos_token_id = tokenizer.bos_token_id
    settings.eos_token_id = sorted(ends)
    settings.pad_token_id = tokenizer.unk_token_id or 0
    # Rows that no token has, the picture's among them, were never trained.
    settings.suppress_tokens = sorted(parts.vocabulary.never_said)
    settings.save_pretrained(out)


def _write_processor(parts: OriginalParts, out: Path) -> None:
    config = parts.config
    image = IMAGE_MARK.join(IMAGE_WRAP) if config.start_end_tokens else IMAGE_MARK
    template = chat_template(parts.template, image)
    tokenizer = converted_tokenizer(parts.tokenizer, parts.vocabulary.placeholder, template)
    anyres = config.merge == "spatial_unpad"
    processor_class = _processor_class(anyres)
    processor = processor_class(
        image_processor=_image_processor(parts, anyres),
        tokenizer=tokenizer,
        patch_size=config.vision.patch_size,
        vision_feature_select_strategy="full" if config.keeps_class_token else "default",
        num_additional_image_tokens=1,
        image_token=IMAGE_MARK,
        chat_template=template,
    )
    processor.save_pretrained(out)
    # Where transformers before 5, and other engines, look for it.
    processor.image_processor.save_pretrained(out)
    file = out / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    file.write_text(json.dumps(settings, indent=2) + "\n")


def _processor_class(anyres: bool) -> Any:
    from transformers import LlavaNextProcessor, LlavaProcessor

    return LlavaNextProcessor if anyres else LlavaProcessor


def _image_processor(parts: OriginalParts, anyres: bool) -> Any:
    from transformers import LlavaImageProcessorPil, LlavaNextImageProcessorPil

    clip = load_processor(parts.config.vision)
    settings: dict[str, Any] = {
        key: getattr(clip, key)
        for key in ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")
    }
    if not anyres:
        return LlavaImageProcessorPil(**settings, do_pad=parts.config.aspect == "pad")
    pinpoints = parts.model_config.image_grid_pinpoints  # pyright: ignore[reportAttributeAccessIssue]
    return LlavaNextImageProcessorPil(**settings, image_grid_pinpoints=pinpoints)


def _differences(parts: OriginalParts) -> tuple[str, ...]:
    found: list[str] = []
    stop = parts.template.stop
    _, strings = answer_ends(parts.tokenizer.tokenizer, [], stop)
    if strings:
        found.append(
            f"answers end at {stop!r}, which is no token: pass stop_strings=[{stop!r}] and tokenizer=… to generate()"
        )
    if parts.config.projector_depth > 2:
        found.append(f"its projector has {parts.config.projector_depth} layers. {LOADS_ONLY_HERE}")
    if parts.config.aspect == "anyres":
        found.append(
            "llava-hf rounds when it takes padding off: about one picture size in 20,000 gets a row of tokens more or "
            "less than in the original"
        )
    if parts.tokenizer.prefix == "own":
        found.append(
            "the text between pictures is tokenised as a whole, not piece by piece; with this tokenizer ids next to a "
            "picture may differ where words start there"
        )
    return tuple(found)
