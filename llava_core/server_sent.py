"""Server-sent events out of bytes, as they arrive and however they are cut."""

from __future__ import annotations

from llava_core.errors import WorkerLost

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""What is held of an event that has not come to its end."""


class EventReader:
    """Remembers the event that is only half there. Names, ids and retry times of events are passed over."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_cr = False
        self._begun = False

    def feed(self, piece: bytes) -> list[str]:
        """The `data` of each event that `piece` completes. Raises WorkerLost where an event never ends."""
        if b"\r" in piece or self._after_cr:
            piece = self._plain_line_ends(piece)
        *events, self._rest = (self._rest + piece).split(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise WorkerLost("the worker sent an event without an end; send the request again")
        if not self._begun and events:
            self._begun = True
            events[0] = events[0].removeprefix(b"\xef\xbb\xbf")
        return [data for event in events if (data := _data(event)) is not None]

    def _plain_line_ends(self, piece: bytes) -> bytes:
        """Lines may end in CR, LF or both, and a piece between the two."""
        if not piece:
            return piece
        if self._after_cr:
            piece = piece.removeprefix(b"\n")
        self._after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(event: bytes) -> str | None:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:].decode("utf-8", "replace")
    lines: list[bytes] = []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines).decode("utf-8", "replace") if lines else None
