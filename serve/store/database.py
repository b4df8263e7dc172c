"""A database behind a URL: SQLite in WAL mode or PostgreSQL, brought up to date when it is opened."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, Executable, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from llava_core.config import StoreLimits
from llava_core.errors import BadRequest

MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 5_274_118
"""The number under which PostgreSQL lets one server migrate at a time."""


class Database:
    """Connections to one database. Its methods block, so they are called from threads."""

    def __init__(self, url: str, limits: StoreLimits | None = None) -> None:
        self._limits = limits or StoreLimits()
        self._url = read_url(url)
        self._engine = self._connected()
        self._file = Path(self._url.database) if self.is_sqlite and self._url.database else None
        self._inode: int | None = None

    @property
    def is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    @property
    def name(self) -> str:
        """For people and logs: without the password."""
        return self._url.render_as_string(hide_password=True)

    @property
    def is_lost(self) -> bool:
        """Whether the file that was opened is no longer the one at its place: writing on would go nowhere."""
        return self._file is not None and self._inode != _inode(self._file)

    def open(self) -> None:
        """Make the file and the tables where they are missing, and change them where they are of an older version."""
        if self._file:
            self._engine.dispose()  # whatever is still connected to a file that has gone
            self._file.parent.mkdir(parents=True, exist_ok=True)
        with self.writing() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATION_LOCK})
            migrate(connection)
        self._inode = _inode(self._file) if self._file else None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction: all of it or, when something is raised, nothing."""
        with self._engine.connect() as connection, connection.execution_options(writes=True).begin():
            yield connection

    def shrink(self, connection: Connection) -> None:
        """Give what was freed by deleting back to the disk, where the database does not by itself."""
        if self.is_sqlite:
            connection.connection.cursor().execute("PRAGMA incremental_vacuum(5000)").fetchall()  # a page with each row

    def close(self) -> None:
        self._engine.dispose()

    def _connected(self) -> Engine:
        if not self.is_sqlite:
            timeout = f"-c statement_timeout={int(self._limits.statement_s * 1000)}"
            return create_engine(
                self._url,
                pool_size=4,
                max_overflow=4,
                pool_timeout=self._limits.connect_s,
                pool_pre_ping=True,
                connect_args={"connect_timeout": max(2, int(self._limits.connect_s)), "options": timeout},
            )
        engine = create_engine(self._url, connect_args={"timeout": self._limits.connect_s})
        event.listen(engine, "connect", self._prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _prepare_sqlite(self, connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, so that tables are made in one as well
        # Of several who turn a new file to WAL at the same time, SQLite refuses one at once, whatever it was told about
        # waiting: both read, and neither could write before the other stops.
        patiently = Retrying(
            retry=retry_if_exception(_is_locked),
            stop=stop_after_delay(self._limits.connect_s),
            wait=wait_random(0.001, 0.02),
            reraise=True,
        )
        for pragma in (
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "foreign_keys = ON",
            "secure_delete = ON",  # what a person deleted is not to be found in the file
            "journal_size_limit = 33554432",
        ):
            patiently(connection.execute, f"PRAGMA {pragma}")
        # SQLite's own knows small letters in English only.
        connection.create_function(
            "lower", 1, lambda text: text.lower() if isinstance(text, str) else text, deterministic=True
        )


def read_url(url: str) -> URL:
    """The address of a database. Raises BadRequest for one that is neither SQLite nor PostgreSQL."""
    how = "write sqlite:////folder/file.db or postgresql://user:password@host/name"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise BadRequest(f"--database-url is no address of a database; {how}", param="--database-url") from None
    backend = parsed.get_backend_name()
    if backend in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif backend != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise BadRequest(f"--database-url: {backend} cannot keep chats; {how}", param="--database-url")
    try:
        parsed.get_dialect()
    except NoSuchModuleError:
        raise BadRequest(f"--database-url: {parsed.drivername} is unknown; {how}", param="--database-url") from None
    return parsed


def migrate(connection: Connection) -> None:
    """All steps that the database has not taken yet, in the transaction of `connection`."""
    script = ScriptDirectory(str(MIGRATIONS))
    steps: Callable[..., Any] = lambda revision, _: script._upgrade_revs("head", revision)  # noqa: E731
    try:
        with EnvironmentContext(Config(), script, fn=steps) as environment:
            environment.configure(connection=connection, transactional_ddl=True)
            environment.run_migrations()
    except CommandError as error:
        raise NewerDatabase(f"it was changed by a newer version than this one ({error})") from None


class NewerDatabase(Exception):
    """A database that has taken steps which are not known here."""


def upsert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, or change those whose primary key is there already. All rows name the same columns."""
    if rows:
        connection.execute(_upsert(connection.dialect.name, table, tuple(rows[0])), [dict(row) for row in rows])


@cache
def _upsert(dialect: str, table: Table, names: tuple[str, ...]) -> Executable:
    """Made once: SQLAlchemy takes longer to put it together than the database to execute it."""
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    keys = [column.name for column in table.primary_key]
    statement = insert(table)
    changes = {name: statement.excluded[name] for name in names if name not in keys}
    if not changes:
        return statement.on_conflict_do_nothing(index_elements=keys)
    return statement.on_conflict_do_update(index_elements=keys, set_=changes)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _is_locked(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _inode(file: Path) -> int | None:
    try:
        return file.stat().st_ino
    except OSError:
        return None
