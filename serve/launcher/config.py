"""What to launch: models and options, read from the command line and from a TOML file.

```toml
port = 7860
engine = "transformers"

[[model]]
path = "models/llava-v1.5-7b"   # a folder (relative to this file) or a hub id
gpus = [0]                      # or "cpu"; handed out when absent
quantize = "nf4"                # or int8; the keys of `settings.py` stand here, or above for all models
```
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from llava_core.errors import BadRequest
from serve.launcher.settings import WHOLE, EngineSettings, check_settings
from serve.model_paths import find_model

_SPEC = re.compile(r"(?P<path>.+?)(?:@(?P<gpus>cpu|\d+(?:,\d+)*))?(?::(?P<kind>4bit|8bit|nf4|int8|int8-torchao))?")
_LOOKS_LIKE_SUFFIX = re.compile(r"(@[\w,]*(:[\w-]*)?|:\w*bits?|:(nf|int)\d*(-\w*)?)$", re.IGNORECASE)
_GRAMMAR = "PATH_OR_ID[@GPUS][:4bit|:8bit|:nf4|:int8|:int8-torchao], as in models/llava@0,1:4bit"
_SPELLINGS = {"4bit": "nf4", "8bit": "int8"}
_BITS = {4: "nf4", 8: "int8", 16: WHOLE}


@dataclass(frozen=True)
class ModelSpec(EngineSettings):
    """One worker to start. `gpus` None means: hand some out; empty means the CPU. Settings win over those of all.

    `path` None is an engine that needs no checkpoint (echo).
    """

    path: str | None = None
    gpus: tuple[str, ...] | None = None
    name: str | None = None
    base: str | None = None
    conv_template: str | None = None
    dtype: str | None = None
    engine: str | None = None
    arguments: tuple[str, ...] = ()
    """More words for the worker's command line, as `python -m serve.model_worker --help` lists them."""


@dataclass(frozen=True)
class LaunchConfig(EngineSettings):
    """The whole topology, with the settings of all its models. Ports are None where the launcher may choose."""

    models: tuple[ModelSpec, ...] = ()
    host: str = "127.0.0.1"
    port: int | None = None
    controller_host: str = "127.0.0.1"
    controller_port: int | None = None
    control_host: str = "127.0.0.1"
    control_port: int | None = None
    worker_port: int | None = None
    embed: bool = False
    share: bool = False
    record: bool = False
    history: str | None = None
    database_url: str | None = None
    keep_days: int | None = None
    keep_originals: bool = False
    moderation_url: str | None = None
    moderation_model: str | None = None
    moderation_classifier: str | None = None
    moderation_fail_open: bool = False
    moderation_hold_answers: bool = False
    model_list_mode: str | None = None
    engine: str | None = None
    dtype: str | None = None
    conv_template: str | None = None
    allow_image_host: tuple[str, ...] = ()
    logs: str | None = None
    login: bool = False
    insecure: bool = False
    key_rate: str | None = None
    key_at_once: int | None = None
    address_rate: str | None = None
    address_at_once: int | None = None
    rate_storage: str | None = None
    trusted_proxies: int | None = None


def parse_model(text: str) -> ModelSpec:
    """`PATH_OR_ID[@GPUS][:QUANTISED]` as a spec; BadRequest says what is wrong with it."""
    found = _SPEC.fullmatch(text.strip())
    if found is None:
        raise BadRequest(f"--model {text!r} names no model; write {_GRAMMAR}", param="--model")
    path, gpus, kind = found["path"], found["gpus"], found["kind"]
    if (odd := _LOOKS_LIKE_SUFFIX.search(path)) and not Path(path).expanduser().exists():
        raise BadRequest(f"--model {text!r}: {odd.group()!r} is not understood; write {_GRAMMAR}", param="--model")
    return ModelSpec(path=path, gpus=_gpus(gpus), quantize=_SPELLINGS.get(kind, kind) if kind else None)


def read_config(file: Path) -> LaunchConfig:
    """The options in a TOML file; paths in it are relative to it. BadRequest names the key that is wrong."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"--config {file}: {error.strerror or error}", param="--config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"--config {file} is not TOML: {error}", param="--config") from None
    models = table.pop("model", [])
    if not isinstance(models, list):
        raise BadRequest(f"--config {file}: models are tables headed [[model]], not [model]", param="--config")
    options = _typed(table, _OPTIONS, str(file))
    specs = tuple(_model_table(model, index, file) for index, model in enumerate(models, 1))
    return LaunchConfig(models=specs, **options)


def load_config(file: Path | None, given: Mapping[str, Any], models: Iterable[str]) -> LaunchConfig:
    """The options of `file`, over them those `given` (not None) on the command line, and the models of both."""
    base, folder = (LaunchConfig(), Path.cwd()) if file is None else (read_config(file), file.resolve().parent)
    said = {name: value for name, value in given.items() if value is not None}
    if base.logs and "logs" not in said:
        said["logs"] = str(folder / base.logs)
    config = replace(base, **said)
    check_settings(config)
    specs = [_engine_checked(spec, config, folder) for spec in base.models]
    specs += [_engine_checked(parse_model(text), config, Path.cwd()) for text in models]
    if not specs and config.engine == "echo":
        specs = [ModelSpec(name="echo")]
    return replace(config, models=tuple(specs))


def _engine_checked(spec: ModelSpec, config: LaunchConfig, folder: Path) -> ModelSpec:
    """The spec with its folders found; the echo engine reads none and takes the path for its name."""
    check_settings(spec)
    if (spec.engine or config.engine) == "echo":
        return replace(spec, path=None, base=None, name=spec.name or spec.path or "echo")
    if spec.path is None:
        raise BadRequest(f"--config: the model {spec.name or ''} has no path; only the echo engine needs none")
    return replace(
        spec,
        path=find_model(spec.path, folder, "--model"),
        base=None if spec.base is None else find_model(spec.base, folder, "--model-base"),
    )


def _gpus(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return () if text == "cpu" else tuple(dict.fromkeys(text.split(",")))


def _model_table(table: object, index: int, file: Path) -> ModelSpec:
    where = f"{file}: [[model]] number {index}"
    if not isinstance(table, dict):
        raise BadRequest(f"--config {where} is no table", param="--config")
    gpus: tuple[str, ...] | None = None
    if "gpus" in table:
        given = table.pop("gpus")
        if given == "cpu":
            gpus = ()
        elif isinstance(given, list) and given and all(type(gpu) is int and gpu >= 0 for gpu in given):
            gpus = tuple(dict.fromkeys(str(gpu) for gpu in given))
        else:
            raise BadRequest(
                f'--config {where}: gpus is a list of numbers, as in [0, 1], or "cpu"; not {given!r}', param="--config"
            )
    if "bits" in table:
        bits = table.pop("bits")
        if type(bits) is not int or bits not in _BITS or "quantize" in table:
            raise BadRequest(
                f"--config {where}: bits is 4, 8 or 16, not {bits!r}; or say quantize instead", param="--config"
            )
        table["quantize"] = _BITS[bits]
    return ModelSpec(gpus=gpus, **_typed(table, _MODEL_KEYS, where))


def _typed(table: Mapping[str, Any], known: Mapping[str, type], where: str) -> dict[str, Any]:
    """The table's values under our field names, each of the type it should have."""
    options: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
            raise BadRequest(f"--config {where}: unknown key {key!r}; {hint}", param="--config")
        if not _is(value, known[name]):
            raise BadRequest(
                f"--config {where}: {key} is to be {_TYPE_NAMES[known[name]]}, not {value!r}", param="--config"
            )
        options[name] = tuple(value) if known[name] is tuple else value
    return options


def _is(value: object, kind: type) -> bool:
    if kind is tuple:
        return isinstance(value, list) and all(type(word) is str for word in value)
    return type(value) is kind


_TYPE_NAMES: Mapping[type, str] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    tuple: "a list of strings",
}
_SPECIAL: Mapping[str, type] = {
    **dict.fromkeys(
        (
            "port",
            "controller_port",
            "control_port",
            "worker_port",
            "max_running",
            "step_tokens",
            "threads",
            "keep_days",
            "key_at_once",
            "address_at_once",
            "trusted_proxies",
        ),
        int,
    ),
    **dict.fromkeys(
        (
            "embed",
            "share",
            "record",
            "keep_originals",
            "login",
            "insecure",
            "share_between_owners",
            "moderation_fail_open",
            "moderation_hold_answers",
        ),
        bool,
    ),
    **dict.fromkeys(("allow_image_host", "arguments"), tuple),
}
_OPTIONS: Mapping[str, type] = {
    field.name: _SPECIAL.get(field.name, str) for field in fields(LaunchConfig) if field.name != "models"
}
_MODEL_KEYS: Mapping[str, type] = {
    field.name: _SPECIAL.get(field.name, str) for field in fields(ModelSpec) if field.name != "gpus"
}
