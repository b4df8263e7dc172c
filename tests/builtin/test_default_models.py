"""What is served when no model is named: the built-in ones where they can be had, else one that says it is noise."""

import io
from pathlib import Path

from rich.console import Console

from llava_core.errors import EngineFailure
from serve.launcher import default
from serve.launcher.config import ModelSpec


def said(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_both_built_in_models_are_served_the_better_one_first(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    models = default.default_models(console, tmp_path, lambda name, _: tmp_path / name)
    assert [model.name for model in models] == ["builtin", "builtin-stage1"]
    assert "small and sees" in said(console)


def test_without_its_parts_the_reason_is_said_and_the_random_model_served(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def missing(name: str, _: Console) -> Path:
        raise EngineFailure(f"The built-in model {name!r} cannot be served: no connection")

    monkeypatch.setattr(default, "embedded_default", lambda console, build: ModelSpec(path="tiny", name="tiny-random"))
    console = Console(file=io.StringIO())
    models = default.default_models(console, tmp_path, missing)
    assert [model.name for model in models] == ["tiny-random"]
    assert "no connection" in said(console)


def test_without_the_part_that_sees_the_language_model_is_served_alone(tmp_path: Path) -> None:
    def only_words(name: str, _: Console) -> Path:
        if name != "smollm2":
            raise EngineFailure("image classifier could not be fetched")
        return tmp_path / name

    console = Console(file=io.StringIO())
    models = default.default_models(console, tmp_path, only_words)
    assert [model.name for model in models] == ["smollm2"]
    assert "image classifier could not be fetched" in said(console)
    assert "sees no pictures" in " ".join(said(console).split())


def test_one_that_is_missing_does_not_keep_the_other_back(tmp_path: Path) -> None:
    def only_first(name: str, _: Console) -> Path:
        if name != "builtin":
            raise EngineFailure("gone")
        return tmp_path / name

    models = default.default_models(Console(file=io.StringIO()), tmp_path, only_first)
    assert [model.name for model in models] == ["builtin"]
