"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from serve.credentials import FOLDER, TOKEN
from tests.topology import Topology

# A machine that other tests keep busy may take its time for any one example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def chats_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes to the database of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAVA_SERVE_DATABASE_URL", f"sqlite:///{tmp_path_factory.mktemp('chats')}/chats.db")
        yield


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The token that processes know each other by, and all else they keep, is the tests' own."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        patch.delenv(TOKEN, raising=False)
        yield folder


@pytest.fixture(autouse=True)
def no_keys(data_folder: Path) -> Iterator[None]:
    """A key that one test makes is none that the next one's servers ask for."""
    yield
    for left in data_folder.glob("*keys*"):
        left.unlink()


@pytest.fixture
def topology(tmp_path: Path) -> Iterator[Topology]:
    """Servers as processes of their own, ended with the test."""
    with Topology(tmp_path) as servers:
        yield servers
