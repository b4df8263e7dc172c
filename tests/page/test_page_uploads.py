"""Uploads: nothing of what cameras wrote ever lies in a file, and nobody's pictures keep another's out."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

from llava_core.config import ImageLimits, UploadLimits
from serve.page.gate import PageFrame
from serve.page.pictures import PictureDesk
from serve.page.uploads import Uploads

MARKER = b"at 48.137, 11.575 by Ann"
KIB = 1024


def picture(kind: str = "PNG") -> bytes:
    made = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = MARKER.decode(), 6
    Image.new("RGB", (40, 30), "teal").save(made, kind, exif=exif)
    return made.getvalue()


@asynccontextmanager
async def browser(uploads: Uploads, address: str = "1.2.3.4", login: str = "") -> AsyncIterator[httpx.AsyncClient]:
    frame = PageFrame(PlainTextResponse("Gradio's"), uploads, local=True, login_of=lambda headers: login)
    transport = httpx.ASGITransport(frame, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


async def send(http: httpx.AsyncClient, data: bytes, name: str = "a.png") -> httpx.Response:
    return await http.post("/gradio_api/upload", files={"files": (name, data)})


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
async def test_what_a_camera_wrote_is_gone_before_a_picture_is_asked_about(tmp_path: Path, kind: str):
    data = picture(kind)
    assert MARKER in data
    for originals in (False, True):
        folder = tmp_path / str(originals)
        async with browser(Uploads(folder, originals=originals)) as http:
            [path] = (await send(http, data, "cat.x")).json()
        [file] = files_below(folder)
        assert str(file) == path
        assert (MARKER in file.read_bytes()) == originals
        with Image.open(file) as kept:
            assert kept.getexif()[0x0112] == 6
        [accepted] = await PictureDesk(folder).accept([{"path": path, "name": "cat.x"}])
        assert accepted.size == file.stat().st_size


@pytest.mark.parametrize(
    "data", [b"<svg/>", b"", b"MM\0*" + MARKER, picture()[:-20], b"\0\0\0\x18ftypheic" + MARKER], ids=len
)
async def test_what_is_no_picture_leaves_no_file(tmp_path: Path, data: bytes):
    async with browser(Uploads(tmp_path)) as http:
        refused = await send(http, data, "IMG_1.HEIC")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "BadImage")
    assert "'IMG_1.HEIC'" in refused.json()["error"]["message"]
    assert not files_below(tmp_path)


async def test_a_file_that_is_too_large_and_a_form_that_is_none_leave_no_file(tmp_path: Path):
    async with browser(Uploads(tmp_path, ImageLimits(max_bytes=1000))) as http:
        assert (await send(http, picture() + bytes(1000))).status_code == 413
        assert (await http.post("/gradio_api/upload", json={})).status_code == 400
        broken = {"Content-Type": "multipart/form-data; boundary=b"}
        assert (await http.post("/gradio_api/upload", content=b"nonsense", headers=broken)).status_code == 400
        form = [("files", (f"{number}.png", picture())) for number in range(ImageLimits().max_images + 1)]
        assert (await http.post("/gradio_api/upload", files=form)).status_code == 400
        # All else is Gradio's.
        assert (await http.get("/gradio_api/upload_progress")).text == "Gradio's"
    assert not files_below(tmp_path)


async def test_a_browser_a_name_and_an_address_have_so_many_bytes_and_no_more(tmp_path: Path):
    limits = UploadLimits(session_bytes=192 * KIB, address_bytes=320 * KIB, least_counted_bytes=64 * KIB)

    async def taken(http: httpx.AsyncClient, tries: int = 9) -> int:
        answers = [await send(http, picture()) for _ in range(tries)]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert all((answer.status_code, "Retry-After" in answer.headers) == (429, True) for answer in refused)
        return tries - len(refused)

    uploads = Uploads(tmp_path, limits=limits)
    async with browser(uploads) as ann, browser(uploads) as bob, browser(uploads, "5.6.7.8") as eve:
        assert await taken(ann) == 3
        # One browser does not keep another one at its address out; one that throws its cookies away ends with it.
        assert await taken(bob, 1) == 1
        eaten = 0
        while eve.cookies.clear() or await taken(eve, 1):
            eaten += 1
        assert eaten == 5
        assert await taken(bob) == 1
        [cookie] = list(bob.cookies.jar)
        assert cookie.has_nonstandard_attr("HttpOnly")
    async with browser(uploads, login="ann") as ann, browser(uploads, login="bob") as bob:
        assert (await taken(ann), await taken(bob)) == (3, 3)
        assert not ann.cookies


async def test_what_has_been_here_for_long_goes_and_counts_no_more(tmp_path: Path):
    now = 0.0
    limits = UploadLimits(session_bytes=64 * KIB, least_counted_bytes=64 * KIB, keep_s=100)
    uploads = Uploads(tmp_path, limits=limits, clock=lambda: now)
    async with browser(uploads) as http:
        [path] = (await send(http, picture())).json()
        os.utime(path, (0, 0))
        now = 99.0
        uploads.sweep()
        assert (await send(http, picture())).status_code == 429
        now = 101.0
        uploads.sweep()
        assert not files_below(tmp_path)
        assert (await send(http, picture())).status_code == 200


async def test_nothing_is_taken_while_the_disk_is_nearly_full(tmp_path: Path):
    async with browser(Uploads(tmp_path, limits=UploadLimits(least_free_bytes=10**18))) as http:
        full = await send(http, picture())
        assert (full.status_code, "disk is full" in full.text) == (507, True)
        assert (await http.post("/live/act", json={})).text == "Gradio's"


async def test_a_disk_that_cannot_be_written_is_said_to_be_so(tmp_path: Path):
    (tmp_path / "no-folder").write_text("")
    async with browser(Uploads(tmp_path / "no-folder")) as http:
        assert (await send(http, picture())).status_code == 507


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../a.png", "a.png"),
        ("..\\b.png", "b.png"),
        ("..", "picture"),
        ("<a>\u202e.png", "_a__.png"),
        ("ü 1.png", "ü 1.png"),
    ],
)
async def test_names_lead_nowhere(tmp_path: Path, name: str, kept: str):
    async with browser(Uploads(tmp_path)) as http:
        [path] = (await send(http, picture(), name)).json()
    assert Path(path).name == kept
    assert Path(path).parent.parent.parent == tmp_path


def login(name: str | None) -> Any:
    def login_of(headers: Headers) -> str | None:
        return name

    return login_of


async def test_who_is_not_logged_in_uploads_nothing(tmp_path: Path):
    frame = PageFrame(PlainTextResponse("Gradio's"), Uploads(tmp_path), local=True, login_of=login(None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(frame), base_url="http://localhost") as http:
        assert (await send(http, picture())).status_code == 401
        assert (await http.get("/config")).text == "Gradio's"
