"""The pictures of a chat, which come again with every turn: decoded and preprocessed once, then kept for a while."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from PIL import Image

from llava_core.checkpoints.base import PreparedImage
from llava_core.images import ImageLoader
from llava_core.types import ImagePart


@dataclass(frozen=True)
class Taken:
    """A request's pictures in order, prepared or only decoded, and under which names they may be kept."""

    pictures: list[Image.Image | PreparedImage]
    names: list[bytes | None]


class Pictures:
    """Bounded in bytes, least recently used out first. Only what a request holds in itself is kept: behind another
    address the picture may change. Nobody's pictures speed up another person's, unless owners share."""

    def __init__(self, loader: ImageLoader, limit_bytes: int, *, share_between_owners: bool = False) -> None:
        self._loader = loader
        self._limit = limit_bytes
        self._share_between_owners = share_between_owners
        self._kept: OrderedDict[bytes, PreparedImage] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    async def take(self, images: Seq[ImagePart], owner: str) -> Taken:
        """Known pictures as they were prepared, the others decoded. Raises BadImage."""
        if not images:
            return Taken([], [])
        names = await asyncio.to_thread(_names, images, "" if self._share_between_owners else owner)
        with self._lock:
            known = {place: self._kept[name] for place, name in enumerate(names) if name in self._kept}
            for place in known:
                self._kept.move_to_end(names[place] or b"")
        decoded = iter(await self._loader.load(images, skip=known))
        return Taken([known[place] if place in known else next(decoded) for place in range(len(images))], names)

    def keep(self, taken: Taken, prepared: Seq[PreparedImage]) -> None:
        """Remember how the pictures of a request were prepared; callable from any thread."""
        with self._lock:
            for name, image in zip(taken.names, prepared, strict=True):
                size = _size(image)
                if name is None or name in self._kept or size > self._limit:
                    continue
                self._kept[name] = image
                self._bytes += size
            while self._bytes > self._limit:
                _, old = self._kept.popitem(last=False)
                self._bytes -= _size(old)

    async def aclose(self) -> None:
        await self._loader.aclose()


def _names(images: Seq[ImagePart], owner: str) -> list[bytes | None]:
    """How many pictures a chat has decides how large each is kept and whether it is tiled, so names hold the count."""
    before = f"{len(images)} {len(owner)} {owner} ".encode()
    return [
        hashlib.sha256(before + image.url.encode()).digest() if image.url[:5].lower() == "data:" else None
        for image in images
    ]


def _size(image: PreparedImage) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in image.inputs.values())
