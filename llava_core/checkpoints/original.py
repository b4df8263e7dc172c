"""Load checkpoints in the original LLaVA formats into transformers' LLaVA classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from llava_core.checkpoints import original_weights as named
from llava_core.checkpoints.base import TokenFacts
from llava_core.checkpoints.deep_projector import activation_of, with_projector
from llava_core.checkpoints.loaded import Checkpoint
from llava_core.checkpoints.lora import merge_adapter
from llava_core.checkpoints.original_config import OriginalConfig, read_original_config
from llava_core.checkpoints.original_tokenizer import OriginalTokenizer, load_original_tokenizer
from llava_core.checkpoints.original_vision import OriginalVision, load_processor
from llava_core.checkpoints.placement import Placement, Wish, place
from llava_core.checkpoints.prompting import Prompter
from llava_core.checkpoints.recognise import Recognised
from llava_core.checkpoints.tokens import answer_ends, context_length, model_info
from llava_core.checkpoints.weights import check_complete
from llava_core.conversation import Template, TemplateFacts, choose_template
from llava_core.errors import BadCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# A matrix whose rows come in such groups is faster on GPUs, and llava-hf pads its vocabulary the same way.
_ROWS_IN_GROUPS_OF = 64
IMAGE_WRAP = ("<im_start>", "<im_end>")
_PATCH = "<im_patch>"


@dataclass(frozen=True)
class Vocabulary:
    """Rows of the embedding: `trained` ones a model may say, then those no text has, the picture's `placeholder`
    (the first that no token of the tokenizer has) among them."""

    trained: int
    placeholder: int
    rows: int

    @property
    def never_said(self) -> frozenset[int]:
        return frozenset(range(self.trained, self.rows))


@dataclass(frozen=True)
class OriginalParts:
    """Everything of an original checkpoint but the model itself; enough to describe it."""

    found: Recognised
    config: OriginalConfig
    tokenizer: OriginalTokenizer
    vocabulary: Vocabulary
    template: Template
    template_reason: str
    model_config: PreTrainedConfig
    tensors: named.Tensors

    @property
    def vision(self) -> OriginalVision:
        return OriginalVision(self.config, load_processor(self.config.vision))

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

        anyres = self.config.merge == "spatial_unpad"
        cls = LlavaNextForConditionalGeneration if anyres else LlavaForConditionalGeneration
        return with_projector(cls, self.model_config)

    @property
    def context_length(self) -> int:
        return context_length(self.config.text, self.found.config)

    def empty_model(self) -> PreTrainedModel:
        """The model without memory for its weights."""
        with torch.device("meta"):
            return self.model_class(self.model_config)


def read_original(found: Recognised, *, conv_template: str | None = None) -> OriginalParts:
    """Read and check a checkpoint; weights are mapped, not yet copied. BadCheckpoint says what is wrong."""
    source = named.read_original_files(found)
    inside = named.has_tower(source.tensors)
    config = read_original_config(found.folder, found.config, tower_inside=inside)
    tensors = named.rename(source.tensors)
    if not inside:
        if config.vision.folder is None:
            raise BadCheckpoint(f"{found.folder.name!r} needs the weights of its vision tower {config.vision.name!r}")
        tensors |= named.read_tower(config.vision.folder)
    # The original loads only full checkpoints of Mistral through the fast tokenizer, bases never.
    tokenizer = load_original_tokenizer(
        source.base or found.folder, model_type="llava_llama" if source.base else found.model_type
    )
    _add_image_tokens(tokenizer.tokenizer, config)
    vocabulary = _vocabulary(found, tensors, len(tokenizer.tokenizer))
    config.text.vocab_size = vocabulary.rows
    named.complete(tensors, config, vocabulary=vocabulary.rows)
    template, reason = choose_template(_template_facts(found, config, tokenizer.tokenizer), conv_template)
    parts = OriginalParts(
        found, config, tokenizer, vocabulary, template, reason, _model_config(config, vocabulary), tensors
    )
    wanted = {name: tensor.shape for name, tensor in parts.empty_model().state_dict().items()}
    check_complete(tensors, wanted, what=f"{found.folder.name!r}", in_files=named.original_name)
    return parts


def load_original(found: Recognised, wish: Wish, *, name: str, conv_template: str | None = None) -> Checkpoint:
    """Read a checkpoint into memory, LoRA adapters merged."""
    parts = read_original(found, conv_template=conv_template)
    placement = place(wish, parts.empty_model(), saved_dtype=str(found.config.get("torch_dtype")))
    model = load_model(parts, placement)
    model.generation_config.pad_token_id = parts.tokenizer.tokenizer.pad_token_id or 0
    config = parts.config
    prompter = Prompter.for_template(
        parts.tokenizer.tokenizer,
        parts.template,
        placeholder_id=parts.vocabulary.placeholder,
        prefix=parts.tokenizer.prefix,
        image_wrap=IMAGE_WRAP if config.start_end_tokens else ("", ""),
    )
    ends, stops = answer_ends(parts.tokenizer.tokenizer, [found.config.get("eos_token_id")], parts.template.stop)
    return Checkpoint(
        model=model,
        tokenizer=parts.tokenizer.tokenizer,
        facts=TokenFacts(ends, parts.vocabulary.placeholder, stops, parts.vocabulary.never_said),
        info=model_info(
            name,
            found.config,
            placement,
            context=parts.context_length,
            template=parts.template.name,
            reason=parts.template_reason,
            images=True,
        ),
        prompter=prompter,
        vision=parts.vision,
    )


def load_model(parts: OriginalParts, placement: Placement) -> PreTrainedModel:
    """The model with its weights, adapter merged, ready to run."""

    def load(tensors: named.Tensors, where: Placement) -> PreTrainedModel:
        loaded: Any = parts.model_class.from_pretrained(
            None, config=parts.model_config, state_dict=tensors, **where.load_arguments()
        )
        return loaded.eval()

    if parts.found.kind != "lora":
        return load(parts.tensors, placement)
    # Merged in the precision the base is kept in, as the original does; then brought to what was asked for.
    kept = parts.tensors[named.EMBEDDING].dtype
    where = torch.device("cpu") if placement.quantize else placement.device
    merged = merge_adapter(
        load(parts.tensors, replace(placement, device=where, dtype=kept, quantize=None)), parts.found.folder
    )
    return load(merged.state_dict(), placement) if placement.quantize else merged.to(placement.dtype)  # type: ignore[arg-type]


def _add_image_tokens(tokenizer: PreTrainedTokenizerBase, config: OriginalConfig) -> None:
    if config.patch_token:
        tokenizer.add_tokens([_PATCH], special_tokens=True)
    if config.start_end_tokens:
        tokenizer.add_tokens(list(IMAGE_WRAP), special_tokens=True)


def _vocabulary(found: Recognised, tensors: named.Tensors, tokens: int) -> Vocabulary:
    if named.EMBEDDING not in tensors:
        raise BadCheckpoint(f"{found.folder.name!r} lacks {named.original_name(named.EMBEDDING)}")
    given = tensors[named.EMBEDDING].shape[0]
    # The original cuts or grows the embedding to the tokenizer's size; grown rows hold noise, so they stay unsaid.
    rows = -(-max(given, tokens + 1) // _ROWS_IN_GROUPS_OF) * _ROWS_IN_GROUPS_OF
    return Vocabulary(min(given, tokens), tokens, rows)


def _template_facts(found: Recognised, config: OriginalConfig, tokenizer: Any) -> TemplateFacts:
    bases = (found.config.get("_name_or_path"), found.base)
    return TemplateFacts(
        model_type=found.model_type,
        bases=tuple(dict.fromkeys(str(base) for base in bases if base)),
        chat_tokens=frozenset(tokenizer.get_added_vocab()),
        start_end_tokens=config.start_end_tokens,
        folder=found.folder.resolve().name,
    )


def _model_config(config: OriginalConfig, vocabulary: Vocabulary) -> PreTrainedConfig:
    from transformers import LlavaConfig, LlavaNextConfig

    shared: dict[str, Any] = {
        "text_config": config.text,
        "vision_config": config.vision.config,
        "image_token_index": vocabulary.placeholder,
        "image_seq_length": config.tokens_per_tile,
        "projector_hidden_act": activation_of(config.projector_depth),
        "vision_feature_layer": config.select_layer,
        "vision_feature_select_strategy": "full" if config.keeps_class_token else "default",
        "tie_word_embeddings": bool(config.text.tie_word_embeddings),
    }
    if config.merge != "spatial_unpad":
        return LlavaConfig(**shared)
    # transformers reads (height, width) pairs, the original wrote (width, height).
    pinpoints = [[height, width] for width, height in config.resolutions]
    return LlavaNextConfig(**shared, image_grid_pinpoints=pinpoints)
