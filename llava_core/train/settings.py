"""Settings of a training run: the stage's recipe, then a TOML file, then flags, the later winning.

One table says name, kind, meaning and default of each; the TOML keys, the flags and their help come from it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_core.errors import BadRequest
from llava_core.train.recipes import RECIPES, Recipe, Stage

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
PATHS = ("model", "data", "out", "images", "eval_data", "cache")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "template": ("plain", "chat"),
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "schedule": ("cosine", "linear", "constant", "constant_with_warmup"),
}


def _set(default: Any, words: str) -> Any:
    return field(default=default, metadata={"help": words})


@dataclass(frozen=True)
class Settings:
    """Complete and checked: building one with a wrong value raises BadRequest."""

    stage: Stage
    model: str = _set("", "The checkpoint to train, in llava-hf format; `build` makes one.")
    data: tuple[str, ...] = _set((), "Samples: LLaVA's JSON, JSONL, a folder, or a Hugging Face dataset. Repeatable.")
    out: str = _set("", "Folder for the trained checkpoint; it holds the run's records, too.")
    images: str = _set("", "Folder that the samples' picture names are relative to; else the data's own.")
    eval_data: tuple[str, ...] = _set((), "Held-out samples, in any form that --data takes. Repeatable.")

    template: str = _set("chat", "plain: the picture, then its caption (stage 1); chat: as the model is served.")
    projector_rate: float = _set(0.0, "Learning rate of the projector; 0 freezes it.")
    llm_rate: float = _set(0.0, "Learning rate of the language model; 0 freezes it.")
    tower_rate: float = _set(0.0, "Learning rate of the vision tower; 0 freezes it.")
    lora: bool = _set(False, "Train adapters in the language model instead of the model itself.")
    lora_rate: float = _set(0.0, "Learning rate of the adapters.")
    lora_rank: int = _set(128, "Rank of the adapters.")
    lora_alpha: int = _set(256, "Their products are scaled by alpha / rank.")
    lora_dropout: float = _set(0.05, "Dropout before the adapters.")
    lora_targets: tuple[str, ...] = _set((), "Layers that get adapters, as q_proj; all linear ones by default.")
    four_bit: bool = _set(False, "QLoRA: keep the language model in 4 bits under the adapters.")

    batch_size: int = _set(128, "Samples per step, over all devices.")
    micro_batch: int = _set(0, "Samples that go through the model at once; 0 chooses by their length.")
    epochs: float = _set(1.0, "Times that all samples are seen.")
    max_steps: int = _set(0, "End after this many steps instead; 0 goes by epochs.")
    schedule: str = _set("cosine", "How rates fall: cosine, linear, constant or constant_with_warmup.")
    warmup: float = _set(0.03, "Part of the steps in which rates rise.")
    weight_decay: float = _set(0.0, "Weight decay of AdamW.")
    max_grad_norm: float = _set(1.0, "Gradients are scaled down to this norm; 0 leaves them.")
    max_length: int = _set(2048, "Most tokens of a sample, its pictures' included.")
    pictures_first: bool = _set(True, "Put a picture that ends a question before it, as the page sends it.")
    skip_bad: bool = _set(False, "Leave out samples that the check finds wrong; else they stop the run.")

    precision: str = _set("auto", "auto, bf16, fp16 or fp32. What learns is kept in float32 all the same.")
    packing: bool = _set(True, "Samples of a micro-batch end to end, without padding; each sees only itself.")
    checkpoint_activations: bool = _set(False, "Compute activations twice instead of keeping them: less memory.")
    cache: str = _set("", "Folder for features of a frozen tower, `off` for none; by default inside the run's.")
    workers: int = _set(0, "Processes that load samples ahead.")

    log_every: int = _set(1, "Steps between two lines of the log.")
    eval_every: int = _set(0, "Steps between evaluations; 0 evaluates ten times a run.")
    save_every: int = _set(0, "Steps between saved states; 0 saves ten times a run.")
    keep: int = _set(2, "Saved states that are kept.")
    samples: int = _set(4, "Held-out questions that are answered at each evaluation.")
    answer_tokens: int = _set(64, "Longest of those answers.")
    seed: int = _set(0, "Seed of order, dropout and new weights.")
    tensorboard: bool = _set(True, "Write TensorBoard's event files.")
    wandb: bool = _set(False, "Also send figures to Weights & Biases (pip install wandb).")

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise _bad(name, f"must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int | float) and not value >= 0:
                raise _bad(each.name, f"must not be negative, but is {value}")
        for name in ("batch_size", "max_length", "log_every", "keep", "answer_tokens", "lora_rank"):
            if getattr(self, name) < 1:
                raise _bad(name, f"must be at least 1, not {getattr(self, name)}")
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise _bad("micro_batch", f"{self.micro_batch} does not divide the batch size, {self.batch_size}")
        if self.warmup > 1 or self.lora_dropout >= 1:
            raise _bad("warmup" if self.warmup > 1 else "lora_dropout", "is a part of one, such as 0.03")
        if self.four_bit and not self.lora:
            raise _bad("four_bit", "needs --lora: weights of 4 bits cannot learn themselves")
        if self.lora and self.lora_rate <= 0:
            raise _bad("lora_rate", "must be above 0 with --lora")
        if not any((self.projector_rate, self.language_rate, self.tower_rate)):
            raise _bad("projector_rate", "nothing would learn: every rate is 0")

    @property
    def language_rate(self) -> float:
        return self.lora_rate if self.lora else self.llm_rate

    def needs(self, *names: str) -> Settings:
        """Itself, if these are given; BadRequest names what is missing."""
        for name in names:
            if not getattr(self, name):
                raise _bad(name, f"is missing; give it with --{flag(name)} or in the config file")
        return self


def flag(name: str) -> str:
    return name.replace("_", "-")


def options() -> dict[str, tuple[Any, str, Any]]:
    """Name, type, meaning and default of everything that can be set, in the order of the table."""
    kinds = typing.get_type_hints(Settings)
    return {
        each.name: (kinds[each.name], str(each.metadata["help"]), each.default)
        for each in dataclasses.fields(Settings)
        if each.name != "stage"
    }


def settle(stage: Stage, config: Path | None, given: Mapping[str, Any]) -> Settings:
    """Recipe, file and flags put together. BadRequest for what is unknown, of the wrong kind or out of range."""
    chosen = read_config(config) if config is not None else {}
    chosen |= {name: value for name, value in given.items() if value is not None}
    recipe = RECIPES[stage]
    settled = _of_recipe(recipe, lora=bool(chosen.get("lora") or chosen.get("four_bit"))) | chosen
    if chosen.get("four_bit"):
        settled["lora"] = chosen.get("lora", True)
    return Settings(stage=stage, **settled)


def read_config(path: Path) -> dict[str, Any]:
    """A TOML file's settings; its paths are relative to the file. BadRequest says what is wrong in it."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as cause:
        raise BadRequest(f"cannot read the config file {str(path)!r}: {cause.strerror}", param="--config") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise BadRequest(f"{str(path)!r} is not TOML: {cause}", param="--config") from cause
    known = options()
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            near = ", ".join(flag(other) for other in known if other.startswith(name[:4])) or "see --help"
            raise BadRequest(f"{path.name}: there is no setting {key!r}; near it: {near}", param="--config")
        found[name] = _typed(path, key, value, known[name][0])
        if name in PATHS and not (
            name == "model" and _HUB_ID.match(found[name]) and not (path.parent / value).exists()
        ):
            found[name] = _from_file(path.parent, found[name])
    return found


def as_toml(settings: Settings) -> str:
    """The settings as a file that gives the same run again."""
    lines = [f"# {settings.stage}: python -m llava_core.train {settings.stage} --config THIS"]
    for name in options():
        value = getattr(settings, name)
        if name in PATHS:
            value = _absolute(value)
        lines.append(f"{flag(name)} = {_literal(value)}")
    return "\n".join(lines) + "\n"


def _of_recipe(recipe: Recipe, *, lora: bool) -> dict[str, Any]:
    settled = dataclasses.asdict(recipe)
    lora_projector = settled.pop("lora_projector_rate")
    if lora:
        settled |= {"projector_rate": lora_projector, "llm_rate": 0.0}
    return settled


def _typed(path: Path, key: str, value: Any, kind: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind == tuple[str, ...]:
        several = [value] if isinstance(value, str) else value
        if isinstance(several, list) and all(isinstance(one, str) for one in several):
            return tuple(several)
    elif type(value) is kind:
        return value
    wanted = "a list of strings" if kind == tuple[str, ...] else f"of kind {kind.__name__}"
    raise BadRequest(f"{path.name}: {key} must be {wanted}, not {value!r}", param="--config")


def _from_file(folder: Path, value: Any) -> Any:
    """Relative to the config file; names of the hub and `off` stay as they are."""
    if isinstance(value, tuple):
        return tuple(_from_file(folder, one) for one in value)
    path = Path(value).expanduser()
    if not value or value == "off" or value.startswith("hf:") or path.is_absolute():
        return value
    return os.path.normpath(folder / path)


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_absolute(one) for one in value)
    return value if not value or value == "off" or value.startswith("hf:") else str(Path(value).expanduser().absolute())


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_literal(one) for one in value)}]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)


def _bad(name: str, words: str) -> BadRequest:
    return BadRequest(f"--{flag(name)} {words}", param=f"--{flag(name)}")
