"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.topology import Topology


@pytest.fixture
def topology(tmp_path: Path) -> Iterator[Topology]:
    """Servers as processes of their own, ended with the test."""
    with Topology(tmp_path) as servers:
        yield servers
