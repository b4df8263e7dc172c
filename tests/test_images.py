"""Pictures: what comes out right, what is refused and in which words, and at what cost."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from PIL import Image, ImageDraw

from llava_core.config import ImageLimits
from llava_core.errors import BadImage, EngineFailure
from llava_core.image_decode import content_name, decode_image
from llava_core.image_process import DecoderProcesses
from llava_core.images import ImageLoader, read_data_url, read_image_file, to_data_url
from llava_core.types import ImagePart
from tests.picture_bombs import chunk, gif, jpeg, png, ztxt_bomb

LIMITS = ImageLimits()
ROOT = Path(__file__).resolve().parents[1]


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pixel(picture: Image.Image, point: tuple[int, int]) -> tuple[int, ...]:
    value = picture.getpixel(point)
    assert isinstance(value, tuple), "not a picture of several channels"
    return value


def part(data: bytes) -> ImagePart:
    return ImagePart(to_data_url(data))


def quarters(mode: str = "RGB") -> Image.Image:
    """Four colours, one a corner, so that no two of the eight orientations look alike."""
    picture = Image.new("RGB", (32, 24), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 15, 11), fill="red")
    draw.rectangle((16, 0, 31, 11), fill="green")
    draw.rectangle((0, 12, 15, 23), fill="blue")
    return picture.convert(mode)


# ---- what comes out


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_stands_upright_whatever_its_exif_orientation(kind: str, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = quarters()
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    decoded = decode_image(saved(stored, kind, exif=exif, **lossless), LIMITS)
    assert decoded.size == upright.size
    for point in ((4, 3), (28, 3), (4, 20), (28, 20)):
        expected, found = pixel(upright, point), pixel(decoded, point)
        assert all(abs(a - b) < 12 for a, b in zip(expected, found, strict=True)), (point, expected, found)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_unreadable_orientation_is_ignored() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02"):
        assert decode_image(saved(quarters(), "JPEG", exif=exif), LIMITS).size == (32, 24)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_lies_on_white(mode: str, kind: str) -> None:
    picture = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 128), (10, 0, 20, 10))
    if kind == "WEBP" and mode == "LA":
        pytest.skip("WebP has no grey with alpha")
    decoded = decode_image(saved(picture.convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {})), LIMITS)
    assert decoded.mode == "RGB"
    assert pixel(decoded, (2, 2)) == (255, 255, 255)
    assert pixel(decoded, (15, 2)) == (127, 127, 127)


def test_alpha_is_flattened_alike_in_every_strip_of_a_large_picture() -> None:
    picture = Image.new("RGBA", (2100, 4300), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (1000, 0, 2100, 4300))
    decoded = decode_image(saved(picture, compress_level=1), LIMITS)
    for y in (0, 1903, 1904, 1905, 3809, 4299):
        assert pixel(decoded, (10, y)) == (255, 255, 255)
        assert pixel(decoded, (1010, y)) == (0, 0, 255)


def palette(transparency: int | bytes | None) -> bytes:
    picture = Image.new("P", (16, 8), 0)
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.paste(1, (8, 0, 16, 8))
    return saved(picture) if transparency is None else saved(picture, transparency=transparency)


def test_palettes_are_colours_and_their_transparency_is_white() -> None:
    plain = decode_image(palette(None), LIMITS)
    assert (pixel(plain, (1, 1)), pixel(plain, (9, 1))) == ((255, 0, 0), (0, 255, 0))
    one = decode_image(palette(0), LIMITS)
    assert (pixel(one, (1, 1)), pixel(one, (9, 1))) == ((255, 255, 255), (0, 255, 0))
    table = decode_image(palette(bytes([255, 128, 0])), LIMITS)
    assert (pixel(table, (1, 1)), pixel(table, (9, 1))) == ((255, 0, 0), (127, 255, 127))


@pytest.mark.parametrize(("mode", "clear"), [("L", 7), ("RGB", (7, 8, 9))])
def test_a_transparent_colour_is_white(mode: str, clear: int | tuple[int, ...]) -> None:
    picture = Image.new(mode, (8, 8), clear)
    picture.paste(200 if mode == "L" else (200, 200, 200), (4, 0, 8, 8))
    decoded = decode_image(saved(picture, transparency=clear), LIMITS)
    assert pixel(decoded, (1, 1)) == (255, 255, 255)
    assert pixel(decoded, (5, 1)) == (200, 200, 200)


def sixteen_bit(extra: bytes = b"") -> bytes:
    """Grey 0, 0x1234, 0x8000, 0xffff side by side."""
    import struct
    import zlib

    row = b"\0" + struct.pack(">4H", 0, 0x1234, 0x8000, 0xFFFF)
    header = struct.pack(">IIBBBBB", 4, 4, 16, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_sixteen_bit_greys_are_scaled_not_clipped() -> None:
    decoded = decode_image(sixteen_bit(), LIMITS)
    assert [pixel(decoded, (x, 1))[0] for x in range(4)] == [0, 0x12, 0x80, 255]
    clear = decode_image(sixteen_bit(chunk(b"tRNS", b"\x12\x34")), LIMITS)
    assert [pixel(clear, (x, 1))[0] for x in range(4)] == [0, 255, 0x80, 255]
    through_pillow = decode_image(saved(Image.new("I;16", (4, 4), 0x8000)), LIMITS)
    assert pixel(through_pillow, (0, 0)) == (0x80, 0x80, 0x80)


@pytest.mark.parametrize("colour", [2, 6])
def test_sixteen_bit_colours_decode(colour: int) -> None:
    decoded = decode_image(png(5, 4, depth=16, colour=colour), LIMITS)
    assert decoded.mode == "RGB"
    assert pixel(decoded, (0, 0)) == ((0, 0, 0) if colour == 2 else (255, 255, 255))


def test_cmyk_one_bit_and_bitmaps_decode() -> None:
    cmyk = decode_image(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), LIMITS)
    red, green, blue = pixel(cmyk, (3, 3))
    assert red > 200
    assert green < 60
    assert blue < 60
    assert pixel(decode_image(saved(Image.new("1", (9, 9), 1)), LIMITS), (0, 0)) == (255, 255, 255)
    assert decode_image(saved(quarters(), "BMP"), LIMITS).tobytes() == quarters().tobytes()
    assert pixel(decode_image(saved(quarters("P"), "BMP"), LIMITS), (4, 3))[0] > 200


def test_of_a_moving_picture_the_first_frame_is_seen() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert pixel(decode_image(data, LIMITS), (5, 5)) == (255, 0, 0), kind


def test_a_phones_multi_picture_jpeg_is_its_first_picture() -> None:
    data = saved(quarters(), "MPO", save_all=True, append_images=[Image.new("RGB", (32, 24))])
    assert pixel(decode_image(data, LIMITS), (4, 3))[0] > 200


def test_a_picture_beyond_what_is_kept_is_scaled_down_in_its_shape() -> None:
    decoded = decode_image(png(4000, 1000, depth=1, colour=0), ImageLimits(kept_pixels=1_000_000))
    assert decoded.size == (2000, 500)


# ---- what is refused


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(BadImage) as caught:
        decode_image(data, limits)
    return caught.value.message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "nothing at all"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b'<?xml version="1.0"?>\n<!-- x --><svg width="9"/>', "an SVG drawing"),
        (b"<!DOCTYPE html><html><body>no picture</body></html>", "an HTML page"),
        (b"\xef\xbb\xbf  <html>", "an HTML page"),
        (b"just words", "text"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"PK\x03\x04....", "a ZIP archive"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "a HEIC photo"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "an AVIF"),
        (b"\0\0\0\x20ftypisom\0\0\0\0", "a video"),
        (saved(Image.new("RGB", (4, 4)), "TIFF"), "a TIFF"),
        (saved(Image.new("RGB", (4, 4)), "ICO"), "an icon"),
        (saved(Image.new("RGB", (4, 4)), "PPM"), "data of an unknown kind"),
        (bytes(range(128, 256)), "data of an unknown kind"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, says: str) -> None:
    assert says in refusal(data)
    assert "PNG, JPEG, WebP, GIF or BMP" in refusal(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_damaged_picture_is_an_answer_not_a_crash(kind: str) -> None:
    noise = random.Random(3)
    whole = saved(Image.effect_noise((60, 40), 80).convert("RGB"), kind)
    assert "damaged or cut off" in refusal(whole[: len(whole) // 2])
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(noise.randint(1, 12)):
            broken[noise.randrange(len(broken))] = noise.randrange(256)
        with contextlib.suppress(BadImage):  # any other exception fails the test
            decode_image(bytes(broken), LIMITS)


def test_each_limit_is_named_with_its_value() -> None:
    small = ImageLimits(max_bytes=2048, max_pixels=10_000, max_side_ratio=4)
    assert re.search(r"0\.0 MiB|3 MiB", refusal(bytes(3 << 20), ImageLimits(max_bytes=1 << 20)))
    assert "limit is 1 MiB" in refusal(bytes(3 << 20), ImageLimits(max_bytes=1 << 20))
    assert "megapixels (200 x 100); the limit is" in refusal(png(200, 100), small)
    assert "100 x 10 pixels; its longer side may be at most 4 times" in refusal(png(100, 10), small)


BOMBS = {
    "177 megapixels in 21 KiB": (png(13_300, 13_300, depth=1, colour=0), "176.9 megapixels"),
    "RGBA in 672 KiB": (png(13_000, 13_000, colour=6), "169 megapixels"),
    "beyond Pillow's own limit": (png(30_000, 30_000, depth=1, colour=0), "more than 40 megapixels"),
    "20000 x 1": (png(20_000, 1), "100 times"),
    "65000 x 1": (png(65_000, 1), "100 times"),
    "1 x 20000": (png(1, 20_000), "100 times"),
    "zTXt": (ztxt_bomb(), "damaged"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_unpacks(name: str) -> None:
    data, says = BOMBS[name]
    assert says in refusal(data)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_bombs_cost_less_than_200_megabytes_decoders_included(tmp_path: Path) -> None:
    for number, (data, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.bin").write_bytes(data)
    (tmp_path / "frames.bin").write_bytes(gif(300))
    script = """
import asyncio, json, sys
import psutil
from pathlib import Path
from llava_core.config import ImageLimits
from llava_core.errors import BadImage
from llava_core.images import ImageLoader, to_data_url
from llava_core.types import ImagePart

def peak(pid):  # KiB; getrusage would count what the parent had before exec
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

async def main():
    files = sorted(Path(sys.argv[1]).glob("*.bin"))
    loader = ImageLoader(ImageLimits())
    before = peak("self")
    async def load(file):
        try:
            return (await loader.load([ImagePart(to_data_url(file.read_bytes()))]))[0].size
        except BadImage as error:
            return error.message
    results = await asyncio.gather(*(load(file) for file in files * 2))
    decoders = [peak(child.pid) for child in psutil.Process().children()]
    print(json.dumps({
        "results": dict(zip([f.stem for f in files], results)),
        "grown": peak("self") - before,
        "decoders": decoders,
    }))
    await loader.aclose()

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(done.stdout)
    assert found["results"].pop("frames") == [64, 48]
    assert all(isinstance(message, str) for message in found["results"].values())
    assert len(found["decoders"]) == LIMITS.decode_processes
    assert found["grown"] + sum(found["decoders"]) < 200 * 1024, found


# ---- data URLs and files


def test_data_urls_are_read_in_every_spelling() -> None:
    data = png(3, 2)
    text = base64.b64encode(data).decode()
    for url in (
        to_data_url(data),
        f"data:image/png;base64,{text}",
        f"DATA:;BASE64,{text}",
        f"data:image/jpeg;charset=x; base64,{text}",
        f"data:image/png;base64,{text[:20]}\n {text[20:]}",
        f"data:image/png;base64,{quote(text, safe='')}",
        f"data:image/png;base64,{text.rstrip('=')}",
        "data:image/png," + quote(data),
    ):
        assert read_data_url(url, LIMITS) == data, url[:40]


@pytest.mark.parametrize("url", ["", "data:", "data:image/png;base64", "/etc/passwd", "image/png;base64,AAAA"])
def test_what_is_no_data_url_is_refused(url: str) -> None:
    with pytest.raises(BadImage, match="data:"):
        read_data_url(url, LIMITS)


@pytest.mark.parametrize("body", ["@@@@", "A", "AAAAA", "Zm9v!", "Zm9v\u00e9", "\ud800"])
def test_broken_base64_is_refused(body: str) -> None:
    with pytest.raises(BadImage, match="base64"):
        read_data_url(f"data:image/png;base64,{body}", LIMITS)


def test_a_long_data_url_is_refused_by_its_length() -> None:
    limits = ImageLimits(max_bytes=1000)
    for body in ("A" * 1400, "A" * 100_000):
        with pytest.raises(BadImage, match="limit"):
            read_data_url(f"data:image/png;base64,{body}", limits)


def test_a_data_url_says_what_its_bytes_are() -> None:
    assert to_data_url(jpeg()).startswith("data:image/jpeg;base64,")
    assert to_data_url(b"words").startswith("data:application/octet-stream;base64,")
    assert content_name(gif(1)) == "a GIF"


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(3, 2))
    assert read_image_file(file, LIMITS) == png(3, 2)
    with pytest.raises(BadImage, match="limit"):
        read_image_file(file, ImageLimits(max_bytes=10))
    with pytest.raises(BadImage, match=r"nowhere\.png"):
        read_image_file(tmp_path / "nowhere.png", LIMITS)
    with pytest.raises(BadImage, match="cannot read"):
        read_image_file(tmp_path, LIMITS)


# ---- the loader


@pytest.fixture
async def loader():
    loader = ImageLoader(LIMITS)
    yield loader
    await loader.aclose()


async def test_pictures_come_back_in_their_order_and_without_metadata(loader: ImageLoader) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    pictures = await loader.load([part(png(9, 5)), part(saved(quarters(), "JPEG", exif=exif)), part(gif(3))])
    assert [picture.size for picture in pictures] == [(9, 5), (32, 24), (64, 48)]
    assert [picture.mode for picture in pictures] == ["RGB"] * 3
    assert all(not picture.info for picture in pictures)


async def test_the_loader_decodes_as_the_plain_function_does(loader: ImageLoader) -> None:
    picture = Image.effect_noise((2100, 1100), 90).convert("RGB")
    data = saved(picture, "JPEG")
    (loaded,) = await loader.load([part(data)])
    assert loaded.tobytes() == decode_image(data, LIMITS).tobytes()


async def test_the_bad_one_of_several_pictures_is_named(loader: ImageLoader) -> None:
    with pytest.raises(BadImage, match=r"^picture 2 of 3: this is an SVG drawing"):
        await loader.load([part(png(4, 4)), part(b"<svg/>"), part(png(4, 4))])
    with pytest.raises(BadImage, match=r"^this is text"):
        await loader.load([part(b"words")])
    assert (await loader.load([part(png(4, 4))]))[0].size == (4, 4)


async def test_too_many_pictures_are_refused_before_any_is_read(loader: ImageLoader) -> None:
    with pytest.raises(BadImage, match="17 pictures; the limit is 16"):
        await loader.load([ImagePart("nonsense")] * 17)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.png", "/etc/passwd", "", "javascript:alert(1)"])
async def test_other_urls_are_refused(loader: ImageLoader, url: str) -> None:
    with pytest.raises(BadImage, match="must start with data:"):
        await loader.load([ImagePart(url)])


async def test_many_large_pictures_are_each_kept_smaller() -> None:
    loader = ImageLoader(ImageLimits(kept_pixels=4_000_000, kept_pixels_in_all=8_000_000))
    large = part(png(3000, 2000, depth=1, colour=0))
    try:
        for count, most in ((1, 4_000_000), (2, 4_000_000), (3, 2_000_000), (5, 1_000_000)):
            sizes = [picture.width * picture.height for picture in await loader.load([large] * count)]
            assert len(sizes) == count
            assert all(0.98 * most < size <= most for size in sizes), (count, sizes)
    finally:
        await loader.aclose()


async def test_the_event_loop_keeps_turning_while_pictures_are_decoded(loader: ImageLoader) -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    await loader.load([part(saved(Image.effect_noise((3000, 2000), 90)))])
    turning.cancel()
    # A blocked loop would have turned a handful of times, however slow the machine.
    assert turns > 100


Children = Callable[[], list[psutil.Process]]


@pytest.fixture
def new_children() -> Children:
    """Processes started since the test began; servers of other tests may still run beside them."""
    before = set(psutil.Process().children())
    return lambda: [child for child in psutil.Process().children() if child not in before]


def test_a_decoder_that_hangs_is_ended_and_the_next_picture_is_decoded(new_children: Children) -> None:
    decoders = DecoderProcesses(ImageLimits(decode_timeout_s=0.5))
    try:
        decoders.decode(png(4, 4), kept_pixels=99)
        (child,) = new_children()
        child.send_signal(signal.SIGSTOP)
        with pytest.raises(BadImage, match=r"more than 0\.5 s to decode"):
            decoders.decode(png(4, 4), kept_pixels=99)
        assert not child.is_running()
        assert decoders.decode(png(4, 4), kept_pixels=99).size == (4, 4)
    finally:
        decoders.close()


def test_a_decoder_that_died_idle_is_replaced(new_children: Children) -> None:
    decoders = DecoderProcesses(LIMITS)
    try:
        decoders.decode(png(4, 4), kept_pixels=99)
        (child,) = new_children()
        child.kill()
        assert decoders.decode(png(4, 4), kept_pixels=99).size == (4, 4)
    finally:
        decoders.close()
    assert new_children() == []


def test_a_picture_that_kills_its_decoder_is_a_bad_picture(
    monkeypatch: pytest.MonkeyPatch, new_children: Children
) -> None:
    from llava_core import image_process

    monkeypatch.setattr(image_process, "_MAIN", "import sys, os; sys.stdin.buffer.read(16); os._exit(1)")
    decoders = DecoderProcesses(LIMITS)
    with pytest.raises(BadImage, match="ends the program that decodes it"):
        decoders.decode(png(4, 4), kept_pixels=99)
    assert new_children() == []


def test_memory_beyond_the_decoders_share_is_a_bad_picture() -> None:
    decoders = DecoderProcesses(ImageLimits(decode_memory_bytes=200 << 20))
    try:
        with pytest.raises(BadImage, match="more memory"):
            decoders.decode(png(6000, 6000, colour=6), kept_pixels=99)
        assert decoders.decode(png(4, 4), kept_pixels=99).size == (4, 4)
    finally:
        decoders.close()


async def test_a_closed_loader_ends_what_is_under_way_and_takes_no_more(new_children: Children) -> None:
    loader = ImageLoader(LIMITS)
    under_way = asyncio.create_task(loader.load([part(saved(Image.effect_noise((4000, 3000), 90), compress_level=1))]))
    while not new_children():  # noqa: ASYNC110  (nothing else tells that the process has started)
        await asyncio.sleep(0.01)
    await loader.aclose()
    with pytest.raises(EngineFailure, match="stopped"):
        await under_way
    with pytest.raises(EngineFailure, match="stopped"):
        await loader.load([part(png(4, 4))])
    assert new_children() == []


def test_decoders_end_with_the_process_that_started_them() -> None:
    script = (
        "import sys\n"
        "from llava_core.config import ImageLimits\n"
        "from llava_core.image_process import DecoderProcesses\n"
        "d = DecoderProcesses(ImageLimits()); d.decode(sys.stdin.buffer.read(), kept_pixels=99)\n"
        "print(d._idle[0].pid, flush=True)\n"
        "import os; os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=png(4, 4), cwd=ROOT, capture_output=True, timeout=60)
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def test_a_decoder_sees_no_secrets(monkeypatch: pytest.MonkeyPatch, new_children: Children) -> None:
    monkeypatch.setenv("SOME_API_KEY", "very secret")
    decoders = DecoderProcesses(LIMITS)
    try:
        decoders.decode(png(4, 4), kept_pixels=99)
        (child,) = new_children()
        assert "SOME_API_KEY" in os.environ
        assert "SOME_API_KEY" not in child.environ()
    finally:
        decoders.close()
