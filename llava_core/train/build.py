"""Puts a LLaVA together from a vision tower and a language model, in llava-hf format, its projector still untrained."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from llava_core.checkpoints.deep_projector import (
    LOADS_ONLY_HERE,
    MOST_LAYERS,
    activation_of,
    is_deep,
    layers_of,
    with_projector,
)
from llava_core.checkpoints.jinja_template import chat_template
from llava_core.checkpoints.placement import DTYPES
from llava_core.checkpoints.tokens import NOTE_KEY, STOP_KEY
from llava_core.conversation import TemplateFacts, choose_template
from llava_core.errors import BadCheckpoint, BadRequest
from llava_core.train.chat_template import with_pictures
from llava_core.train.layout import disk_name, write_weights
from llava_core.train.tower import Tower, load_tower

IMAGE_MARK = "<image>"
UNTRAINED = "its projector is untrained: it has not learned to see yet"
_ROWS = 64
"""The vocabulary is filled up to a multiple of this, which matrix units like."""
Pictures = Literal["auto", "own", "pad", "anyres"]


@dataclass(frozen=True)
class Built:
    """Where it was written, and what it is made of, for people."""

    folder: Path
    facts: tuple[tuple[str, str], ...]


def build(
    tower: str,
    llm: str,
    out: Path,
    *,
    projector: str = "mlp2x_gelu",
    pictures: Pictures = "auto",
    layer: int | None = None,
    strategy: Literal["default", "full"] | None = None,
    dtype: str = "auto",
    conv_template: str | None = None,
    seed: int = 0,
    projector_weights: Mapping[str, torch.Tensor] | None = None,
) -> Built:
    """Write the checkpoint into the new folder `out`.

    `projector_weights` (`linear_1.weight`, …) start the projector elsewhere than at random. Raises BadRequest or
    BadCheckpoint with a sentence for what does not go together.
    """
    activation = _activation(projector)
    if out.exists() and any(out.iterdir()):
        raise BadRequest(f"{str(out)!r} is not empty; name a new folder to build into", param="--out")
    language, tokenizer = _load_language(llm)
    kept = language.dtype if dtype == "auto" else DTYPES.get(dtype)
    if kept is None:
        raise BadRequest(f"there is no dtype {dtype!r}; choose auto, {', '.join(DTYPES)}", param="--dtype")
    eye = load_tower(tower, pictures=pictures, layer=layer, strategy=strategy)
    template, stop = _template(tokenizer, language.config, conv_template)
    placeholder = _add_mark(tokenizer)
    _grow(language, max(len(tokenizer), placeholder + 1))
    config = _config(eye, language.config, placeholder, activation)
    model = _assemble(config, eye, language, seed=seed, projector_weights=projector_weights)
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write_config(config, model, kept, stop, unfinished)
    _write_processor(eye, tokenizer, template, unfinished)
    _write_generation(language, tokenizer, placeholder, unfinished)
    kind = str(eye.config.model_type)
    tensors = {disk_name(name, kind): tensor for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        tensors.pop(disk_name("lm_head.weight", kind))
    write_weights({name: tensor.to(kept).contiguous() for name, tensor in tensors.items()}, unfinished)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    unfinished.replace(out)
    return Built(out, _facts(eye, language, projector, model, template_name=stop or "the language model's own"))


def _activation(projector: str) -> str:
    layers = layers_of(projector)
    if layers is None:
        raise BadRequest(
            f"there is no projector {projector!r}; take linear, mlp2x_gelu, or mlp3x_gelu and so on up to "
            f"{MOST_LAYERS} layers, which LLaVA Serve alone loads",
            param="--projector",
        )
    return activation_of(layers)


def _load_language(llm: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llava_core.checkpoints.files import find_folder

    folder = find_folder(llm)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as cause:
        raise BadCheckpoint(f"{llm!r} is no causal language model that transformers loads: {cause}") from cause
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise BadCheckpoint(f"{llm!r} has no plain output layer without bias, which LLaVA's classes need")
    return model, tokenizer


def _template(tokenizer: Any, text: Any, asked: str | None) -> tuple[str, str | None]:
    """The chat template, and the string that ends its answers where that is no token."""
    given = tokenizer.chat_template
    if isinstance(given, dict):
        given = given.get("default")
    if given and not asked:
        return with_pictures(given, IMAGE_MARK), None
    facts = TemplateFacts(
        model_type=str(text.model_type),
        bases=(str(text._name_or_path),),
        chat_tokens=frozenset(tokenizer.get_added_vocab()),
        folder=Path(str(text._name_or_path)).name,
    )
    chosen, _ = choose_template(facts, asked)
    return chat_template(chosen, IMAGE_MARK), chosen.stop


def _add_mark(tokenizer: Any) -> int:
    from tokenizers import AddedToken

    if IMAGE_MARK not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_MARK, special=True, normalized=False)], special_tokens=True)
    return int(tokenizer.convert_tokens_to_ids(IMAGE_MARK))


def _grow(language: Any, needed: int) -> None:
    """Room for the picture's token. New rows are the mean of the others, so that they are never the likeliest word."""
    have = language.get_input_embeddings().weight.shape[0]
    if needed > have:
        language.resize_token_embeddings(math.ceil(needed / _ROWS) * _ROWS, mean_resizing=False)
        with torch.no_grad():
            for layer in (language.get_input_embeddings(), language.get_output_embeddings()):
                layer.weight[have:] = layer.weight[:have].float().mean(0).to(layer.weight.dtype)


def _config(eye: Tower, text: Any, placeholder: int, activation: str) -> Any:
    from transformers import LlavaConfig, LlavaNextConfig

    shared: dict[str, Any] = {
        "vision_config": eye.config,
        "text_config": text,
        "image_token_index": placeholder,
        "image_seq_length": eye.rows,
        "projector_hidden_act": activation,
        "vision_feature_layer": eye.layer,
        "vision_feature_select_strategy": eye.strategy,
        "tie_word_embeddings": bool(text.tie_word_embeddings),
    }
    if eye.pinpoints:
        return LlavaNextConfig(**shared, image_grid_pinpoints=[list(size) for size in eye.pinpoints])
    return LlavaConfig(**shared)


def _assemble(
    config: Any, eye: Tower, language: Any, *, seed: int, projector_weights: Mapping[str, torch.Tensor] | None
) -> Any:
    from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

    cls = LlavaNextForConditionalGeneration if eye.pinpoints else LlavaForConditionalGeneration
    with torch.device("meta"):
        model: Any = with_projector(cls, config)(config)
    inner = model.model
    inner.vision_tower = eye.model
    inner.language_model = language.base_model
    model.lm_head = language.get_output_embeddings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = inner.multi_modal_projector.to_empty(device="cpu").float()
        for layer in projector.children():
            if isinstance(layer, torch.nn.Linear):
                layer.reset_parameters()  # torch's own start, as in the original code
        if config.projector_hidden_act == "linear":
            torch.nn.init.eye_(projector.linear_2.weight)
            torch.nn.init.zeros_(projector.linear_2.bias)
        if eye.pinpoints:
            width = config.text_config.hidden_size
            inner.image_newline = torch.nn.Parameter(torch.randn(width) / math.sqrt(width))
    if projector_weights is not None:
        try:
            projector.load_state_dict(dict(projector_weights))
        except RuntimeError as cause:
            raise BadRequest(f"the projector's weights do not fit: {cause}") from cause
    return model


def _write_config(config: Any, model: Any, kept: torch.dtype, stop: str | None, out: Path) -> None:
    config.architectures = [type(model).__name__]
    config.dtype = kept
    config.save_pretrained(out)
    file = out / "config.json"
    content: dict[str, Any] = json.loads(file.read_text()) | {NOTE_KEY: UNTRAINED}
    if stop:
        content[STOP_KEY] = [stop]
    file.write_text(json.dumps(content, indent=2) + "\n")


def _write_processor(eye: Tower, tokenizer: Any, template: str, out: Path) -> None:
    from transformers import LlavaNextProcessor, LlavaProcessor

    tokenizer.chat_template = template
    tokenizer.init_kwargs.pop("chat_template", None)
    tokenizer.image_token = IMAGE_MARK
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    cls: Any = LlavaNextProcessor if eye.pinpoints else LlavaProcessor
    processor = cls(
        image_processor=eye.processor,
        tokenizer=tokenizer,
        patch_size=eye.processor_patch,
        vision_feature_select_strategy=eye.strategy,
        num_additional_image_tokens=eye.extra_rows,
        image_token=IMAGE_MARK,
        chat_template=template,
    )
    processor.save_pretrained(out)
    # Where transformers before 5, and other engines, look for it.
    eye.processor.save_pretrained(out)


def _write_generation(language: Any, tokenizer: Any, placeholder: int, out: Path) -> None:
    settings = language.generation_config
    settings.pad_token_id = tokenizer.pad_token_id
    if settings.eos_token_id is None:
        settings.eos_token_id = tokenizer.eos_token_id
    # A picture is never said.
    settings.suppress_tokens = [placeholder]
    settings.save_pretrained(out)


def _facts(eye: Tower, language: Any, projector: str, model: Any, *, template_name: str) -> tuple[tuple[str, str], ...]:
    def size(module: torch.nn.Module) -> str:
        count = sum(weight.numel() for weight in module.parameters())
        return f"{count / 1e6:.1f} M weights" if count >= 1e6 else f"{count:,} weights"

    shape = f"layer {eye.layer}, {eye.strategy}: {eye.rows} rows of {eye.width} a picture"
    facts = [
        ("vision tower", f"{eye.config.model_type}, {size(eye.model)}; {shape}"),
        ("projector", f"{projector}, {size(model.model.multi_modal_projector)}, untrained"),
        ("language model", f"{language.config.model_type}, {size(language)}"),
        ("pictures", eye.pictures),
        ("template", template_name),
    ]
    if is_deep(model.config):
        facts.append(("loads in", LOADS_ONLY_HERE))
    return tuple(facts)
