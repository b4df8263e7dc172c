"""Pictures on their way to a worker: written from their files, piece by piece, as the same body."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from llava_core.chat_protocol import write_call
from llava_core.errors import BadImage
from llava_core.types import ImageFile, ImagePart, Request, Sampling, TextPart, assistant, user
from serve.request_body import RequestBody, request_body
from tests.faults.fake_engine import FakeEngine
from tests.faults.rig import rig


def drawn(folder: Path, size: int, name: str = "a.png") -> ImageFile:
    data = os.urandom(size)
    (folder / name).write_bytes(data)
    return ImageFile(folder / name, "image/png", size)


@pytest.mark.parametrize("size", [1, 2, 3, 73_727, 73_728, 73_729, 1_000_000])
async def test_the_pieces_are_the_body_that_would_be_written_at_once(tmp_path: Path, size: int) -> None:
    first, second = drawn(tmp_path, size), drawn(tmp_path, 10, "b.png")
    plain = ImagePart("data:image/png;base64,AAAA")
    messages = (user(first, TextPart("Ünï “one”")), assistant("it"), user(plain, second, first, TextPart("and?")))
    request = Request("m", messages, Sampling(seed=3))
    body = await request_body(request)
    assert isinstance(body, RequestBody)
    for _ in range(2):
        whole = b"".join([bytes(piece) async for piece in body.pieces()])
        assert whole == write_call(request)
        assert len(whole) == body.size


async def test_a_picture_is_the_same_by_its_file_and_by_its_url(tmp_path: Path) -> None:
    picture = drawn(tmp_path, 100)
    assert picture.url == f"data:image/png;base64,{base64.b64encode(picture.path.read_bytes()).decode()}"


@pytest.mark.parametrize("what", ["gone", "shorter"])
async def test_a_file_that_changed_on_the_way_is_told_as_a_picture_that_is_gone(tmp_path: Path, what: str) -> None:
    picture = drawn(tmp_path, 200_000)
    async with rig([FakeEngine()]) as there:
        if what == "gone":
            picture.path.unlink()
        else:
            picture.path.write_bytes(b"short")
        with pytest.raises(BadImage, match="attach it again"):
            async for _ in there.client.stream(Request("m", (user(picture, TextPart("What is it?")),))):
                pass


async def test_a_worker_gets_the_picture_of_a_file(tmp_path: Path) -> None:
    picture, engine = drawn(tmp_path, 300_000), FakeEngine()
    async with rig([engine]) as there:
        async for _ in there.client.stream(Request("m", (user(picture, TextPart("What is it?")),))):
            pass
    assert engine.asked[0].images[0].url == picture.url
