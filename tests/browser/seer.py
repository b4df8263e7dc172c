"""A worker that tells what it sees, without a model: it repeats what it received, and looks at its picture's middle.

python -m tests.browser.seer --controller http://127.0.0.1:21000
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
from collections.abc import AsyncGenerator
from dataclasses import replace

from PIL import Image

from llava_core.checkpoints.seen import any_res, kept_of
from llava_core.engines.echo import EchoEngine
from llava_core.inspection import Looks, PictureLooks, PromptPiece, SeenAttention, SeenPicture, SeenPrompt
from llava_core.types import Chunk, Request, TokenLogprob
from serve.credentials import make_token
from serve.model_worker import serve_worker

TARGET, TILE, SIDE, LAYERS = (112, 112), 56, 4, 3


class Seer(EchoEngine):
    def __init__(self) -> None:
        super().__init__("seer", delay_s=0.001)
        self._info = replace(self._info, inspects=True)

    async def generate(self, request: Request) -> AsyncGenerator[Chunk]:
        async for chunk in super().generate(request):
            if not chunk.text:
                yield chunk
                continue
            others = tuple((number, f" {number}", -1.5 - number) for number in range(4))
            token = TokenLogprob(1, chunk.text, -0.4, ((1, chunk.text, -0.4), *others))
            yield replace(chunk, logprobs=(token,))

    async def look(self, request: Request) -> SeenPrompt:
        pictures = tuple(map(_seen, request.images))
        shown = [PromptPiece("picture", picture.tokens, picture=place) for place, picture in enumerate(pictures)]
        words = tuple(f" {word}" for word in request.messages[-1].text.split())
        pieces = (PromptPiece("special", 1, ("<s>",)), *shown, PromptPiece("text", len(words), words))
        return SeenPrompt("seer", sum(piece.tokens for piece in pieces), pieces, pictures)

    async def attend(self, request: Request, first: int, count: int) -> SeenAttention:
        picture = _seen(request.images[0])
        row = [0.0] * picture.tokens
        grid = picture.grids[-1]
        row[grid.start + grid.rows // 2 * grid.stride + grid.columns // 2] = 0.1 * (first + 1)
        plain = [0.001] * picture.tokens
        looks = PictureLooks(Looks.pack([row] * LAYERS), Looks.pack([row]), Looks.pack([plain] * (LAYERS + 1)))
        return SeenAttention(first, count, LAYERS, (looks,), picture.start + picture.tokens)


def _seen(image: object) -> SeenPicture:
    data = base64.b64decode(getattr(image, "url").partition(",")[2])  # noqa: B009  a part of any kind
    with Image.open(io.BytesIO(data)) as opened:
        size = opened.size
    kept = kept_of(size, TARGET, TILE, SIDE, digits=7)
    layout = any_res(size, TARGET, tile=TILE, side=SIDE, kept=kept)
    return layout.at(1, sum(tile.tokens for tile in layout.tiles) + layout.separators)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--controller", required=True)
    asked = parser.parse_args()
    serving = serve_worker(
        Seer, host=asked.host, port=asked.port, worker_address=None, controller=asked.controller, token=make_token()
    )
    raise SystemExit(asyncio.run(serving))


if __name__ == "__main__":
    main()
