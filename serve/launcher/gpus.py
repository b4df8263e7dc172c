"""Which GPUs there are and which worker gets which."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence

from llava_core.errors import BadRequest
from serve.launcher.config import ModelSpec

_NVIDIA_SMI_S = 20.0


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES leaves, else what nvidia-smi lists, else none."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(gpu for gpu in (part.strip() for part in named.split(",")) if gpu and gpu != "-1")
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(listing.stdout.split()) if listing.returncode == 0 else ()


def hand_out(specs: Sequence[ModelSpec], gpus: Sequence[str]) -> list[tuple[str, ...] | None]:
    """Each worker's GPUs: those it names, else the one fewest others use. None where there are no GPUs to speak of.

    BadRequest for a named GPU that is not there.
    """
    for spec in specs:
        for gpu in spec.gpus or ():
            if gpus and gpu not in gpus:
                raise BadRequest(
                    f"--model {spec.path}@{','.join(spec.gpus or ())}: there is no GPU {gpu}; "
                    f"there are: {', '.join(gpus)}",
                    param="--model",
                )
    load = Counter[str](gpu for spec in specs for gpu in spec.gpus or ())
    given: list[tuple[str, ...] | None] = []
    for spec in specs:
        if spec.gpus is not None or not gpus:
            given.append(spec.gpus)
            continue
        least = min(gpus, key=lambda gpu: load[gpu])
        load[least] += 1
        given.append((least,))
    return given


def device_environment(
    gpus: tuple[str, ...] | None, *, workers: int, cores: int, environment: Mapping[str, str]
) -> dict[str, str]:
    """The variables that keep a worker on its GPUs and its share of the `cores`; one alone chooses for itself."""
    variables: dict[str, str] = {}
    if gpus is not None:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        # So that numbers mean what nvidia-smi shows; CUDA's own order is fastest first.
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if workers > 1 and "OMP_NUM_THREADS" not in environment:
        # Each worker would otherwise start a thread per core, and several together run far slower than one.
        variables["OMP_NUM_THREADS"] = str(max(1, cores // workers))
    return variables
