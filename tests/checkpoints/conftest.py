"""Tiny checkpoints of every family, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_core.checkpoints.tiny import FAMILIES, build_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by family; copy one before changing it."""
    root = tmp_path_factory.mktemp("families")
    return {family: build_tiny(family, root / family) for family in FAMILIES}
