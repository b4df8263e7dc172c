"""The baseline beside the engine, in a process of its own, so that neither takes the other's threads.

OpenMP puts threads to sleep once the teams of a process outnumber the cores: two models in one process would slow each
other down even while one of them rests.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from llava_core.engines.load import EngineOptions
from llava_core.errors import EngineFailure
from serve.bench.bandwidth import Limits, WeightFacts, measure_limits, weigh
from serve.bench.generate import GenerateEngine, load_generate_engine

_END_S = 15.0

Job = Callable[[GenerateEngine, Callable[[str], None]], Awaitable[Any]]
"""What the process does with its engine; can be pickled. It tells what it is doing through its second argument."""


@dataclass
class Aside:
    """The parent's end. One job at a time."""

    connection: Connection
    told: Callable[[str], None]

    async def run(self, job: Job) -> Any:
        """What the job returned. EngineFailure with its words if it failed, or if the process is gone."""
        self.connection.send(job)
        return await self.answer()

    async def answer(self) -> Any:
        while True:
            try:
                kind, value = await asyncio.to_thread(self.connection.recv)
            except EOFError as cause:
                raise EngineFailure("the baseline's process ended; its last words are above") from cause
            if kind == "told":
                self.told(value)
            elif kind == "failed":
                raise EngineFailure(f"the baseline: {value}")
            else:
                return value


@asynccontextmanager
async def baseline_aside(options: EngineOptions, *, told: Callable[[str], None]) -> AsyncGenerator[Aside]:
    """Load the baseline in a process of its own. EngineFailure if it cannot be loaded."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_process, args=(theirs, options), daemon=True)
    process.start()
    theirs.close()
    try:
        aside = Aside(ours, told)
        await aside.answer()
        yield aside
    finally:
        ours.close()
        await asyncio.to_thread(process.join, _END_S)
        if process.is_alive():
            process.kill()


async def limits_of(engine: GenerateEngine, told: Callable[[str], None]) -> tuple[WeightFacts, Limits]:
    """A job: the machine's limits for the engine's model."""
    from llava_core.engines.transformers.threads import in_passing_thread, set_threads

    def measure() -> tuple[WeightFacts, Limits]:
        if engine.model.device.type == "cpu":
            set_threads(None)
        return weigh(engine.model), measure_limits(engine.model)

    told("the machine's memory")
    return await asyncio.to_thread(in_passing_thread, measure)


def _process(connection: Connection, options: EngineOptions) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_serve(connection, options))


def _end_with_parent() -> None:
    """A job takes minutes; nobody waits for it once the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


async def _serve(connection: Connection, options: EngineOptions) -> None:
    def told(what: str) -> None:
        connection.send(("told", what))

    try:
        engine = load_generate_engine(options)
    except Exception as error:
        connection.send(("failed", str(error)))
        return
    connection.send(("done", None))
    while True:
        try:
            job: Job = await asyncio.to_thread(connection.recv)
        except EOFError:
            break
        try:
            connection.send(("done", await job(engine, told)))
        except Exception as error:
            connection.send(("failed", str(error)))
    await engine.aclose()
