"""What the servers say of themselves at `/openapi.json` beyond what routes tell by their types: chats and errors."""

from __future__ import annotations

from typing import Any

from llava_core.chat_protocol import chat_schema

_TEXT = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": "string"},
                "param": _TEXT,
                "retry_after": {"type": "number"},
                "request_id": {"type": "string"},
            },
        }
    },
}


def _refused(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ERROR}}}


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": _refused("Refused: `code` names the kind, the message says what to do."),
    "5XX": _refused("Failed: `code` names the kind; where it says `retry_after`, the same may pass later."),
}
"""On every route."""

CHAT: dict[str, Any] = {
    "summary": "Answer a chat",
    "openapi_extra": {
        "requestBody": {"required": True, "content": {"application/json": {"schema": chat_schema()}}},
    },
    "responses": {
        200: {
            "description": "The answer, whole or as server-sent events with `stream: true`.",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["id", "object", "created", "model", "choices", "usage"],
                        "properties": {
                            "id": {"type": "string"},
                            "object": {"const": "chat.completion"},
                            "created": {"type": "integer"},
                            "model": {"type": "string"},
                            "choices": {"type": "array", "minItems": 1, "items": {"type": "object"}},
                            "usage": {"type": ["object", "null"]},
                        },
                    }
                },
                "text/event-stream": {"schema": {"type": "string"}},
            },
        }
    },
}
"""For the route of chats, which reads its body itself."""
