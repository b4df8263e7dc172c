"""Builds the kernel with the machine's own C compiler, once, and loads it; says why where that cannot be.

The compiled library is kept in the cache folder under the sum of all that it depends on.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from llava_core.cache import cache_folder

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_SOURCES = ("decoder.c", "tower.c", "shared.c")
_HEADERS = ("tiles.h", "multiply_tiles.h", "multiply_vectors.h")
_NEEDED = "avx512_bf16"
_TILES = "amx_bf16"
_VECTORS_ONLY = ("-mno-amx-bf16", "-mno-amx-tile")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno")
_COMPILE_S = 120.0
_OPENMP = re.compile(r"lib(g|i|)omp[^/]*\.so[^/]*$")


class NotBuilt(Exception):
    """The kernel cannot be had here; the sentence says why."""


@cache
def kernel(*, tiles: bool = True) -> ctypes.CDLL:
    """The loaded library, in the processor's tiles (AMX) where there are some, the system lets it, and `tiles`, else in
    its vectors. NotBuilt where anything is missing."""
    if not torch.cpu.get_capabilities().get(_NEEDED):
        raise NotBuilt(f"the processor has no {_NEEDED}")
    tiles = tiles and bool(torch.cpu.get_capabilities().get(_TILES))
    runtime = _openmp_of_torch()
    compiler = next(
        (found for name in (os.environ.get("CC"), "cc", "gcc") if name and (found := shutil.which(name))), None
    )
    if compiler is None:
        raise NotBuilt("there is no C compiler (cc, gcc, or what CC names)")
    flags = _FLAGS if tiles else (*_FLAGS, *_VECTORS_ONLY)
    library = cache_folder() / "native" / f"{_digest(compiler, runtime, flags)}.so"
    try:
        if not library.exists():
            _compile(compiler, runtime, flags, library)
        loaded = ctypes.CDLL(str(library))
    except OSError as cause:
        raise NotBuilt(f"{library} cannot be kept or loaded: {cause}") from cause
    if _openmp_of_torch() != runtime:
        raise NotBuilt("loading it brought another OpenMP library with it than torch's")
    if not loaded.is_allowed():
        return kernel(tiles=False)
    for size in (loaded.padded_width, loaded.padded_tokens, loaded.scores_per_thread):
        size.restype, size.argtypes = ctypes.c_int64, [ctypes.c_int64]
    return loaded


def _openmp_of_torch() -> Path:
    """The OpenMP library that torch's threads come from: two of them would fight over the cores."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    except OSError as cause:
        raise NotBuilt(f"which libraries are loaded cannot be read: {cause}") from cause
    found = {Path(line.split(maxsplit=5)[-1]) for line in lines if _OPENMP.search(line)}
    # Other packages (sentencepiece) bring one for themselves.
    packages = Path(torch.__file__).parents[1]
    inside = [path for path in found if packages in path.parents]
    own = [path for path in inside if path.relative_to(packages).parts[0].startswith("torch")]
    chosen = own or list(found)
    if len(chosen) != 1:
        raise NotBuilt(f"{len(chosen)} OpenMP libraries are loaded, and which one is torch's cannot be told")
    return chosen[0]


def _digest(compiler: str, runtime: Path, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in (*_SOURCES, *_HEADERS):
        digest.update((_HERE / name).read_bytes())
    for part in (compiler, str(runtime), torch.__version__, platform.processor(), *flags, *sorted(_processor())):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _processor() -> set[str]:
    """What -march=native depends on."""
    return {f"{name}={value}" for name, value in torch.cpu.get_capabilities().items()}


def _compile(compiler: str, runtime: Path, flags: tuple[str, ...], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
        objects = [str(Path(folder, f"{name}.o")) for name in _SOURCES]
        for name, made in zip(_SOURCES, objects, strict=True):
            _run([compiler, *flags, "-c", str(_HERE / name), "-o", made])
        # Linked with the very file that torch loaded, whatever it is called.
        whole = Path(folder, "kernel.so")
        _run([compiler, "-shared", *objects, str(runtime), "-lm", "-o", str(whole)])
        whole.replace(library)
    log.info("compiled the decoder's kernel for this processor with %s", compiler)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise NotBuilt(f"the C compiler failed: {cause}") from cause
    if done.returncode != 0:
        raise NotBuilt(f"{command[0]} cannot compile the kernel: {done.stderr.strip()[-500:]}")
