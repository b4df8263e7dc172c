"""Merge a LoRA adapter of the original format into a loaded LLaVA model, in place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llava_core.checkpoints.weights import read_tensors
from llava_core.errors import BadCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add the adapter's products to the language model's weights. BadCheckpoint where it does not fit."""
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import AutoModelForCausalLM

    files = [file for file in (folder / "adapter_model.safetensors", folder / "adapter_model.bin") if file.is_file()]
    tensors = read_tensors(files[:1])
    whole: Any = model
    # The adapter was trained around a bare language model: the same modules, seen as one.
    with torch.device("meta"):
        language: Any = AutoModelForCausalLM.from_config(whole.config.text_config)
    language.model = whole.model.language_model
    language.lm_head = whole.lm_head
    try:
        settings = PeftConfig.from_pretrained(str(folder))
        # The name of a base that is already in memory; peft would warn that it is another.
        settings.base_model_name_or_path = None
        adapted: Any = get_peft_model(language, settings)
        result: Any = set_peft_model_state_dict(adapted, tensors)
    except Exception as cause:
        raise BadCheckpoint(
            f"the LoRA adapter in {folder.name!r} does not fit its base ({type(cause).__name__}: {cause}); name the "
            "base it was trained on with --model-base"
        ) from cause
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        problems = [f"lacks {', '.join(missing[:5])}"] if missing else []
        if result.unexpected_keys:
            problems.append(f"has weights that belong nowhere: {', '.join(result.unexpected_keys[:5])}")
        raise BadCheckpoint(f"the LoRA adapter in {folder.name!r} {'; it '.join(problems)}")
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            _merge_exactly(layer)
    adapted.unload()
    return model


def _merge_exactly(layer: Any) -> None:
    """Add in float32 and round once to what the base is kept in, as the original's peft did; a layer at a time."""
    base = layer.get_base_layer()
    kept = base.weight.dtype
    base.to(torch.float32)
    layer.merge(safe_merge=True)
    base.to(kept)
