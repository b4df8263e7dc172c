"""How a model is run, said for all models of a launch or for one, and the worker flags it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from llava_core.checkpoints.precision import one_quantize
from serve.engine_flags import batch_limits

WHOLE = "none"
"""For one model among quantised ones: its weights stay whole."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Named as the worker's flags are, which say what each means; None leaves the choice to the worker."""

    quantize: str | None = None
    max_running: int | None = None
    step_tokens: int | None = None
    kv_memory: str | None = None
    feature_memory: str | None = None
    picture_memory: str | None = None
    speculate: str | None = None
    share_between_owners: bool | None = None
    threads: int | None = None
    kernel: str | None = None


SETTINGS = tuple(field.name for field in fields(EngineSettings))


def setting_flags(one: EngineSettings, common: EngineSettings, *, kv_memory: str | None) -> Sequence[str]:
    """Words for a worker's command line: a model's own settings before those of all; `kv_memory` where neither says."""
    flags: list[str] = []
    for name in SETTINGS:
        own = getattr(one, name)
        value = getattr(common, name) if own is None else own
        if name == "kv_memory" and value is None:
            value = kv_memory
        if value is None or (name == "quantize" and value == WHOLE):
            continue
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(option if value else option.replace("--", "--no-", 1))
        else:
            flags += [option, str(value)]
    return flags


def check_settings(settings: EngineSettings) -> None:
    """What a worker would refuse, known before anything is started. Raises BadRequest."""
    if settings.quantize != WHOLE:
        one_quantize(settings.quantize)
    batch_limits(
        kv_memory=settings.kv_memory,
        feature_memory=settings.feature_memory,
        picture_memory=settings.picture_memory,
        speculate=settings.speculate,
        kernel=settings.kernel,
    )
