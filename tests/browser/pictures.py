"""Pictures that tests attach: drawn on the spot, each known by its size."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image, ImageDraw


def png(width: int, height: int, colour: str = "teal") -> bytes:
    picture = Image.new("RGB", (width, height), colour)
    ImageDraw.Draw(picture).ellipse((width // 4, height // 4, width // 2, height // 2), fill="orange")
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def save(folder: Path, name: str, width: int, height: int) -> Path:
    path = folder / name
    path.write_bytes(png(width, height))
    return path


def make_examples(folder: Path) -> Path:
    rows = []
    for number in range(4):
        name = f"example-{number}.png"
        (folder / name).write_bytes(png(300 + number, 200, ("teal", "coral", "gold", "plum")[number]))
        rows.append(
            {
                "file": name,
                "title": f"Example {number}",
                "questions": [f"What is example {number}?", f"Why example {number}?"],
            }
        )
    (folder / "examples.json").write_text(json.dumps(rows))
    return folder
