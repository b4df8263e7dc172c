"""Where things are kept that were fetched or made once and serve every later start."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$LLAVA_SERVE_CACHE, else the user's cache folder."""
    named = os.environ.get("LLAVA_SERVE_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "llava-serve"
