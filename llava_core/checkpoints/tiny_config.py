"""The configs and processor files of the tiny random checkpoints, shaped as on the hub, one set per family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTEXT_LENGTH = 4096

_HIDDEN = 64
_IMAGE = 56
_PATCH = 14
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.08,
}


def config_fields(family: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The config's fields, shaped as on the hub."""
    text = _text_config(family, tokenizer)
    token = tokenizer.convert_tokens_to_ids
    if family in ("llama", "qwen2"):
        return {"model_type": family, **text}
    if family == "llava":
        tower = {"model_type": "clip_vision_model", "image_size": _IMAGE, "patch_size": _PATCH, **_TOWER}
        return {
            "model_type": family,
            "vision_config": tower,
            "text_config": {"model_type": "llama", **text},
            "image_token_index": token("<image>"),
            "image_seq_length": (_IMAGE // _PATCH) ** 2,
        }
    if family == "llava_next":
        tower = {"model_type": "clip_vision_model", "image_size": _IMAGE, "patch_size": _PATCH, **_TOWER}
        return {
            "model_type": family,
            "vision_config": tower,
            "text_config": {"model_type": "llama", **text},
            "image_token_index": token("<image>"),
            "image_grid_pinpoints": _pinpoints(),
        }
    if family == "llava_onevision":
        tower = {"model_type": "siglip_vision_model", "image_size": _IMAGE, "patch_size": _PATCH, **_TOWER}
        return {
            "model_type": family,
            "vision_config": tower | {"vision_use_head": False},
            "text_config": {"model_type": "qwen2", **text},
            "image_token_index": token("<image>"),
            "video_token_index": token("<video>"),
            "image_grid_pinpoints": _pinpoints(),
        }
    if family == "internvl":
        return {
            "model_type": family,
            "vision_config": {"image_size": [_IMAGE, _IMAGE], "patch_size": [_PATCH, _PATCH], **_TOWER},
            "text_config": {"model_type": "qwen2", **text},
            "image_token_id": token("<IMG_CONTEXT>"),
            "image_seq_length": (_IMAGE // _PATCH // 2) ** 2,
            "tie_word_embeddings": False,
        }
    shared = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": _HIDDEN,
        "initializer_range": 0.08,
    }
    tower = (
        shared | {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [2]}
        if family == "qwen2_5_vl"
        else shared | {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    )
    return {
        "model_type": family,
        "vision_config": tower,
        "text_config": text,
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "tie_word_embeddings": False,
    }


def _text_config(family: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    fields: dict[str, Any] = {
        # Checkpoints round their vocabulary up; so an engine meets ids here that no token has.
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT_LENGTH,
        "initializer_range": 0.08,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    if family in ("qwen2_5_vl", "qwen3_vl"):
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
        if family == "qwen3_vl":
            fields["rope_parameters"]["mrope_interleaved"] = True
    return fields


def _pinpoints() -> list[list[int]]:
    """Height and width: two tiles in either direction, or four."""
    return [[_IMAGE, 2 * _IMAGE], [2 * _IMAGE, _IMAGE], [2 * _IMAGE, 2 * _IMAGE]]


def processor_files(family: str) -> dict[str, dict[str, Any]]:
    """`preprocessor_config.json` and `processor_config.json`, as they lie on the hub; none for text alone."""
    clip = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    square = {"height": _IMAGE, "width": _IMAGE}
    if family in ("llava", "llava_next"):
        return {
            "preprocessor_config.json": clip
            | {
                "image_processor_type": "LlavaNextImageProcessor" if family == "llava_next" else "CLIPImageProcessor",
                "processor_class": "LlavaNextProcessor" if family == "llava_next" else "LlavaProcessor",
                "size": {"shortest_edge": _IMAGE},
                "crop_size": square,
                "resample": 3,
                **({"image_grid_pinpoints": _pinpoints()} if family == "llava_next" else {}),
            },
            "processor_config.json": {
                "processor_class": "LlavaNextProcessor" if family == "llava_next" else "LlavaProcessor",
                "image_token": "<image>",
                "patch_size": _PATCH,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
        }
    if family == "llava_onevision":
        return {
            "preprocessor_config.json": half
            | {
                "image_processor_type": "LlavaOnevisionImageProcessor",
                "processor_class": "LlavaOnevisionProcessor",
                "size": square,
                "resample": 3,
                "do_pad": True,
                "image_grid_pinpoints": _pinpoints(),
            },
            "processor_config.json": {
                "processor_class": "LlavaOnevisionProcessor",
                "image_token": "<image>",
                "video_token": "<video>",
                "num_image_tokens": (_IMAGE // _PATCH) ** 2,
                "vision_aspect_ratio": "anyres_max_9",
                "vision_feature_select_strategy": "full",
            },
        }
    if family == "internvl":
        return {
            "preprocessor_config.json": clip
            | {
                "image_processor_type": "GotOcr2ImageProcessor",
                "processor_class": "InternVLProcessor",
                "crop_to_patches": True,
                "min_patches": 1,
                "max_patches": 4,
                "size": square,
                "resample": 3,
            },
            "processor_config.json": {
                "processor_class": "InternVLProcessor",
                "image_seq_length": (_IMAGE // _PATCH // 2) ** 2,
            },
        }
    if family in ("qwen2_5_vl", "qwen3_vl"):
        patch = 14 if family == "qwen2_5_vl" else 16
        name = "Qwen2_5_VLProcessor" if family == "qwen2_5_vl" else "Qwen3VLProcessor"
        return {
            "preprocessor_config.json": (clip if family == "qwen2_5_vl" else half)
            | {
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": name,
                "patch_size": patch,
                "merge_size": 2,
                "temporal_patch_size": 2,
                "size": {"shortest_edge": (2 * patch) ** 2 * 4, "longest_edge": (2 * patch) ** 2 * 64},
            },
            "processor_config.json": {"processor_class": name},
        }
    return {}
