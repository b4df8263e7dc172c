"""Databases to test on: SQLite always, and a PostgreSQL of our own where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from serve.store.database import Database
from tests.topology import free_port

_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _program(name: str) -> str | None:
    return shutil.which(name) or next((str(folder / name) for folder in _FOLDERS if (folder / name).exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server's maintenance database, without the database's name."""
    initdb, server = _program("initdb"), _program("postgres")
    if initdb is None or server is None:
        pytest.skip("needs PostgreSQL's initdb and postgres; on Debian: apt install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="llava-serve-postgres-"))
    user = _somebody_else(folder) if os.geteuid() == 0 else None
    if os.geteuid() == 0 and user is None:
        pytest.skip("PostgreSQL does not run as root, and this machine has no other user to run it")
    data, port = folder / "data", free_port()
    made = subprocess.run(
        [initdb, "--no-sync", "--auth=trust", "--username=tester", "--encoding=UTF8", "--locale=C.UTF-8", str(data)],
        user=user, capture_output=True, text=True, timeout=120, cwd=folder,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with (folder / "postgres.log").open("wb") as log:
        process = subprocess.Popen(
            [server, "-D", str(data), "-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1",
             "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=40"],
            user=user, stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
    try:
        yield _once_it_answers(f"postgresql://tester@127.0.0.1:{port}", process, folder / "postgres.log")
    finally:
        process.send_signal(signal.SIGINT)  # ends connections that are still open
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _somebody_else(folder: Path) -> int | None:
    """A user without rights, to whom the folder is given."""
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, user.pw_uid, user.pw_gid)
        return user.pw_uid
    return None


def _once_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> str:
    import psycopg

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            psycopg.connect(f"{url}/postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return url
    raise AssertionError(f"PostgreSQL does not answer:\n{log.read_text()}")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/kept/chats.db"
        return
    import psycopg

    server, name = request.getfixturevalue("postgres"), f"test_{uuid4().hex}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')  # pyright: ignore[reportArgumentType, reportCallIssue]
    yield f"{server}/{name}"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(url)
    made.open()
    yield made
    made.close()
