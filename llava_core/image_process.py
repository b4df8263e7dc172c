"""Decodes hostile pictures in processes of their own: both ends of the pipe.

A process instead of a thread, because a decoder that hangs, crashes or eats memory can be ended and its memory
limited, and the engine beside it does not notice. The pixels come back raw, so no metadata does.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import IO

from PIL import Image

from llava_core.config import ImageLimits
from llava_core.errors import BadImage, EngineFailure
from llava_core.image_decode import decode_image, too_many_bytes

_JOB = struct.Struct(">QQ")  # kept pixels, length of the data that follows
_REPLY = struct.Struct(">II")  # width and height of the pixels that follow; or 0 and the length of an error's text
_STRIP_PIXELS = 1_000_000
_ROOT = Path(__file__).resolve().parents[1]
_MAIN = "import sys; sys.path.append(sys.argv[1]); from llava_core.image_process import serve; serve(sys.argv[2])"


class DecoderProcesses:
    """Decoding processes, started when first needed and used again. Thread-safe; `decode` blocks, so its callers
    bound how many there are."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._idle: list[subprocess.Popen[bytes]] = []
        self._busy: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def decode(self, data: bytes, *, kept_pixels: int) -> Image.Image:
        """What `decode_image` returns or raises; BadImage too when it takes too long or ends its process."""
        if len(data) > self._limits.max_bytes:
            raise too_many_bytes(len(data), self._limits)
        for _ in range(2):
            process, fresh = self._take()
            try:
                return self._exchange(process, data, kept_pixels)
            except EOFError:
                if fresh:
                    break
                # It may have died while idle, which says nothing about this picture: once more, on a new one.
                self._end_idle()
        if self._closed:
            raise EngineFailure("picture decoding has been stopped")
        raise BadImage("this picture ends the program that decodes it; open and save it anew, then resend it")

    def close(self) -> None:
        """End every process; a decoding under way fails."""
        with self._lock:
            self._closed = True
            for process in self._busy:
                process.kill()  # its thread notices and cleans up
        self._end_idle()

    def _end_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            _end(process)

    def _take(self) -> tuple[subprocess.Popen[bytes], bool]:
        with self._lock:
            if self._closed:
                raise EngineFailure("picture decoding has been stopped")
            fresh = not self._idle
            process = self._start() if fresh else self._idle.pop()
            self._busy.add(process)
            return process, fresh

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-c", _MAIN, str(_ROOT), json.dumps(asdict(self._limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Next to no environment, so no secrets; no signals meant for the server either. It ends with its input.
            env={name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ},
            start_new_session=True,
        )

    def _exchange(self, process: subprocess.Popen[bytes], data: bytes, kept_pixels: int) -> Image.Image:
        """One job. Raises EOFError when the process died, BadImage with its sentence otherwise."""
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()
        timer = threading.Timer(self._limits.decode_timeout_s, lambda: (late.set(), process.kill()))
        timer.daemon = True
        timer.start()
        healthy = False
        try:
            process.stdin.write(_JOB.pack(kept_pixels, len(data)))
            process.stdin.write(data)
            process.stdin.flush()
            width, height = _REPLY.unpack(_read(process.stdout, _REPLY.size))
            picture = _read_pixels(process.stdout, width, height) if width else None
            sentence = "" if width else _read(process.stdout, height).decode()
            healthy = True
        except (EOFError, OSError) as cause:
            if late.is_set():
                limit = f"{self._limits.decode_timeout_s:g} s"
                raise BadImage(f"this picture took more than {limit} to decode; save it anew, smaller") from None
            raise EOFError from cause
        finally:
            timer.cancel()
            self._give_back(process, healthy=healthy and not late.is_set())
        if picture is None:
            raise BadImage(sentence)
        return picture

    def _give_back(self, process: subprocess.Popen[bytes], *, healthy: bool) -> None:
        with self._lock:
            self._busy.discard(process)
            if healthy and not self._closed:
                self._idle.append(process)
                return
        _end(process)


def serve(limits_json: str) -> None:
    """The other end: decode what comes in on stdin until it closes."""
    limits = ImageLimits(**json.loads(limits_json))
    warnings.simplefilter("ignore")
    _confine(limits)
    jobs = sys.stdin.buffer
    # Nothing that prints may get into the pixels.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while head := jobs.read(_JOB.size):
        kept_pixels, length = _JOB.unpack(head)
        try:
            picture = decode_image(jobs.read(length), limits, kept_pixels=kept_pixels)
        except BadImage as error:
            sentence = error.message.encode()
            replies.write(_REPLY.pack(0, len(sentence)) + sentence)
        else:
            _write_pixels(replies, picture)
            del picture
        replies.flush()


def _confine(limits: ImageLimits) -> None:
    try:
        import resource
    except ImportError:  # not on Windows; a process of its own is still worth having there
        return
    for kind, most in (
        (resource.RLIMIT_AS, limits.decode_memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _write_pixels(file: IO[bytes], picture: Image.Image) -> None:
    file.write(_REPLY.pack(*picture.size))
    for box in _strips(*picture.size):
        file.write(picture.crop(box).tobytes())


def _read_pixels(file: IO[bytes], width: int, height: int) -> Image.Image:
    # In strips, so that the raw bytes and the picture are not in memory side by side.
    picture = Image.new("RGB", (width, height))
    for box in _strips(width, height):
        size = (width, box[3] - box[1])
        picture.paste(Image.frombytes("RGB", size, _read(file, size[0] * size[1] * 3)), box)
    return picture


def _strips(width: int, height: int) -> list[tuple[int, int, int, int]]:
    rows = max(1, _STRIP_PIXELS // width)
    return [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # unwritten bytes of a job that is over
                pipe.close()
    process.wait()
