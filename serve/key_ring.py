"""API keys: named, kept only as hashes, each valid until it expires or is revoked.

The file is read again when it changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from llava_core.errors import BadRequest
from serve.credentials import data_folder
from serve.quota import Quota

log = logging.getLogger(__name__)

PREFIX = "llava-"
MAX_NAME_CHARS = 64
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Key:
    """Times are seconds of the calendar's clock. `hint` is how the key begins, to tell keys apart."""

    name: str
    hash: str
    hint: str
    created: float
    expires: float | None = None
    revoked: float | None = None
    rate: str | None = None
    """Requests in a time, as in 60/minute, and at once; None is what all keys have."""
    at_once: int | None = None

    def is_valid(self, now: float) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)


def keys_file() -> Path:
    return data_folder() / "keys.json"


class KeyRing:
    """The keys in one file. While it has never held any, nobody is asked for one."""

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.monotonic, calendar: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._clock = clock
        self._calendar = calendar
        self._keys: dict[str, Key] = {}
        self._seen: tuple[int, int] | None = None
        self._look_at = 0.0
        self._told = False
        """Whether it was said that the file cannot be read."""
        self._keys = self._load()

    @property
    def asks(self) -> bool:
        """Whether callers need a key: from the first one on, even when all are revoked."""
        self._look()
        return bool(self._keys)

    def name_of(self, secret: str) -> str | None:
        """Whose key this is, if it is a valid one."""
        self._look()
        key = self._keys.get(hash_of(secret))
        return key.name if key is not None and key.is_valid(self._calendar()) else None

    def holds(self, digest: str) -> bool:
        """Whether the key of which `hash_of` gave this is valid."""
        self._look()
        key = self._keys.get(digest)
        return key is not None and key.is_valid(self._calendar())

    def quota_of(self, name: str) -> Quota | None:
        """What the holder of this key may ask for, where it is not what all may."""
        self._look()
        now = self._calendar()
        for key in self._keys.values():
            if key.name == name and key.is_valid(now):
                return Quota(key.rate, key.at_once) if key.rate or key.at_once else None
        return None

    def listed(self) -> tuple[Key, ...]:
        return tuple(sorted(self._load().values(), key=lambda key: key.created))

    def add(self, name: str, *, days: float | None = None, quota: Quota | None = None) -> str:
        """A new key; it is told this once. Raises BadRequest for a name that is none or taken."""
        if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable() or name != name.strip():
            raise BadRequest(f"a key's name has 1 to {MAX_NAME_CHARS} printable characters")
        keys, now = self._load(), self._calendar()
        if any(key.name == name and key.is_valid(now) for key in keys.values()):
            raise BadRequest(f"there is a key called {name!r} already; revoke it first, or choose another name")
        secret = PREFIX + secrets.token_urlsafe(32)
        expires = None if days is None else now + days * 86_400
        quota = quota or Quota()
        hint = secret[: len(PREFIX) + 4]
        key = Key(name, hash_of(secret), hint, now, expires, rate=quota.rate, at_once=quota.at_once)
        self._write({**keys, key.hash: key})
        return secret

    def limit(self, name: str, quota: Quota) -> None:
        """Raises BadRequest where no valid key has this name."""
        self._change(name, lambda key: replace(key, rate=quota.rate, at_once=quota.at_once))

    def revoke(self, name: str) -> None:
        """Raises BadRequest where no valid key has this name."""
        now = self._calendar()
        self._change(name, lambda key: replace(key, revoked=now))

    def _change(self, name: str, change: Callable[[Key], Key]) -> None:
        keys, now = self._load(), self._calendar()
        found = [key for key in keys.values() if key.name == name and key.is_valid(now)]
        if not found:
            raise BadRequest(f"no valid key is called {name!r}; python -m serve.keys list shows all")
        self._write({**keys, **{key.hash: change(key) for key in found}})

    def _look(self) -> None:
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        if self._stamp() == self._seen:
            return
        try:
            self._keys = self._load()
            self._told = False
        except BadRequest as error:
            if not self._told:
                log.error("%s; the keys known before stay valid, and nothing newer holds", error.message)
            self._told = True

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def _load(self) -> dict[str, Key]:
        """What the file holds. One that was there and is gone or broken takes nobody's key away: it keeps being asked
        for, by those known before."""
        stamp = self._stamp()
        if stamp is None:
            return self._keys
        try:
            keys = {key.hash: key for key in _KEYS.validate_python(json.loads(self._path.read_text()))}
        except (OSError, ValueError, ValidationError) as error:
            raise BadRequest(f"the keys in {self._path} cannot be read: {type(error).__name__}") from None
        self._seen = stamp
        return keys

    def _write(self, keys: dict[str, Key]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        with open(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            json.dump([asdict(key) for key in keys.values()], file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        with suppress(OSError):  # root changes keys for those who serve with them
            before = self._path.stat()
            os.chown(fresh, before.st_uid, before.st_gid)
        fresh.replace(self._path)
        self._keys, self._seen = keys, self._stamp()


def hash_of(secret: str) -> str:
    """Keys are random and long, so that a plain hash keeps them."""
    return hashlib.sha256(secret.encode()).hexdigest()


_KEYS = TypeAdapter(list[Key])
