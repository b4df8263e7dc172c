"""Load checkpoints in transformers' own format: llava-hf and its kin, and text-only language models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llava_core.checkpoints import files
from llava_core.checkpoints.base import TokenFacts
from llava_core.checkpoints.deep_projector import is_deep, with_projector
from llava_core.checkpoints.hub_vision import FAMILIES, load_vision
from llava_core.checkpoints.images import ImageSide
from llava_core.checkpoints.loaded import Checkpoint
from llava_core.checkpoints.placement import Placement, Wish, place
from llava_core.checkpoints.prompting import Prompter
from llava_core.checkpoints.recognise import Recognised
from llava_core.checkpoints.tokens import STOP_KEY, answer_ends, context_length, model_info
from llava_core.conversation import TemplateFacts, choose_template
from llava_core.errors import BadCheckpoint, LlavaError, MissingDependency
from llava_core.types import assistant, user

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|position_ids)$")
_OWN_TOWER = "llava_seeing_tower"
_PROBE = "\ue000answer\ue001"


def read_config(found: Recognised) -> PreTrainedConfig:
    """The checkpoint's config as transformers reads it. BadCheckpoint for a model it does not know."""
    from transformers import AutoConfig

    _know_own_tower(found)
    try:
        return AutoConfig.from_pretrained(found.folder, trust_remote_code=False)
    except Exception as cause:
        own_code = " It brings code of its own, which is not run." if found.config.get("auto_map") else ""
        raise BadCheckpoint(
            f"config.json of {found.folder.name!r} (model_type {found.model_type!r}) cannot be used: {cause}."
            f"{own_code} Known are {', '.join(FAMILIES)} and text-only causal language models"
        ) from cause


def _know_own_tower(found: Recognised) -> None:
    """The built-in model's tower comes with this code; transformers learns of it where a checkpoint names it."""
    vision = found.config.get("vision_config")
    if isinstance(vision, dict) and vision.get("model_type") == _OWN_TOWER:
        from llava_core.builtin.tower import register_tower

        register_tower()


def empty_model(config: PreTrainedConfig, *, text_only: bool) -> PreTrainedModel:
    """The model without memory for its weights."""
    with torch.device("meta"):
        deep = _deep_class(config)
        return deep(config) if deep else _auto_class(text_only).from_config(config, trust_remote_code=False)


@dataclass(frozen=True)
class HubSide:
    """Everything of a checkpoint but the model itself. `stop` is the template's stop string, if it has one."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    vision: ImageSide | None
    prompter: Prompter
    template: str
    reason: str
    stop: str | None


def read_side(found: Recognised, conv_template: str | None = None) -> HubSide:
    """Read a checkpoint's config, tokenizer, processor and template. BadCheckpoint says what is wrong."""
    config: Any = read_config(found)
    text_only = found.kind == "text"
    vision = None if text_only else load_vision(found.folder, config)
    tokenizer = load_tokenizer(found.folder)
    image_token = None if text_only else str(tokenizer.convert_ids_to_tokens(config.image_token_id))
    prompter, template, reason, stop = _prompter(found, config, tokenizer, image_token, conv_template)
    return HubSide(config, tokenizer, vision, prompter, template, reason, stop)


def ends_of(found: Recognised, side: HubSide, generation: Any) -> tuple[frozenset[int], tuple[str, ...]]:
    """Token ids and strings that end this checkpoint's answers; `generation` is its generation config, if any."""
    text: Any = side.config.get_text_config()
    return answer_ends(
        side.tokenizer,
        [text.eos_token_id, generation and generation.eos_token_id, *_turn_end(side.tokenizer, side.prompter)],
        side.stop,
        *(found.config.get(STOP_KEY) or ()),
        *((generation and generation.stop_strings) or ()),
    )


def load_hub(found: Recognised, wish: Wish, *, name: str, conv_template: str | None = None) -> Checkpoint:
    """Read a checkpoint into memory."""
    side = read_side(found, conv_template)
    config: Any = side.config
    text_only = found.kind == "text"
    placement = place(wish, empty_model(config, text_only=text_only), saved_dtype=_saved_dtype(config))
    model = _load_model(found, config, placement, text_only)
    text = config.get_text_config()
    ends, stops = ends_of(found, side, model.generation_config)
    marks = (getattr(config, key, None) for key in ("image_token_id", "video_token_id"))
    never = frozenset(int(mark) for mark in marks if mark is not None)
    return Checkpoint(
        model=model,
        tokenizer=side.tokenizer,
        facts=TokenFacts(ends, None if text_only else int(config.image_token_id), stops, never),
        info=model_info(
            name,
            found.config,
            placement,
            context=context_length(text, found.config),
            template=side.template,
            reason=side.reason,
            images=not text_only,
        ),
        prompter=side.prompter,
        vision=side.vision,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. BadCheckpoint where it is missing or damaged."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as cause:
        raise BadCheckpoint(
            f"the tokenizer of {folder.name!r} cannot be read ({type(cause).__name__}: {cause}); fetch tokenizer.json "
            "and tokenizer_config.json, or tokenizer.model"
        ) from cause


def find_chat_template(folder: Path, tokenizer: Any) -> tuple[str, str] | None:
    """The checkpoint's own chat template and the file it stands in."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8"), "chat_template.jinja"
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file():
            given = files.read_json(folder / name).get("chat_template")
            if isinstance(given, str):
                return given, name
    given = tokenizer.chat_template
    if isinstance(given, dict):
        given = given.get("default")
    return (given, "tokenizer_config.json") if isinstance(given, str) else None


def _prompter(
    found: Recognised, config: Any, tokenizer: Any, image_token: str | None, conv_template: str | None
) -> tuple[Prompter, str, str, str | None]:
    """The prompter, the template's name, the reason for it, and its stop string if it has one."""
    own = None if conv_template else find_chat_template(found.folder, tokenizer)
    if own:
        source, file = own
        wrap = ("", "") if image_token is None else FAMILIES[config.model_type].wrap
        prompter = Prompter.for_chat_template(
            tokenizer,
            source,
            image_token=image_token,
            placeholder_id=None if image_token is None else int(config.image_token_id),
            image_wrap=wrap,
        )
        return prompter, "chat template", f"the checkpoint brings its own, in {file}", None
    text = config.get_text_config()
    facts = TemplateFacts(
        model_type=str(text.model_type),
        bases=tuple(str(base) for base in (found.config.get("_name_or_path"),) if base),
        chat_tokens=frozenset(tokenizer.get_added_vocab()),
        folder=found.folder.resolve().name,
    )
    template, reason = choose_template(facts, conv_template)
    placeholder = None if image_token is None else int(config.image_token_id)
    return Prompter.for_template(tokenizer, template, placeholder_id=placeholder), template.name, reason, template.stop


def _turn_end(tokenizer: Any, prompter: Prompter) -> list[int]:
    """The special token that the template writes after an answer; not every generation_config names it."""
    try:
        text = prompter.tokenize([user("Hello"), assistant(_PROBE), user("Hello")], []).text
    except LlavaError:  # a template that takes no such chat says nothing about ends
        return []
    after = text.partition(_PROBE)[2].lstrip()
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    found = max((token for token in special if after.startswith(token)), key=len, default=None)
    return [] if found is None else [int(tokenizer.convert_tokens_to_ids(found))]


def _saved_dtype(config: Any) -> str:
    return str(getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)).removeprefix(
        "torch."
    )


def _auto_class(text_only: bool) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForCausalLM if text_only else AutoModelForImageTextToText


def _deep_class(config: Any) -> Any:
    """The class for a projector that transformers' own has no place for; None where it has."""
    if not is_deep(config):
        return None
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    known: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return with_projector(known[type(config)], config)


def _load_model(found: Recognised, config: PreTrainedConfig, placement: Placement, text_only: bool) -> PreTrainedModel:
    arguments = placement.load_arguments()
    try:
        model, report = (_deep_class(config) or _auto_class(text_only)).from_pretrained(
            found.folder,
            config=config,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **arguments,
        )
    except ImportError as cause:
        raise MissingDependency(f"{found.folder.name!r} needs a package that is not installed: {cause}") from cause
    except torch.OutOfMemoryError:
        raise
    except Exception as cause:
        raise BadCheckpoint(f"the weights of {found.folder.name!r} cannot be loaded: {cause}") from cause
    problems = [
        f"{words}: {', '.join(listed[:6])}" + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
        for words, keys in (
            ("it lacks", report["missing_keys"]),
            ("it has weights that belong nowhere", report["unexpected_keys"]),
            ("of another shape than config.json says", report["mismatched_keys"]),
        )
        if (listed := sorted(name for name in map(_name_and_shape, keys) if not _COMPUTED.search(name)))
    ]
    if problems:
        raise BadCheckpoint(f"the weights of {found.folder.name!r} do not fit its config.json; {'; '.join(problems)}")
    return model.eval()


def _name_and_shape(key: Any) -> str:
    """A misshapen weight is reported with its shape in the file and in the model."""
    return key if isinstance(key, str) else f"{key[0]} ({tuple(key[1])}, not {tuple(key[2])})"
