"""How a line of a log is written: for people by default, as one JSON object where LLAVA_SERVE_LOG_FORMAT is json.

Neither kind has a word of a chat in it unless LLAVA_SERVE_LOG_PROMPTS is 1, and no line can be made to look like two.
"""

from __future__ import annotations

import json
import logging
import os
import re
from datetime import UTC, datetime

FORMAT = "LLAVA_SERVE_LOG_FORMAT"
PROMPTS = "LLAVA_SERVE_LOG_PROMPTS"
MAX_CHARS = 16_384
_PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def formatter() -> logging.Formatter:
    """As the environment asks."""
    return JsonLines() if os.environ.get(FORMAT, "").strip().lower() == "json" else PlainLines(_PLAIN)


def prompts_wanted() -> bool:
    """Whether the operator asks for the words of chats in the log."""
    return os.environ.get(PROMPTS, "").strip().lower() in ("1", "true", "yes")


class PlainLines(logging.Formatter):
    """A traceback stays several lines; what a message says is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _harmless(record.message.replace("\n", "\\n"))
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """`extra={"fields": {…}}` of a log call stands beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[:MAX_CHARS],
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= {str(name): value for name, value in fields.items()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-MAX_CHARS:]
        return json.dumps(line, default=str)


def _harmless(text: str) -> str:
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text[:MAX_CHARS])
