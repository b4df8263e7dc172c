"""Loads a checkpoint for training and decides what learns: parts, adapters, precisions and rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from llava_core.checkpoints.deep_projector import with_projector
from llava_core.checkpoints.hub import read_config
from llava_core.checkpoints.placement import DTYPES, Placement
from llava_core.checkpoints.precision import Quantize
from llava_core.checkpoints.recognise import Recognised
from llava_core.errors import BadCheckpoint, BadRequest
from llava_core.train.dropout import ByteDropout
from llava_core.train.settings import Settings

Part = Literal["projector", "adapters", "language model", "vision tower"]
ADAPTER = "default"
_PLACES: tuple[tuple[str, Part], ...] = (
    ("model.multi_modal_projector.", "projector"),
    ("model.image_newline", "projector"),
    ("model.vision_tower.", "vision tower"),
)


@dataclass(frozen=True)
class Precision:
    """`compute` is what products are computed in, `frozen` what weights that do not learn are kept in."""

    name: Literal["bf16", "fp16", "fp32"]
    compute: torch.dtype
    frozen: torch.dtype


def choose_precision(asked: str, device: str) -> Precision:
    """bf16 where the device multiplies it fast, else fp32; BadRequest for what cannot be."""
    if asked == "auto":
        fast = torch.cuda.is_bf16_supported() if device == "cuda" else fast_bf16_cpu()
        asked = "bf16" if fast else "fp16" if device == "cuda" else "fp32"
    if asked == "fp16" and device == "cpu":
        raise BadRequest("--precision fp16 needs a GPU; on a CPU take bf16 or fp32", param="--precision")
    dtype = DTYPES[{"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[asked]]
    return Precision(asked, dtype, dtype)  # pyright: ignore[reportArgumentType]


def fast_bf16_cpu() -> bool:
    """Whether this CPU has a matrix unit for bfloat16; without one it is slower than float32."""
    probe: Any = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())


def load_model(found: Recognised, settings: Settings, precision: Precision, *, sharded: bool = False) -> Any:
    """The checkpoint with what learns in float32 and the rest as `precision` says. `sharded`: of one dtype
    throughout, as FSDP wants it. BadCheckpoint where its family is not trained here."""
    from llava_core.train.model import TRAINED

    cls = TRAINED.get(found.model_type) if found.kind == "hub" else None
    if cls is None:
        raise BadCheckpoint(
            f"{found.folder.name!r} ({found.model_type}) is not trained here; trained are {', '.join(TRAINED)} in "
            "llava-hf format. `python -m llava_core.checkpoints PATH --convert OUT` converts the original format, "
            "`python -m llava_core.train build` puts a new model together"
        )
    kept = torch.float32 if sharded else precision.frozen
    quantize: Quantize | None = "nf4" if settings.four_bit else None
    arguments = Placement(torch.device("cpu"), kept, quantize).load_arguments()
    if quantize is None or not torch.cuda.is_available():
        arguments.pop("device_map")
    else:
        arguments["device_map"] = {"": torch.cuda.current_device()}
    config = read_config(found)
    try:
        made = with_projector(cls, config)
        model: Any = made.from_pretrained(found.folder, config=config, trust_remote_code=False, **arguments)
    except Exception as cause:
        raise BadCheckpoint(f"the weights of {found.folder.name!r} cannot be loaded: {cause}") from cause
    model.config.use_cache = False
    _choose(model, settings)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model


def part_of(name: str) -> Part:
    """Which part a parameter belongs to, by its name."""
    if "lora_" in name:
        return "adapters"
    for start, part in _PLACES:
        if name.startswith(start):
            return part
    return "language model"


def rates(settings: Settings) -> dict[Part, float]:
    return {
        "projector": settings.projector_rate,
        "adapters": settings.lora_rate if settings.lora else 0.0,
        "language model": 0.0 if settings.lora else settings.llm_rate,
        "vision tower": settings.tower_rate,
    }


def learning(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def counts(model: nn.Module) -> dict[Part, int]:
    """How many numbers learn in each part."""
    found: dict[Part, int] = {}
    for name, weight in learning(model):
        found[part_of(name)] = found.get(part_of(name), 0) + weight.numel()
    return found


def parameter_groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """For the optimiser: a group per part and rate; what has one dimension does not decay."""
    groups: dict[tuple[Part, bool], list[nn.Parameter]] = {}
    for name, weight in learning(model):
        plain = name.removeprefix("module.").replace("_fsdp_wrapped_module.", "")
        groups.setdefault((part_of(plain), weight.ndim > 1), []).append(weight)
    rate: Mapping[Part, float] = rates(settings)
    return [
        {"params": weights, "lr": rate[part], "weight_decay": settings.weight_decay if decays else 0.0, "part": part}
        for (part, decays), weights in groups.items()
    ]


def _choose(model: Any, settings: Settings) -> None:
    model.requires_grad_(False)
    inner = model.model
    if settings.projector_rate:
        inner.multi_modal_projector.requires_grad_(True)
        if getattr(inner, "image_newline", None) is not None:
            inner.image_newline.requires_grad_(True)
        if model.config.projector_hidden_act == "linear":
            # One layer's worth of projector is kept in two, of which the second passes on what it is given.
            inner.multi_modal_projector.linear_2.requires_grad_(False)
    if settings.tower_rate:
        inner.vision_tower.requires_grad_(True)
    if settings.lora:
        _adapt(model, settings)
    elif settings.llm_rate:
        inner.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)


def _adapt(model: Any, settings: Settings) -> None:
    """Adapters on the linear layers of the language model, its output layer left out as in the original."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    start = "model.language_model."
    linear = [name for name, module in model.named_modules() if name.startswith(start) and _is_linear(module)]
    wanted = set(settings.lora_targets)
    targets = [name for name in linear if not wanted or name.rpartition(".")[2] in wanted]
    unknown = wanted - {name.rpartition(".")[2] for name in linear}
    if unknown or not targets:
        there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise BadRequest(f"--lora-targets {', '.join(sorted(unknown))}: not among this model's layers, {there}")
    learned = {name for name, weight in learning(model)}
    model.add_adapter(
        LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=targets,
            bias="none",
        ),
        ADAPTER,
    )
    if settings.lora_dropout and not torch.cuda.is_available():
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.lora_dropout[ADAPTER] = ByteDropout(settings.lora_dropout)
    # peft freezes all else.
    for name, weight in model.named_parameters():
        if name in learned:
            weight.requires_grad_(True)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)  # bitsandbytes' own are, too
