"""The model that is served when none is named: tiny, with random weights, built here once, no download."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from llava_core.errors import EngineFailure
from serve.launcher.config import ModelSpec
from serve.launcher.plan import ROOT

_BUILD_S = 600.0
_SOURCES = ROOT / "llava_core" / "checkpoints"


def embedded_default(console: Console, build: Path = ROOT / "build") -> ModelSpec:
    """Its spec; the first call builds it in `build`, in a process of its own because that imports torch."""
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sorted(_SOURCES.glob("tiny*.py"))))
    folder = build / f"tiny-llava-{version.hexdigest()[:12]}"
    if not folder.exists():
        console.print("Building the built-in model (once)", style="dim")
        _build(folder)
    for line in (
        "No --model was given: serving the built-in tiny model. Its weights are random, so its answers are gibberish;",
        "it shows that everything is wired up. Serve a real one with ./launch.sh --model PATH_OR_ID",
    ):
        console.print(line, style="yellow", soft_wrap=True)
    return ModelSpec(path=str(folder), name="tiny-random")


def _build(folder: Path) -> None:
    # Built aside and moved, so that a build that is cut short leaves nothing that looks finished.
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    code = "import sys; from pathlib import Path; from llava_core.checkpoints.tiny import build_tiny; "
    code += "build_tiny('llava', Path(sys.argv[1]))"
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        built = subprocess.run(
            [sys.executable, "-c", code, str(aside)], cwd=ROOT, capture_output=True, text=True, timeout=_BUILD_S
        )
        if built.returncode != 0:
            raise EngineFailure(f"the built-in model could not be built: {built.stderr.strip() or built.returncode}")
        if not folder.exists():
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
