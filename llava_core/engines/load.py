"""Make the engine that was asked for by name; heavy imports happen only for the one that is chosen."""

from __future__ import annotations

from dataclasses import dataclass, field

from llava_core.checkpoints.precision import Quantize
from llava_core.config import BatchLimits, EngineLimits, ImageLimits
from llava_core.engines.base import Engine
from llava_core.errors import BadRequest

ENGINES = ("transformers", "echo")


@dataclass(frozen=True)
class EngineOptions:
    """What the command line says of a model. `device` and `dtype` "auto" let the engine choose and say what it took."""

    model_path: str | None = None
    model_base: str | None = None
    model_name: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: Quantize | None = None
    conv_template: str | None = None
    limits: EngineLimits = field(default_factory=EngineLimits)
    images: ImageLimits = field(default_factory=ImageLimits)
    batch: BatchLimits = field(default_factory=BatchLimits)
    echo_delay_s: float = 0.01
    """Between the words of the echo engine; `echo_first_s` passes before the first."""
    echo_first_s: float = 0.0


def load_engine(kind: str, options: EngineOptions) -> Engine:
    """Load the model behind the engine `kind`; slow and blocking for real checkpoints.

    Raises BadCheckpoint for a folder that cannot be loaded, BadRequest for an engine that does not exist.
    """
    if kind == "echo":
        from llava_core.engines.echo import EchoEngine

        return EchoEngine(
            options.model_name or "echo",
            images=options.images,
            limits=options.limits,
            delay_s=options.echo_delay_s,
            first_token_s=options.echo_first_s,
        )
    if kind == "transformers":
        from llava_core.engines.transformers.engine import load_transformers_engine

        return load_transformers_engine(options)
    raise BadRequest(f"no engine is called {kind!r}; there are: {', '.join(ENGINES)}", param="engine")
