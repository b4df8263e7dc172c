"""Keeps a worker on the controller's list: registers whenever the controller appears, then beats, then says goodbye.

A line to the controller stays open meanwhile: whichever side dies, the other knows at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from llava_core.config import CONTROL_PORT, WorkerTimings
from llava_core.errors import LlavaError, NoWorker
from serve.http_errors import error_from
from serve.protocol import Goodbye, HeartBeat, Registration, WorkerName, WorkerStatus

log = logging.getLogger(__name__)


class Registrar:
    """Speaks for one worker, at `worker_address`, to one controller. `status` tells how busy the worker is now."""

    def __init__(
        self,
        controller: str,
        worker_address: str,
        status: Callable[[], WorkerStatus],
        timings: WorkerTimings | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        token: str | None = None,
    ) -> None:
        self._controller = controller.rstrip("/")
        self._address = worker_address
        self._status = status
        self._timings = timings or WorkerTimings()
        self._http = httpx.AsyncClient(
            timeout=self._timings.control_timeout_s,
            trust_env=False,
            transport=transport,
            headers={"Authorization": f"Bearer {token}"} if token else None,
        )
        self._trouble = ""
        self._leaving = False

    async def keep_registered(self) -> None:
        """Until cancelled or goodbye. A controller that is away, refuses or forgets is asked again, ever less often."""
        while not self._leaving:
            await self._register()
            parts = [asyncio.create_task(self._hold_line()), asyncio.create_task(self._beat_on())]
            try:
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for part in parts:
                    part.cancel()
                await asyncio.wait(parts)
            # All workers notice at the same moment that a controller has gone.
            await asyncio.sleep(random.uniform(0, self._timings.register_backoff_first_s))

    async def say_goodbye(self) -> None:
        """Best effort: a controller that cannot be told notices by itself when the line ends."""
        self._leaving = True
        try:
            await self._post("/deregister_worker", Goodbye(self._address, self._timings.drain_s))
        except LlavaError as error:
            log.info("could not deregister: %s", error.message)
        await self._http.aclose()

    async def _register(self) -> None:
        timings = self._timings
        attempts = AsyncRetrying(
            wait=wait_random_exponential(
                multiplier=timings.register_backoff_first_s, max=timings.register_backoff_most_s
            ),
            retry=retry_if_exception_type(LlavaError),
            before_sleep=self._note_trouble,
        )
        async for attempt in attempts:
            with attempt:
                await self._post("/register_worker", Registration(self._address, self._status()))
        self._trouble = ""
        log.info("registered at %s as %s", self._controller, self._address)

    async def _hold_line(self) -> None:
        """As long as the line holds; for ever where the controller knows no lines."""
        patience = httpx.Timeout(self._timings.control_timeout_s, read=3 * self._timings.ping_s)
        body = asdict(WorkerName(self._address))
        try:
            async with self._http.stream(
                "POST", self._controller + "/hold_worker_line", json=body, timeout=patience
            ) as line:
                if line.status_code in (404, 405):
                    await asyncio.Event().wait()
                if line.status_code == 200:
                    async for _ in line.aiter_raw():
                        pass
            log.warning("the controller ended its line to this worker")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            log.warning("lost the controller: its line broke (%s)", type(error).__name__)

    async def _beat_on(self) -> None:
        """As long as the controller knows this worker."""
        listed = True
        while listed:
            await asyncio.sleep(self._timings.heartbeat_s)
            listed = await self._beat()

    async def _beat(self) -> bool:
        try:
            answer = await self._post("/receive_heart_beat", HeartBeat(self._address, self._status().queue_length))
        except LlavaError as error:
            log.warning("lost the controller: %s", error.message)
            return False
        return answer.get("exist") is True

    async def _post(self, path: str, record: Registration | HeartBeat | Goodbye) -> dict[str, Any]:
        try:
            answer = await self._http.post(self._controller + path, json=asdict(record))
            if answer.status_code == 404:
                raise NoWorker(
                    f"{self._controller} has no control plane; name the controller's control port, "
                    f"as in --controller http://HOST:{CONTROL_PORT}"
                )
            if answer.status_code != 200:
                source = f"the controller at {self._controller}"
                raise error_from(answer.status_code, answer.headers, answer.content, source=source)
            return dict(answer.json())
        except (httpx.HTTPError, httpx.InvalidURL) as cause:
            raise NoWorker(f"the controller at {self._controller} cannot be reached ({cause!r})") from cause
        except (ValueError, TypeError) as cause:
            raise NoWorker(f"what answers at {self._controller} is no controller") from cause

    def _note_trouble(self, state: RetryCallState) -> None:
        """Each trouble is told once, not once a second."""
        error = state.outcome.exception() if state.outcome else None
        trouble = error.message if isinstance(error, LlavaError) else str(error)
        if trouble != self._trouble:
            log.warning("not registered yet: %s", trouble)
            self._trouble = trouble
