"""The flags of the engine that runs a model: precision, memory, and how requests share the device."""

from __future__ import annotations

from typing import Annotated, cast, get_args

import typer

from llava_core.checkpoints.precision import DTYPES, QUANTIZE
from llava_core.config import BatchLimits, Kernel, Speculate
from llava_core.errors import BadRequest
from llava_core.sizes import parse_bytes, parse_bytes_or_share

Dtype = Annotated[
    str,
    typer.Option(
        help="auto, float32, bfloat16 or float16; auto takes 16 bits, on a CPU only if it computes in bfloat16 itself."
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help=f"Keep the language model's weights in fewer bits: {', '.join(QUANTIZE)}. int8 and nf4 (4 bit) come from "
        "bitsandbytes; int8-torchao needs pip install torchao. [default: not]",
    ),
]
Load4bit = Annotated[bool, typer.Option("--load-4bit", help="The same as --quantize nf4.")]
Load8bit = Annotated[bool, typer.Option("--load-8bit", help="The same as --quantize int8.")]
MaxRunning = Annotated[
    int | None,
    typer.Option(
        "--max-running",
        "--limit-model-concurrency",
        min=1,
        max=4096,
        help="Requests that run at once; more wait. [default: as many as the device's memory holds, 8 to 16 on a "
        "CPU, up to 256 on a GPU]",
    ),
]
StepTokens = Annotated[
    int | None,
    typer.Option(
        min=16,
        max=1 << 20,
        help="New tokens in one pass over the model. Less keeps running answers smoother while long prompts come in, "
        "more reads prompts faster. [default: 384 on a CPU, 4096 on a GPU; beside running answers what a tenth of a "
        "second is enough for]",
    ),
]
KvMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory for the keys and values of running and parked chats: 8GiB, or 40% of what is free once the "
        "weights are loaded. [default: 50% on a CPU, 85% on a GPU]",
    ),
]
FeatureMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory for encoded pictures, on the device. [default: 512MiB]")
]
PictureMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Main memory for decoded pictures of earlier turns. [default: 256MiB]"),
]
SpeculateMode = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="Whether greedy answers guess words ahead from the chat's own text: on, off, or auto, which does while "
        "few requests run. Answers stay the same. [default: auto]",
    ),
]
ShareBetweenOwners = Annotated[
    bool | None,
    typer.Option(
        "--share-between-owners/--no-share-between-owners",
        help="Let one person's prefilled prompt speed up another's with the same start. Their timing could then tell "
        "who asked what. [default: no]",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, help="Threads of the model on a CPU. [default: OMP_NUM_THREADS, else one per physical core]"
    ),
]

KernelMode = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="auto computes the layers by a kernel compiled at the first start, where processor (AMX or "
        "AVX512-BF16), model and a C compiler allow it; off leaves them to torch. [default: auto]",
    ),
]


def batch_limits(
    *,
    step_tokens: int | None = None,
    kv_memory: str | None = None,
    feature_memory: str | None = None,
    picture_memory: str | None = None,
    speculate: str | None = None,
    share_between_owners: bool | None = None,
    threads: int | None = None,
    kernel: str | None = None,
) -> BatchLimits:
    """What was given, over the defaults. BadRequest for a size or word that is not understood."""
    default = BatchLimits()
    kv_bytes, kv_share = (None, None) if kv_memory is None else parse_bytes_or_share(kv_memory, what="--kv-memory")
    return BatchLimits(
        step_tokens=step_tokens,
        kv_bytes=kv_bytes,
        kv_share=kv_share,
        feature_bytes=_bytes(feature_memory, "--feature-memory", default.feature_bytes),
        prepared_bytes=_bytes(picture_memory, "--picture-memory", default.prepared_bytes),
        speculate=default.speculate if speculate is None else checked_speculate(speculate),
        share_between_owners=bool(share_between_owners),
        threads=threads,
        kernel=default.kernel if kernel is None else _checked_kernel(kernel),
    )


def checked_speculate(text: str) -> Speculate:
    if text not in get_args(Speculate):
        raise BadRequest(f"--speculate must be auto, on or off, not {text!r}", param="--speculate")
    return cast(Speculate, text)


def checked_dtype(text: str) -> str:
    if text not in DTYPES:
        raise BadRequest(f"--dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, not {text!r}", param="--dtype")
    return text


def _checked_kernel(text: str) -> Kernel:
    if text not in get_args(Kernel):
        raise BadRequest(f"--kernel must be auto or off, not {text!r}", param="--kernel")
    return cast(Kernel, text)


def _bytes(text: str | None, flag: str, default: int) -> int:
    return default if text is None else parse_bytes(text, what=flag)
