"""The pictures with questions that an empty chat offers, as `examples/examples.json` lists them."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    file: str
    path: Path
    title: str
    questions: tuple[str, ...]
    credit: str = ""


def load(folder: Path) -> tuple[Example, ...]:
    """Every listed example whose picture is there; a missing or broken list means none and a line in the log."""
    listing = folder / "examples.json"
    try:
        rows = json.loads(listing.read_text("utf-8"))
        found = [
            Example(
                file=str(row["file"]),
                path=folder / str(row["file"]),
                title=str(row.get("title") or row["file"]),
                questions=tuple(str(question) for question in row["questions"]),
                credit=" · ".join(str(row[key]) for key in ("credit", "licence") if row.get(key)),
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("no examples are shown: %s cannot be read (%s)", listing.name, error)
        return ()
    return tuple(example for example in found if example.questions and example.path.is_file())
