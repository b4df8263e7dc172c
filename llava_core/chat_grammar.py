"""What form an answer is held to, as OpenAI and vLLM write it: `response_format` for JSON, `structured_outputs` for a
pattern.
"""

from __future__ import annotations

import json
from typing import Any, cast

from llava_core.errors import BadRequest
from llava_core.types import Grammar

Json = dict[str, Any]

_FORMATS = "text, json_object or json_schema"


def read_grammar(response_format: Any, structured_outputs: Any) -> Grammar | None:
    """The grammar that these two fields of a request ask for. Raises BadRequest."""
    shape = _read_format(response_format)
    pattern = _read_pattern(structured_outputs)
    if shape and pattern:
        raise BadRequest(
            "response_format and structured_outputs both give the answer a form; send one", param="structured_outputs"
        )
    return shape or pattern


def write_grammar(grammar: Grammar) -> Json:
    """The fields that `read_grammar` reads back as the same grammar."""
    if grammar.kind == "regex":
        return {"structured_outputs": {"regex": grammar.text}}
    if grammar.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "answer", "schema": json.loads(grammar.text)}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _read_format(given: Any) -> Grammar | None:
    if given is None:
        return None
    fields = _object(given, "response_format")
    kind = fields.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json_object")
    if kind != "json_schema":
        raise BadRequest(f"response_format.type must be {_FORMATS}", param="response_format.type")
    where = "response_format.json_schema"
    schema = _object(_object(fields.get("json_schema"), where).get("schema"), f"{where}.schema")
    try:
        # Order is kept: it is the order in which the answer names its properties.
        text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        raise BadRequest(f"{where}.schema is nested too deeply; flatten it", param=f"{where}.schema") from None
    return Grammar("json_schema", text)


def _read_pattern(given: Any) -> Grammar | None:
    if given is None:
        return None
    fields = {name: value for name, value in _object(given, "structured_outputs").items() if value is not None}
    unknown = sorted(fields.keys() - {"regex"})
    if unknown:
        raise BadRequest(
            f"structured_outputs can only hold regex, not {unknown[0][:40]!r}; for JSON use response_format",
            param="structured_outputs",
        )
    if not fields:
        return None
    if not isinstance(fields["regex"], str):
        raise BadRequest("structured_outputs.regex must be a string", param="structured_outputs.regex")
    return Grammar("regex", fields["regex"])


def _object(given: Any, where: str) -> Json:
    if not isinstance(given, dict):
        raise BadRequest(f"{where} must be an object", param=where)
    return cast(Json, given)
