"""Icons with names, out of icon sets that come as npm packages: five styles of the same 800 things."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

STYLES = ("noto", "fluent-emoji-flat", "fluent-emoji", "twemoji", "openmoji")
_GROUPS = (3, 4, 5, 6, 7)
"""emojibase's groups of animals and plants, food, places and vehicles, activities, objects."""
_UNSUITED = re.compile(r"oclock|thirty|mahjong|nazar|hanafuda|hot-springs|-face$|tone|pi-ata")
_TESTED = 0.12


@dataclass(frozen=True)
class Icon:
    """A thing in one style."""

    name: str
    style: str
    slug: str

    @property
    def tested(self) -> bool:
        """Whether it is kept for tests: decided by its name and style, so that no run of anything can change it."""
        number = int.from_bytes(hashlib.sha256(f"{self.style}/{self.slug}".encode()).digest()[:4], "big")
        return number / 2**32 < _TESTED


class IconSets:
    """Icons below a folder with the unpacked packages."""

    def __init__(self, folders: dict[str, Path], words: Path) -> None:
        self._folders, self._words = folders, words

    @cached_property
    def _sets(self) -> dict[str, dict[str, Any]]:
        return {style: json.loads((folder / "icons.json").read_text()) for style, folder in self._folders.items()}

    @cached_property
    def icons(self) -> tuple[Icon, ...]:
        found: list[Icon] = []
        for entry in json.loads((self._words / "en" / "data.json").read_text()):
            slug = re.sub(r"[^a-z0-9]+", "-", entry["label"].lower().replace("’", "").replace("'", "")).strip("-")
            if entry.get("group") in _GROUPS and not _UNSUITED.search(slug):
                styles = [style for style in self._sets if self._body(style, slug)]
                found += [Icon(slug.replace("-", " "), style, slug) for style in styles]
        return tuple(found)

    def names(self) -> list[str]:
        return sorted({icon.name for icon in self.icons})

    def picture(self, icon: Icon) -> Callable[[int], Image.Image]:
        """Draws the icon at the size it is asked for."""
        return lambda side: self._drawn(icon, side)

    def _body(self, style: str, slug: str) -> dict[str, Any] | None:
        icons = self._sets[style]
        for _ in range(3):
            if slug in icons["icons"]:
                return icons["icons"][slug]
            slug = icons.get("aliases", {}).get(slug, {}).get("parent", "")
        return None

    def _drawn(self, icon: Icon, side: int) -> Image.Image:
        import resvg_py

        icons, body = self._sets[icon.style], self._body(icon.style, icon.slug)
        assert body is not None
        wide, high = (body.get(key) or icons.get(key) or 16 for key in ("width", "height"))
        svg = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        svg += f'viewBox="0 0 {wide} {high}" width="{side}" height="{side}">{body["body"]}</svg>'
        drawn = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))
        return Image.open(io.BytesIO(drawn)).convert("RGBA")


def split(icons: Iterable[Icon], *, tested: bool) -> list[Icon]:
    return [icon for icon in icons if icon.tested is tested]
