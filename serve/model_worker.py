"""Loads one model and serves it; registers with a controller unless told not to.
python -m serve.model_worker --model-path PATH --controller-address http://127.0.0.1:21000
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, TypeVar

import typer

from llava_core.checkpoints.precision import one_quantize
from llava_core.config import CONTROL_PORT, WORKER_PORT, EngineLimits, ImageLimits, RequestLimits, WorkerTimings
from llava_core.engines.base import Engine
from llava_core.engines.load import ENGINES, EngineOptions, load_engine
from llava_core.errors import BadRequest, LlavaError, MissingDependency
from llava_core.types import Request, Sampling, user
from serve import engine_flags as flags
from serve import tracing
from serve.credentials import is_loopback, make_token
from serve.protocol import check_address
from serve.registration import Registrar
from serve.server import listen, own_address, run, run_server, spare_what_stays, start_logging
from serve.worker_app import EngineSlot, create_app

__all__ = ["EngineSlot", "create_app", "main"]

# Plain help: boxes cut long option names short.
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
log = logging.getLogger("serve.model_worker")

T = TypeVar("T")

REFUSED = 2
"""Exit code for a command line or checkpoint with which no further start will succeed."""
FAILED = 1
POISONED = 70
"""Exit code when the device failed in a way that only a new process gets over."""
WARM_UP_S = 600.0
LAST_WORDS_S = 0.5


async def serve_worker(
    load: Callable[[], Engine],
    *,
    host: str,
    port: int,
    worker_address: str | None,
    controller: str | None,
    limits: RequestLimits | None = None,
    timings: WorkerTimings | None = None,
    token: str | None = None,
) -> int:
    """Serve until told to stop; the exit code. `controller` None is a worker on its own. With a `token`, callers must
    show it."""
    timings = timings or WorkerTimings()
    slot = EngineSlot()
    registrar: Registrar | None = None
    registering: asyncio.Task[None] | None = None

    async def leave() -> None:
        # The controller is told first: what it has already sent here is still taken.
        if registering is not None and registrar is not None:
            await registrar.say_goodbye()
            registering.cancel()
        slot.draining = True

    listener = listen(host, port)
    address = (worker_address or own_address(host, listener)).rstrip("/")
    check_address(address)
    log.info("listening on %s", own_address(host, listener))
    serving = asyncio.create_task(
        run_server(create_app(slot, limits=limits, token=token), listener, drain_s=timings.drain_s, before_drain=leave)
    )
    loading = asyncio.create_task(_load_and_try(load))
    await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        # Loading cannot be interrupted, and there is nothing yet to put in order.
        return _leave_now(0)
    try:
        slot.engine = loading.result()
    except LlavaError as error:
        print(error.message, file=sys.stderr, flush=True)
        return _leave_now(REFUSED if isinstance(error, BadRequest | MissingDependency) else FAILED)
    except Exception:
        log.exception("the model could not be loaded")
        return _leave_now(FAILED)
    spare_what_stays()
    log.info("ready: %s", _describe(slot.engine))
    if controller is not None:
        registrar = Registrar(controller, address, slot.status, timings, token=token)
        registering = asyncio.create_task(registrar.keep_registered())
    poisoned = asyncio.create_task(slot.poisoned.wait())
    await asyncio.wait({serving, poisoned}, return_when=asyncio.FIRST_COMPLETED)
    if slot.poisoned.is_set() and not serving.done():
        log.error("the device failed for good; this process ends, so that another takes its place")
        await leave()
        # The errors of its answers are still on their way out.
        await asyncio.wait({serving}, timeout=LAST_WORDS_S)
        return _leave_now(POISONED)
    poisoned.cancel()
    await serving
    await slot.engine.aclose()
    return 0


async def _load_and_try(load: Callable[[], Engine]) -> Engine:
    """Ready means that it can generate, so it does once before anybody asks."""
    engine = await _in_daemon_thread(load)
    request = Request(engine.info.name, (user("Hi"),), Sampling(max_tokens=1, temperature=0))
    async with asyncio.timeout(WARM_UP_S):
        async for _ in engine.generate(request):
            pass
    return engine


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    """Like `asyncio.to_thread`, but the process may end before the work does."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.cancelled():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # pyright: ignore[reportArgumentType]

    def run() -> None:
        try:
            value = work()
        except BaseException as error:
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, value, None)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await result


def _leave_now(code: int) -> int:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _describe(engine: Engine) -> str:
    info = engine.info
    template = f", template {info.template} ({info.template_reason})" if info.template_reason else ""
    return f"{info.name} on {info.device} in {info.dtype}, context {info.context_length}{template}"


@app.command()
def main(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.")] = WORKER_PORT,
    worker_address: Annotated[
        str | None,
        typer.Option(
            "--worker-address", "--worker", help="Where others reach this worker. [default: where it listens]"
        ),
    ] = None,
    controller_address: Annotated[
        str, typer.Option("--controller-address", "--controller", help="The controller to register with.")
    ] = f"http://127.0.0.1:{CONTROL_PORT}",
    register: Annotated[bool, typer.Option("--register/--no-register", help="Register with the controller.")] = True,
    model_path: Annotated[str | None, typer.Option(help="Folder or hub name of the checkpoint.")] = None,
    model_base: Annotated[
        str | None, typer.Option(help="The base model, for a checkpoint that is only a projector or LoRA.")
    ] = None,
    model_name: Annotated[str | None, typer.Option(help="The name to serve it under. [default: the folder's]")] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, cpu, mps; auto takes the best there is.")] = "auto",
    dtype: flags.Dtype = "auto",
    quantize: flags.Quantize = None,
    load_4bit: flags.Load4bit = False,
    load_8bit: flags.Load8bit = False,
    conv_template: Annotated[
        str | None, typer.Option(help="Prompt template of an original checkpoint. [default: told by the checkpoint]")
    ] = None,
    engine: Annotated[str, typer.Option(help=f"What runs the model: {' or '.join(ENGINES)}.")] = "transformers",
    max_running: flags.MaxRunning = None,
    max_waiting: Annotated[
        int, typer.Option(min=0, max=100_000, help="Requests that wait at most; more are told to come back.")
    ] = EngineLimits.max_waiting,
    max_answer_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = EngineLimits.max_answer_tokens,
    step_tokens: flags.StepTokens = None,
    kv_memory: flags.KvMemory = None,
    feature_memory: flags.FeatureMemory = None,
    picture_memory: flags.PictureMemory = None,
    speculate: flags.SpeculateMode = None,
    share_between_owners: flags.ShareBetweenOwners = None,
    threads: flags.Threads = None,
    kernel: flags.KernelMode = None,
    allow_image_host: Annotated[
        list[str] | None, typer.Option(help="Fetch http(s) images from this host; repeat for more. [default: none]")
    ] = None,
    max_images: Annotated[int, typer.Option(min=0, help="Pictures in one request.")] = ImageLimits.max_images,
    max_image_bytes: Annotated[int, typer.Option(min=1, help="Size of one picture.")] = ImageLimits.max_bytes,
    max_image_pixels: Annotated[int, typer.Option(min=1, help="Pixels of one picture.")] = ImageLimits.max_pixels,
    heartbeat: Annotated[
        float, typer.Option(min=0.01, help="Seconds between two signs of life to the controller.")
    ] = WorkerTimings.heartbeat_s,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that running answers have to finish after the first signal.")
    ] = WorkerTimings.drain_s,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="With --no-register: let a network use it without the token.")
    ] = False,
    echo_delay: Annotated[
        float, typer.Option(min=0, help="Seconds between the words of the echo engine.")
    ] = EngineOptions.echo_delay_s,
    echo_first: Annotated[
        float, typer.Option(min=0, help="Seconds before the first word of the echo engine.")
    ] = EngineOptions.echo_first_s,
) -> None:
    """Load one model and serve it at /v1, to a controller's clients and to anybody who asks directly."""
    start_logging()
    tracing.start_tracing("worker")
    try:
        options = EngineOptions(
            model_path=model_path,
            model_base=model_base,
            model_name=model_name,
            device=device,
            dtype=flags.checked_dtype(dtype),
            quantize=one_quantize(quantize, load_4bit=load_4bit, load_8bit=load_8bit),
            conv_template=conv_template,
            limits=replace(
                EngineLimits(),
                max_running=max_running,
                max_waiting=max_waiting,
                max_answer_tokens=max_answer_tokens,
            ),
            images=replace(
                ImageLimits(),
                allow_hosts=tuple(allow_image_host or ()),
                max_images=max_images,
                max_bytes=max_image_bytes,
                max_pixels=max_image_pixels,
            ),
            batch=flags.batch_limits(
                step_tokens=step_tokens,
                kv_memory=kv_memory,
                feature_memory=feature_memory,
                picture_memory=picture_memory,
                speculate=speculate,
                share_between_owners=share_between_owners,
                threads=threads,
                kernel=kernel,
            ),
            echo_delay_s=echo_delay,
            echo_first_s=echo_first,
        )
        _check(engine, options)
        code = run(
            serve_worker(
                lambda: load_engine(engine, options),
                host=host,
                port=port,
                worker_address=worker_address,
                controller=controller_address if register else None,
                timings=replace(WorkerTimings(), heartbeat_s=heartbeat, drain_s=drain),
                token=make_token() if register or not (insecure or is_loopback(host)) else None,
            )
        )
    except LlavaError as error:
        print(error.message, file=sys.stderr)
        code = REFUSED
    tracing.stop_tracing()
    raise typer.Exit(code)


def _check(engine: str, options: EngineOptions) -> None:
    """What can be known before anything is loaded."""
    if engine not in ENGINES:
        raise BadRequest(f"no engine is called {engine!r}; there are: {', '.join(ENGINES)}")
    if engine != "echo" and not options.model_path:
        raise BadRequest("which model? Name its folder: --model-path PATH (or --engine echo, which needs none)")


if __name__ == "__main__":
    app()
