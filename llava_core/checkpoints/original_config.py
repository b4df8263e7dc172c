"""What the config.json of an original-format checkpoint says, checked and put into transformers' words."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llava_core.checkpoints import files
from llava_core.checkpoints.anyres import Grid
from llava_core.checkpoints.deep_projector import layers_of
from llava_core.errors import BadCheckpoint

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, PreTrainedConfig

Aspect = Literal["square", "pad", "anyres"]
Merge = Literal["flat", "spatial", "spatial_unpad"]

_LANGUAGE = {"llava_llama": "llama", "llava": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
_NOT_OF_THE_LANGUAGE_MODEL = re.compile(
    r"^(mm_|image_|tune_|freeze_|unfreeze_|use_mm|tokenizer_|_name_or_path$|model_type$|architectures$|auto_map$"
    r"|transformers_version$|torch_dtype$|dtype$|quantization_config$|vocab_size$|pretraining_tp$|llava_serve_note$)"
)
_L14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
# So that a checkpoint with its tower's weights inside loads without the tower's own repository.
_KNOWN_TOWERS: Mapping[str, Mapping[str, Any]] = {
    "openai/clip-vit-large-patch14": {**_L14, "image_size": 224},
    "openai/clip-vit-large-patch14-336": {**_L14, "image_size": 336},
}


@dataclass(frozen=True)
class VisionPart:
    """The vision tower: what it is and where its weights would be, if they are not in the checkpoint."""

    name: str
    config: CLIPVisionConfig
    folder: Path | None
    """None for a tower known by name whose files are not here."""

    @property
    def image_size(self) -> int:
        return _side(self.config.image_size)

    @property
    def patch_size(self) -> int:
        return _side(self.config.patch_size)


@dataclass(frozen=True)
class OriginalConfig:
    """One original-format checkpoint's settings, defaults of its code filled in."""

    text: PreTrainedConfig
    vision: VisionPart
    projector_depth: int
    """Linear layers in the projector: 0 (identity), 1 (`linear`), 2 (`mlp2x_gelu`) or more."""
    select_layer: int
    keeps_class_token: bool
    aspect: Aspect
    merge: Merge
    resolutions: tuple[tuple[int, int], ...]
    start_end_tokens: bool
    patch_token: bool

    @property
    def grid(self) -> Grid:
        return Grid(self.resolutions, self.vision.image_size, self.vision.patch_size)

    @property
    def tokens_per_tile(self) -> int:
        return self.grid.side**2 + self.keeps_class_token


def read_original_config(folder: Path, config: Mapping[str, Any], *, tower_inside: bool) -> OriginalConfig:
    """Understand `config`; `tower_inside` when the checkpoint holds the tower's weights. BadCheckpoint says what
    of it is not supported, or what to fetch."""
    name = folder.name
    if config.get("s2"):
        raise BadCheckpoint(f"{name!r} uses multi-scale S2 vision features, which are not supported")
    if config.get("mm_resampler_type"):
        raise BadCheckpoint(f"{name!r} has a {config['mm_resampler_type']!r} resampler, which is not supported")
    aspect, merge = _image_mode(name, config)
    return OriginalConfig(
        text=_text_config(name, config),
        vision=_vision(folder, config, tower_inside),
        projector_depth=_projector_depth(name, str(config.get("mm_projector_type", "linear"))),
        select_layer=int(config.get("mm_vision_select_layer", -2)),
        keeps_class_token=_one_of(name, config, "mm_vision_select_feature", "patch", ("patch", "cls_patch"))
        == "cls_patch",
        aspect=aspect,
        merge=merge,
        resolutions=_resolutions(name, config) if aspect == "anyres" else (),
        start_end_tokens=bool(config.get("mm_use_im_start_end", False)),
        patch_token=bool(config.get("mm_use_im_patch_token", True)),
    )


def _one_of(name: str, config: Mapping[str, Any], key: str, default: str, known: tuple[str, ...]) -> str:
    value = str(config.get(key) or default)
    if value not in known:
        raise BadCheckpoint(f"{name!r} has {key} {value!r}; supported are {', '.join(known)}")
    return value


def _image_mode(name: str, config: Mapping[str, Any]) -> tuple[Aspect, Merge]:
    aspect = _one_of(name, config, "image_aspect_ratio", "square", ("square", "pad", "anyres"))
    merge = _one_of(name, config, "mm_patch_merge_type", "flat", ("flat", "spatial", "spatial_unpad"))
    return aspect, merge if aspect == "anyres" else "flat"  # type: ignore[return-value]


def _resolutions(name: str, config: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    given: Any = config.get("image_grid_pinpoints")
    try:
        pairs = ast.literal_eval(given) if isinstance(given, str) else given
        found = tuple((int(width), int(height)) for width, height in pairs)
    except (ValueError, SyntaxError, TypeError):
        found = ()
    if not found:
        raise BadCheckpoint(
            f"{name!r} is any-res but its image_grid_pinpoints is {given!r}, not a list of (width, height) pairs"
        )
    return found


def _projector_depth(name: str, kind: str) -> int:
    depth = 0 if kind == "identity" else layers_of(kind)
    if depth is None:
        raise BadCheckpoint(
            f"{name!r} has a projector of type {kind!r}; supported are identity, linear, mlp2x_gelu, mlp3x_gelu and "
            "so on"
        )
    return depth


def _text_config(name: str, config: Mapping[str, Any]) -> PreTrainedConfig:
    from transformers import LlamaConfig, MistralConfig, Qwen2Config

    kinds = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
    model_type = str(config.get("model_type"))
    if model_type not in _LANGUAGE:
        raise BadCheckpoint(
            f"{name!r} is an original LLaVA checkpoint over a {model_type!r} language model, which is not supported; "
            f"supported are {', '.join(_LANGUAGE)}. If there is a llava-hf conversion of it, take that"
        )
    settings = {key: value for key, value in config.items() if not _NOT_OF_THE_LANGUAGE_MODEL.match(key)}
    try:
        return kinds[_LANGUAGE[model_type]](**settings)
    except Exception as cause:
        raise BadCheckpoint(f"config.json of {name!r} does not describe a language model: {cause}") from cause


def _vision(folder: Path, config: Mapping[str, Any], tower_inside: bool) -> VisionPart:
    named = config.get("mm_vision_tower")
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    if not isinstance(named, str):
        raise BadCheckpoint(f"config.json of {folder.name!r} names no vision tower (mm_vision_tower is {named!r})")
    known = _KNOWN_TOWERS.get(named)
    if tower_inside and known:
        return VisionPart(named, _clip_config(named, known), None)
    try:
        tower = files.find_folder(named, beside=folder)
    except BadCheckpoint as cause:
        raise BadCheckpoint(
            f"{folder.name!r} uses the vision tower {named!r}, which is not here; fetch it (config.json, "
            f"preprocessor_config.json and weights) into {str(folder.parent / Path(named).name)!r}, or once with "
            f"internet: `hf download {named}`"
        ) from cause
    content = files.read_json(tower / "config.json")
    # A whole CLIP describes its tower inside; a tower saved alone is described at the top.
    content = content.get("vision_config", content) if content.get("model_type") == "clip" else content
    if content.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise BadCheckpoint(
            f"{folder.name!r} uses the vision tower {named!r}, a {content.get('model_type')!r}; of the original "
            "format only CLIP towers are supported. If there is a llava-hf conversion of it, take that"
        )
    return VisionPart(named, _clip_config(named, content), tower)


def _side(size: Any) -> int:
    """CLIP's sides are equal; newer configs may write them as a pair."""
    return int(size[0] if isinstance(size, list | tuple) else size)


def _clip_config(name: str, content: Mapping[str, Any]) -> CLIPVisionConfig:
    from transformers import CLIPVisionConfig

    skip = ("model_type", "architectures", "torch_dtype", "transformers_version", "_name_or_path")
    try:
        return CLIPVisionConfig(**{key: value for key, value in content.items() if key not in skip})
    except Exception as cause:
        raise BadCheckpoint(
            f"config.json of the vision tower {name!r} does not describe a CLIP tower: {cause}"
        ) from cause
