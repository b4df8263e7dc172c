"""Puts the built-in model together from its parts and our weights, once, into the cache: plain llava-hf checkpoints."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from llava_core.builtin.parts import LANGUAGE, SERVED, TRUNK, Say, cache_folder, fetch
from llava_core.errors import BadRequest, MissingDependency

WEIGHTS = Path(__file__).with_name("weights")
TOWER_WEIGHTS = WEIGHTS / "tower.safetensors"
WEAK = Path(__file__).with_name("weaknesses.txt")
"""One line: the page shows it under the model's name, and the card has it too."""
VARIANTS: Mapping[str, str] = {
    "builtin": "both stages: alignment, then instruction tuning",
    "builtin-stage1": "alignment only: the same without instruction tuning, to compare",
}
"""Names as people see them, and what they are."""
BLIND = "smollm2"
"""The language model alone, where nothing can be had that sees."""
_SOURCES = (
    "assemble.py",
    "anchors.py",
    "columns.py",
    "convert.py",
    "tower.py",
    "class_names.txt",
    "names.txt",
    "weaknesses.txt",
)


def assembled(variant: str, say: Say, cache: Path | None = None) -> Path:
    """The checkpoint's folder; put together if it is not there yet. MissingDependency where a part cannot be had."""
    if variant not in VARIANTS:
        raise BadRequest(f"there is no built-in model {variant!r}; there are {', '.join(VARIANTS)}")
    cache = cache or cache_folder()
    folder = cache / "models" / f"{variant}-{fingerprint(variant)}"
    if folder.exists():
        return folder
    learned = WEIGHTS / f"{variant}.safetensors"
    if not learned.exists():
        raise MissingDependency(f"{learned.name} is missing from this installation, so {variant!r} cannot be served")
    foundation = base(say, cache)
    say(f"Putting {variant!r} together (once)")
    with _aside(folder) as unfinished:
        _finish(foundation, learned, unfinished, variant)
    return folder


def base(say: Say, cache: Path | None = None, tower_weights: Path = TOWER_WEIGHTS) -> Path:
    """The model before its first lesson: tower, anchored projector, language model."""
    cache = cache or cache_folder()
    names_digest = hashlib.sha256(tower_weights.read_bytes()).hexdigest()[:8]
    folder = cache / "models" / f"base-{fingerprint('')}-{names_digest}"
    if folder.exists():
        return folder
    language = language_model(say, cache)
    trunk = fetch(TRUNK, say, cache)
    say("Putting tower and projector together (once)")
    with _aside(folder) as unfinished:
        tower = unfinished.with_name(f"{unfinished.name}.tower")
        try:
            save_tower(trunk, tower_weights, tower)
            _build(tower, language, unfinished)
        finally:
            shutil.rmtree(tower, ignore_errors=True)
    return folder


def language_model(say: Say, cache: Path | None = None) -> Path:
    """The language model alone, as transformers loads it."""
    cache = cache or cache_folder()
    source = Path(__file__).with_name("convert.py").read_bytes()
    folder = cache / "models" / f"smollm2-135m-instruct-{hashlib.sha256(source).hexdigest()[:8]}"
    if folder.exists():
        return folder
    part = fetch(LANGUAGE, say, cache)
    say("Converting the language model (once, about half a minute)")
    from llava_core.builtin.convert import convert_language_model

    with _aside(folder) as unfinished:
        convert_language_model(next(part.rglob("*.gguf")), unfinished)
    return folder


def drawn_names() -> list[str]:
    """Names of the things that the tower tells apart on drawings, in the order of its columns."""
    return Path(__file__).with_name("names.txt").read_text("utf-8").split("\n")[:-1]


def save_tower(trunk: Path, tower_weights: Path, folder: Path) -> None:
    """The tower as a checkpoint of its own, its image processor beside it."""
    from safetensors.torch import load_file
    from transformers import CLIPImageProcessor

    from llava_core.builtin.convert import convert_trunk
    from llava_core.builtin.tower import SeeingConfig, SeeingTower

    tower = SeeingTower(SeeingConfig(names=len(drawn_names())))
    ours = {name: tensor.float() for name, tensor in load_file(tower_weights).items()}
    tower.load_state_dict(convert_trunk(next(trunk.rglob("*.pth"))) | ours, strict=True)
    tower.float().save_pretrained(folder)
    side = tower.config.image_size
    CLIPImageProcessor(
        size={"height": side, "width": side},
        do_center_crop=False,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    ).save_pretrained(folder)


def fingerprint(variant: str) -> str:
    """Changes whenever anything does that the assembled checkpoint depends on."""
    digest = hashlib.sha256()
    for part in SERVED:
        digest.update(part.digest.encode())
    here = Path(__file__).parent
    for name in _SOURCES:
        digest.update((here / name).read_bytes())
    for path in (WEIGHTS / f"{variant}.safetensors", TOWER_WEIGHTS) if variant else ():
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:12]


def _build(tower: Path, language: Path, out: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from llava_core.builtin.anchors import anchored_projector, embedder
    from llava_core.builtin.columns import Columns
    from llava_core.train.build import build

    table: torch.Tensor = load_file(next(language.glob("*.safetensors")))["model.embed_tokens.weight"]
    names = drawn_names()
    embed = embedder(AutoTokenizer.from_pretrained(language), table)
    projector = anchored_projector(Columns(len(names)), names, embed, table.shape[1])
    build(str(tower), str(language), out, pictures="own", strategy="full", projector_weights=projector)


def _finish(foundation: Path, learned: Path, out: Path, variant: str) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    from llava_core.train.export import STAGE_ONE, export

    with safe_open(learned, "pt") as content:
        scale = float((content.metadata() or {}).get("scale", "1"))
    note = STAGE_ONE if variant.endswith("stage1") else WEAK.read_text("utf-8").strip()
    export(foundation, load_file(learned), out, scale=scale, note=note)


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes its place only when all is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        yield unfinished
        if not folder.exists():
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
