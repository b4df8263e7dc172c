"""Writes chats to the database from a thread of its own, so that neither tokens nor people ever wait for a disk.

What is handed over is the latest state of a chat, not a list of changes: a state that was not written yet is simply
replaced by the next. When the database fails, the states wait here, the trouble is told in words and numbers, and
everything is written once the database is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, IntegrityError, OperationalError, SQLAlchemyError

from llava_core.config import StoreLimits
from serve.store.database import Database, NewerDatabase
from serve.store.images import sweep_images
from serve.store.records import KeptChat
from serve.store.removing import remove_older
from serve.store.writing import ChatWriter, Noted

log = logging.getLogger(__name__)
T = TypeVar("T")
_MOST_GIVEN_UP = 10_000
"""Chats of which it is known that they are not kept."""


@dataclass(frozen=True)
class StoreState:
    """How keeping goes. `trouble` is empty while all is well; `unsaved` chats wait for the database to come back."""

    trouble: str = ""
    unsaved: int = 0
    failures: int = 0
    given_up: int = 0
    """Chats that are not kept as they are: too many waited, or the database refused just them."""


class Keeper:
    """`note` may be called at every token. Functions given to `do` run in one transaction, after all that was noted."""

    def __init__(
        self,
        database: Database,
        limits: StoreLimits | None = None,
        *,
        keep_days: int = 0,
        originals: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self.written = ChatWriter(database, originals=originals, now=now)
        """What is there already."""
        self._limits = limits or StoreLimits()
        self._keep_days = keep_days
        self._now = now
        self._changed = threading.Condition()
        self._unsaved: dict[str, Callable[[], KeptChat]] = {}
        self._jobs: list[_Job] = []
        self._state = StoreState()
        self._given_up: OrderedDict[str, None] = OrderedDict()
        self._opened = False
        self._tried = threading.Event()  # to open the database, with whatever success
        self._closing = False
        self._retry_s = self._limits.retry_first_s
        self._swept_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Write what waits, as far as the database lets us within `close_s`, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(self._limits.close_s)
        self._database.close()

    @property
    def state(self) -> StoreState:
        with self._changed:
            waiting = len(self._unsaved) if self._state.trouble else 0
            return replace(self._state, unsaved=waiting, given_up=len(self._given_up))

    @property
    def given_up(self) -> tuple[str, ...]:
        """The chats that are not kept as they are, until the next state of one is kept."""
        with self._changed:
            return tuple(self._given_up)

    def note(self, chat: str, make: Callable[[], KeptChat]) -> None:
        """Keep the chat in the state that `make` gives; it is called in the keeper's thread, with the latest only."""
        with self._changed:
            first = not self._unsaved
            if chat not in self._unsaved and len(self._unsaved) >= self._limits.max_unsaved:
                dropped = next(iter(self._unsaved))
                del self._unsaved[dropped]
                self._miss(dropped)
            self._unsaved[chat] = make
            if first:  # else the thread knows already that there is something to do
                self._changed.notify()

    def forget(self, chat: str) -> None:
        """Nothing that was noted of this chat so far is written any more."""
        with self._changed:
            self._unsaved.pop(chat, None)
            self._given_up.pop(chat, None)
        self.written.forget(chat)

    def do(self, job: Callable[[Connection], T]) -> Future[T]:
        """The job's result; while the database fails, its error at once."""
        waiting: Future[T] = Future()
        with self._changed:
            if self._state.trouble:
                waiting.set_exception(StoreTrouble(self._state.trouble))
            else:
                self._jobs.append(_Job(job, waiting))
                self._changed.notify()
        return waiting

    def read(self, job: Callable[[Connection], T]) -> T:
        """In the caller's thread, of what is written. Raises StoreTrouble."""
        self._tried.wait(self._limits.connect_s)
        if self.state.trouble:
            raise StoreTrouble(self.state.trouble)
        try:
            with self._database.reading() as connection:
                return job(connection)
        except (SQLAlchemyError, OSError) as error:
            log.warning("reading from %s failed: %s", self._database.name, error)
            raise StoreTrouble(_reason(error)) from error

    # in the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                at_once = not self._opened or self._state.trouble
                self._changed.wait_for(self._is_due, timeout=0 if at_once else self._limits.sweep_s)
                closing = self._closing
                chats, jobs = list(self._unsaved.items()), self._jobs
                self._jobs = []
            try:
                self._open()
                self._tried.set()
                for chat, make in self._keep_growing(chats):
                    self._keep(chat, make)
                self._recovered()
            except Exception as error:
                # Whatever it is: with this thread gone, chats would be lost and nobody told.
                self._failed(error, jobs)
                jobs = []
            self._tried.set()
            for job in jobs:
                self._answer(job)
            self._sweep()
            if closing:
                return
            with self._changed:
                pause = self._retry_s if self._state.trouble else self._limits.pause_s
                self._changed.wait_for(lambda: self._closing or bool(self._jobs), timeout=pause)

    def _is_due(self) -> bool:
        return bool(self._unsaved or self._jobs or self._closing)

    def _open(self) -> None:
        if self._opened and not self._state.trouble and not self._database.is_lost:
            return
        self.written.forget_all()
        self._database.open()
        self._opened = True

    def _keep_growing(self, chats: Sequence[Noted]) -> Sequence[Noted]:
        """Keep those of which only texts have grown. The others are left."""
        done = self.written.save_growing(chats)
        for chat, make in done:
            self._done_with(chat, make, kept=True)
        return [noted for noted in chats if noted not in done]

    def _keep(self, chat: str, make: Callable[[], KeptChat]) -> None:
        kept = True
        try:
            self.written.save(make())
        except (IntegrityError, DataError):
            self.written.forget(chat)  # somebody else changed it: write all of it
            kept = self._once_more(chat, make)
        except (SQLAlchemyError, OSError):
            raise
        except Exception:
            kept = False
            log.exception("the chat %s cannot be kept", chat[:6])
        self._done_with(chat, make, kept)

    def _once_more(self, chat: str, make: Callable[[], KeptChat]) -> bool:
        try:
            self.written.save(make())
        except (IntegrityError, DataError):
            log.exception("the chat %s cannot be kept", chat[:6])
            return False
        return True

    def _done_with(self, chat: str, make: Callable[[], KeptChat], kept: bool) -> None:
        with self._changed:
            if self._unsaved.get(chat) is make:
                del self._unsaved[chat]
            if kept:
                self._given_up.pop(chat, None)
            else:
                self._miss(chat)

    def _miss(self, chat: str) -> None:
        self._given_up[chat] = None
        while len(self._given_up) > _MOST_GIVEN_UP:
            self._given_up.popitem(last=False)

    def _answer(self, job: _Job) -> None:
        if not job.waiting.set_running_or_notify_cancel():
            return
        try:
            with self._database.writing() as connection:
                result = job.run(connection)
            job.waiting.set_result(result)
        except (SQLAlchemyError, OSError) as error:
            self._failed(error, [])
            job.waiting.set_exception(StoreTrouble(_reason(error)))
        except Exception as error:
            job.waiting.set_exception(error)

    def _sweep(self) -> None:
        """Now and then: chats that were kept long enough, pictures nobody has any more."""
        now = time.monotonic()
        if self._state.trouble or (self._swept_at is not None and now - self._swept_at < self._limits.sweep_s):
            return
        self._swept_at = now
        try:
            with self._database.writing() as connection:
                if self._keep_days:
                    gone = remove_older(connection, self._now() - timedelta(days=self._keep_days))
                    if gone:
                        log.info("%d chats older than %d days were deleted", gone, self._keep_days)
                        self.written.forget_all()
                sweep_images(connection)
                self._database.shrink(connection)
        except (SQLAlchemyError, OSError) as error:
            log.warning("old chats could not be deleted: %s", error)

    def _recovered(self) -> None:
        with self._changed:
            if self._state.trouble:
                log.warning("%s works again", self._database.name)
            self._state = replace(self._state, trouble="")
            self._retry_s = self._limits.retry_first_s

    def _failed(self, error: Exception, jobs: list[_Job]) -> None:
        reason = _reason(error)
        with self._changed:
            first = not self._state.trouble
            self._state = replace(self._state, trouble=reason, failures=self._state.failures + 1)
            self._retry_s = self._limits.retry_first_s if first else min(2 * self._retry_s, self._limits.retry_most_s)
            self.written.forget_all()
            jobs = [*jobs, *self._jobs]
            self._jobs = []
        if first:
            log.warning("chats are not kept at the moment, %s: %s", self._database.name, error)
        for job in jobs:
            if job.waiting.set_running_or_notify_cancel():
                job.waiting.set_exception(StoreTrouble(reason))


class StoreTrouble(Exception):
    """The database cannot be used now; the words are for people."""


@dataclass(frozen=True)
class _Job:
    run: Callable[[Connection], Any]
    waiting: Future[Any]


def _reason(error: Exception) -> str:
    said = str(error).lower()
    if "full" in said or "no space" in said or "quota" in said:
        return "this server's disk is full"
    if "readonly" in said or "read-only" in said or "permission" in said:
        return "this server may not write to its database"
    if isinstance(error, NewerDatabase):
        return "this server's database was changed by a newer version of it"
    if isinstance(error, OperationalError | OSError):
        return "this server's database cannot be reached"
    return "this server's database does not work as it should"
