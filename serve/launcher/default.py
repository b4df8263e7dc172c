"""The models that are served when none is named: the built-in ones, else what can be had of them, else a random one."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from llava_core.errors import EngineFailure
from serve.launcher.config import ModelSpec
from serve.launcher.plan import ROOT

BUILTIN = ("builtin", "builtin-stage1")
"""The better one first; the other is there to be compared with."""
BLIND = "smollm2"
"""Their language model alone, served where only the part that sees cannot be had."""
_BUILD_S = 600.0
_ASSEMBLE_S = 1800.0
"""Its parts are fetched in it, perhaps over a slow line."""
_OURS = ("Fetching ", "Converting the ", "Putting ")
_SOURCES = ROOT / "llava_core" / "checkpoints"


def default_models(
    console: Console, build: Path = ROOT / "build", assemble: Callable[[str, Console], Path] | None = None
) -> tuple[ModelSpec, ...]:
    """What `assemble` can put together of the built-in models, by name; the random one where that is nothing."""
    found: list[ModelSpec] = []
    for name in BUILTIN:
        try:
            folder = (assemble or _assemble)(name, console)
        except EngineFailure as error:
            console.print(error.message, style="yellow", markup=False, soft_wrap=True)
            break
        found.append(ModelSpec(path=str(folder), name=name))
    if not found:
        return (_blind(console, assemble or _assemble) or embedded_default(console, build),)
    console.print(
        "No --model was given: serving the built-in model, which is small and sees. Serve a larger one with "
        "./launch.sh --model PATH_OR_ID",
        style="yellow",
        soft_wrap=True,
    )
    return tuple(found)


def _blind(console: Console, assemble: Callable[[str, Console], Path]) -> ModelSpec | None:
    """The language model alone; None where it cannot be had either, the reason having been said already."""
    try:
        folder = assemble(BLIND, console)
    except EngineFailure:
        return None
    console.print(
        "Serving its language model alone, which answers in words but sees no pictures. Start again when the missing "
        "part can be fetched, or serve another model with ./launch.sh --model PATH_OR_ID",
        style="yellow",
        soft_wrap=True,
    )
    return ModelSpec(path=str(folder), name=BLIND)


def embedded_default(console: Console, build: Path = ROOT / "build") -> ModelSpec:
    """The random one's spec; the first call builds it in `build`, in a process of its own, since that imports torch."""
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sorted(_SOURCES.glob("tiny*.py"))))
    folder = build / f"tiny-llava-{version.hexdigest()[:12]}"
    if not folder.exists():
        console.print("Building a tiny model (once)", style="dim")
        _build(folder)
    for line in (
        "No --model was given: serving a tiny model. Its weights are random, so its answers are gibberish;",
        "it shows that everything is wired up. Serve a real one with ./launch.sh --model PATH_OR_ID",
    ):
        console.print(line, style="yellow", soft_wrap=True)
    return ModelSpec(path=str(folder), name="tiny-random")


def _assemble(name: str, console: Console) -> Path:
    """The checkpoint's folder. What it says on the way is shown; its last words are the error, where it fails."""
    said: deque[str] = deque(maxlen=1)
    command = [sys.executable, "-m", "llava_core.builtin", "assemble", "--variant", name]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        watch = threading.Timer(_ASSEMBLE_S, running.kill)
        watch.start()
        try:
            for line in running.stderr:
                words = line.strip()
                if words.startswith(_OURS):
                    console.print(words, style="dim", markup=False, soft_wrap=True)
                if words:
                    said.append(words)
            folder = running.stdout.read().strip()
        finally:
            watch.cancel()
    if running.returncode == 0 and folder:
        return Path(folder)
    why = said[0].removeprefix("error: ") if said else f"it ended with {running.returncode}"
    raise EngineFailure(f"The built-in model {name!r} cannot be served: {why}")


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
