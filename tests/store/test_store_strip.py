"""Pictures lose what cameras and programs wrote into them and keep every pixel."""

from __future__ import annotations

import io
import random
import struct
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageOps, PngImagePlugin

from serve.store.strip import stripped

SECRET = "48.8584 N, 2.2945 E, taken by me"


def photo(format: str, orientation: int = 1, mode: str = "RGB", **more: Any) -> bytes:
    noise = random.Random(5)
    picture = Image.frombytes("RGB", (61, 47), bytes(noise.randrange(256) for _ in range(61 * 47 * 3))).convert(mode)
    exif = Image.Exif()
    exif[0x010E] = SECRET
    exif[0x0112] = orientation
    data = io.BytesIO()
    picture.save(data, format, **({"exif": exif} if format != "GIF" and format != "BMP" else {}), **more)
    return data.getvalue()


def text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", SECRET)
    info.add_itxt("XML:com.adobe.xmp", SECRET)
    return info


PHOTOS = {
    "jpeg": photo("JPEG", comment=SECRET.encode(), xmp=SECRET.encode()),
    "jpeg on its side": photo("JPEG", 6),
    "progressive": photo("JPEG", 3, progressive=True, restart_marker_blocks=2),
    "grey": photo("JPEG", mode="L"),
    "cmyk": photo("JPEG", mode="CMYK"),
    "png": photo("PNG", pnginfo=text()),
    "png on its side": photo("PNG", 8),
    "palette": photo("PNG", mode="P"),
    "webp": photo("WEBP", lossless=True, xmp=SECRET.encode()),
    "webp on its side": photo("WEBP", 5, quality=80),
    "alpha": photo("WEBP", mode="RGBA", quality=80),
    "gif": photo("GIF", mode="P", comment=SECRET.encode()),
    "bmp": photo("BMP"),
}
ICC = {"jpeg": photo("JPEG", icc_profile=b"a profile of colours" * 10)}


@pytest.mark.parametrize("name", PHOTOS)
def test_the_secret_is_gone_and_the_picture_is_seen_as_before(name: str) -> None:
    data = PHOTOS[name]
    found = stripped(data)
    assert found is not None
    kept, mime = found
    assert SECRET.encode() not in kept
    assert len(kept) <= len(data)
    before, after = (ImageOps.exif_transpose(Image.open(io.BytesIO(one))) for one in (data, kept))
    assert Image.MIME[Image.open(io.BytesIO(data)).format or ""] == mime
    assert (before.size, before.mode) == (after.size, after.mode)
    assert ImageChops.difference(before.convert("RGBA"), after.convert("RGBA")).getbbox() is None


@pytest.mark.parametrize("name", PHOTOS)
def test_stripping_again_changes_nothing(name: str) -> None:
    once = stripped(PHOTOS[name])
    assert once is not None
    assert stripped(once[0]) == once


def test_colour_profiles_stay() -> None:
    found = stripped(ICC["jpeg"])
    assert found is not None
    assert Image.open(io.BytesIO(found[0])).info["icc_profile"].startswith(b"a profile of colours")


def test_what_follows_the_picture_in_its_file_goes() -> None:
    for name in ("jpeg", "progressive", "png", "webp", "gif", "bmp"):
        found = stripped(PHOTOS[name] + SECRET.encode())
        assert found is not None
        assert SECRET.encode() not in found[0]


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe0%cJFIF\0\1\1\0\0\1\0\1\1\1",
        b"\xff\xe0%cJFXX\0\x10",
        b"\xff\xee%cAdobe\0d\0\0\0\0\0",
        b"\xff\xe2%cMPF\0",
    ],
    ids=["thumbnail", "thumbnail of JPEG", "Adobe", "more pictures"],
)
def test_no_segment_of_a_jpeg_carries_more_than_its_looks(segment: bytes) -> None:
    body = segment.split(b"%c")[1] + SECRET.encode()
    hidden = PHOTOS["grey"][:2] + segment[:2] + (len(body) + 2).to_bytes(2, "big") + body + PHOTOS["grey"][2:]
    found = stripped(hidden)
    assert found is not None
    assert SECRET.encode() not in found[0]
    assert ImageChops.difference(Image.open(io.BytesIO(hidden)), Image.open(io.BytesIO(found[0]))).getbbox() is None


def test_a_frame_of_an_animation_carries_nothing_but_pixels() -> None:
    data = io.BytesIO()
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime")]
    frames[0].save(data, "WEBP", save_all=True, append_images=frames[1:], duration=70, lossless=True)
    whole, note = data.getvalue(), b"NOTE" + struct.pack("<I", 32) + SECRET.encode().ljust(32)
    at = whole.index(b"ANMF")
    (length,) = struct.unpack("<I", whole[at + 4 : at + 8])
    frame = b"ANMF" + struct.pack("<I", length + len(note)) + whole[at + 8 : at + 8 + length] + note
    hidden = whole[:4] + struct.pack("<I", len(whole) + len(note) - 8) + whole[8:at] + frame + whole[at + 8 + length :]
    found = stripped(hidden)
    assert found is not None
    assert SECRET.encode() not in found[0]
    assert Image.open(io.BytesIO(found[0])).convert("RGB").getpixel((4, 4)) == (255, 0, 0)


def test_an_animation_keeps_its_frames_and_its_pace() -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "PNG"):
        data = io.BytesIO()
        frames[0].save(data, format, save_all=True, append_images=frames[1:], duration=70, loop=0)
        found = stripped(data.getvalue())
        assert found is not None
        after = Image.open(io.BytesIO(found[0]))
        assert getattr(after, "n_frames", 1) == 3
        after.seek(1)
        after.load()
        assert after.info["duration"] == 70


@pytest.mark.parametrize(
    "data",
    [b"", b"<html></html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x04\0\0\0WEBP", b"GIF89a", b"BM" + bytes(99)],
)
def test_what_is_no_picture_is_none(data: bytes) -> None:
    assert stripped(data) is None


@pytest.mark.parametrize("name", PHOTOS)
def test_a_broken_file_neither_raises_nor_hangs(name: str) -> None:
    data = PHOTOS[name]
    dice = random.Random(7)
    for _ in range(150):
        broken = bytearray(data[: dice.randrange(len(data))])
        for _ in range(dice.randrange(8)):
            if broken:
                broken[dice.randrange(len(broken))] = dice.randrange(256)
        stripped(bytes(broken))
