"""The OpenAI chat-completions request, both ways: a JSON body to a checked `Request`, and a `Request` to a body.

Fields nobody here knows are ignored, as other servers do; a known field of a wrong type, or one that asks for
what cannot be done (tools, more than eight answers), is a BadRequest that names it. Values that are
absent or null take the defaults of `Sampling`, the same that the page starts with: temperature 0.2, not OpenAI's
1.0, and as many tokens as the context leaves. Answers travel in `chat_events`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llava_core.chat_grammar import read_grammar, write_grammar
from llava_core.chat_messages import read_messages, write_message
from llava_core.config import RequestLimits
from llava_core.errors import BadRequest
from llava_core.types import Begun, Message, Request, Sampling, TextPart, assistant

Json = dict[str, Any]

MAX_ANSWERS = 8
"""To one request."""
MAX_USER_CHARS = 512


@dataclass(frozen=True)
class ChatCall:
    """A request as it came over the wire, with the form its answer should take."""

    request: Request
    stream: bool
    include_usage: bool
    n: int = 1
    """How many answers are wanted."""
    with_ids: bool = False
    """Whether chunks are to tell their token ids."""


def read_call(
    raw: bytes | bytearray, *, limits: RequestLimits | None = None, request_id: str | None = None
) -> ChatCall:
    """The call in a request body. Slow for megabytes of image: run it in a thread. Raises BadRequest."""
    limits = limits or RequestLimits()
    fields = _fields(_json_object(raw, limits))
    _refuse_what_cannot_be_done(fields)
    messages = read_messages(fields.messages, limits=limits)
    messages, continues, begun = _begun(fields, messages)
    request = Request(
        model=fields.model,
        messages=messages,
        sampling=_sampling(fields, counted=len(begun.token_ids) if begun else 0),
        continue_final=continues,
        owner=fields.user or "",
        begun=begun,
    )
    if request_id is not None:
        request = replace(request, id=request_id)
    options = fields.stream_options
    with_usage = bool(options and options.include_usage)
    return ChatCall(request, bool(fields.stream), with_usage, fields.n or 1, bool(fields.return_token_ids))


def write_call(request: Request, *, stream: bool = True) -> bytes:
    """The body that `read_call` reads back as the same request (its id travels in a header).

    A begun answer stands there as an unfinished turn, with which other servers go on as well; its ids, which make
    that exact, are in fields of our own.
    """
    begun = request.begun
    if begun is not None:
        request = as_unfinished_turn(request)
    sampling = request.sampling
    body: Json = {
        "model": request.model,
        "messages": [write_message(message) for message in request.messages],
        "stream": stream,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if stream:
        body |= {"stream_options": {"include_usage": True}, "return_token_ids": True}
    if request.continue_final:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if begun is not None:
        body |= {"continue_token_ids": begun.token_ids, "continue_chars": len(begun.text)}
    if request.owner:
        body["user"] = request.owner
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.grammar is not None:
        body |= write_grammar(sampling.grammar)
    # Other servers refuse fields they do not know, so what stands at its default is left out.
    plain = Sampling()
    for name in _SAME_NAME:
        value = getattr(sampling, name)
        if value != getattr(plain, name):
            body[name] = list(cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value
    try:
        return pydantic_core.to_json(body)
    except pydantic_core.PydanticSerializationError:
        raise BadRequest("the chat holds half a surrogate pair, which is no text; remove it") from None


def as_unfinished_turn(request: Request, tokens: int | None = None) -> Request:
    """The rest of a begun answer asked for in words that every server knows: the chat so far with the answer as its
    unfinished last turn, and fewer tokens by those that have come (`tokens`, where no ids are known)."""
    begun = request.begun
    if begun is None:
        return request
    messages = request.messages if request.continue_final else (*request.messages, assistant())
    last = messages[-1]
    messages = (*messages[:-1], replace(last, parts=(*last.parts, TextPart(begun.text))))
    count, sampling = len(begun.token_ids) if tokens is None else tokens, request.sampling
    most, least = sampling.max_tokens, max(0, sampling.min_tokens - count)
    sampling = replace(sampling, max_tokens=None if most is None else max(1, most - count), min_tokens=least)
    return replace(request, messages=messages, sampling=sampling, continue_final=True, begun=None)


def chat_schema() -> Json:
    """The JSON schema of a request's body, for descriptions of the API; ranges beyond it are checked as well."""
    schema = _Fields.model_json_schema(ref_template="#/components/schemas/{model}")
    options = schema.pop("$defs")["_StreamOptions"]
    url: Json = {"type": "string", "description": "data:image/…;base64,…"}
    text, image = (
        {"type": "object", "required": ["type", name], "properties": {"type": {"const": name}, name: value}}
        for name, value in (
            ("text", {"type": "string"}),
            ("image_url", {"type": "object", "required": ["url"], "properties": {"url": url}}),
        )
    )
    content = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": [text, image]}}]}
    roles = {"type": "string", "enum": ["system", "developer", "user", "assistant"]}
    message = {"type": "object", "required": ["role", "content"], "properties": {"role": roles, "content": content}}
    schema["properties"] |= {
        "messages": {"type": "array", "minItems": 1, "items": message},
        "stream_options": {"anyOf": [options, {"type": "null"}]},
    }
    return schema


_SAME_NAME = (
    "max_tokens",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
)
"""Fields called the same in `Sampling` and on the wire."""

# Counting goes slice by slice, so that other threads get their turn in between.
_SLICE = 1 << 20

# Wider than any use, narrow enough that every later comparison and conversion is safe.
_Int = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)]
_Id = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)
    include_usage: bool | None = None


class _Fields(BaseModel):
    """The known fields by type; ranges are `Sampling`'s to check."""

    model_config = ConfigDict(strict=True, protected_namespaces=())
    model: Annotated[str, Field(min_length=1, max_length=512)]
    messages: list[Any]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Int | None = None
    max_completion_tokens: _Int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: _Int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: _Int | None = None
    stop: Any = None
    stop_token_ids: list[_Int] | None = None
    min_tokens: _Int | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    n: _Int | None = None
    user: Annotated[str, Field(max_length=MAX_USER_CHARS)] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_ids: bool | None = None
    continue_token_ids: Annotated[list[_Id], Field(max_length=1 << 20)] | None = None
    continue_chars: Annotated[int, Field(ge=0, le=1 << 30)] | None = None
    response_format: Any = None
    structured_outputs: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None


def _json_object(raw: bytes | bytearray, limits: RequestLimits) -> Json:
    # A body of nothing but brackets and commas becomes forty times its size in objects; images hold none of
    # them and text only so many, so they are counted before anything is built.
    marks = sum(
        raw.count(mark, start, start + _SLICE) for start in range(0, len(raw), _SLICE) for mark in (b",", b"[", b"{")
    )
    if marks > limits.max_text_chars + 100 * limits.max_messages:
        raise BadRequest(f"the body holds {marks} commas and brackets, more than any chat needs; shorten the chat")
    try:
        value: Any = pydantic_core.from_json(raw, allow_inf_nan=False, cache_strings=False)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object with model and messages")
    return cast(Json, value)


def _fields(body: Json) -> _Fields:
    try:
        return _Fields.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(step) for step in first["loc"])
        if first["type"] == "missing":
            raise BadRequest(f"{name} is missing", param=name) from None
        raise BadRequest(f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}", param=name) from None


def _refuse_what_cannot_be_done(fields: _Fields) -> None:
    if fields.n is not None and not 1 <= fields.n <= MAX_ANSWERS:
        raise BadRequest(f"n must be between 1 and {MAX_ANSWERS} answers, not {fields.n}", param="n")
    if fields.top_logprobs is not None and not fields.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    if (fields.tools and fields.tool_choice != "none") or fields.functions:
        raise BadRequest("tools are not supported; leave tools and functions out", param="tools")
    if fields.continue_final_message and fields.add_generation_prompt:
        raise BadRequest(
            "continue_final_message and add_generation_prompt cannot both be true", param="continue_final_message"
        )
    if fields.add_generation_prompt is False and not fields.continue_final_message:
        raise BadRequest(
            "add_generation_prompt: false needs continue_final_message: true", param="add_generation_prompt"
        )


def _begun(fields: _Fields, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], bool, Begun | None]:
    """The chat without the begun answer at its end, whether it still ends with an unfinished turn, and the answer."""
    continues = bool(fields.continue_final_message)
    if not fields.continue_token_ids:
        return messages, continues, None
    chars, last = fields.continue_chars or 0, messages[-1]
    text = last.parts[-1].text if last.parts and isinstance(last.parts[-1], TextPart) else ""
    if not continues or chars > len(text):
        raise BadRequest(
            "continue_token_ids needs continue_final_message: true and the text it stands for at the end of the chat",
            param="continue_token_ids",
        )
    begun = Begun(text[len(text) - chars :], tuple(fields.continue_token_ids))
    kept = text[: len(text) - chars]
    if kept or len(last.parts) > 1:
        parts = (*last.parts[:-1], TextPart(kept)) if kept else last.parts[:-1]
        return (*messages[:-1], replace(last, parts=parts)), True, begun
    return messages[:-1], False, begun


def _sampling(fields: _Fields, *, counted: int) -> Sampling:
    """`counted` tokens of the answer are there already, and not in the numbers of those that may still come."""
    given: Json = {name: getattr(fields, name) for name in (*_SAME_NAME, "temperature", "top_p")}
    if fields.max_completion_tokens is not None:
        given["max_tokens"] = fields.max_completion_tokens
    for name in ("max_tokens", "min_tokens"):
        if counted and given[name]:
            given[name] += counted
    given["stop"] = _stop(fields.stop)
    if fields.stop_token_ids is not None:
        given["stop_token_ids"] = tuple(fields.stop_token_ids)
    if fields.logit_bias is not None:
        given["logit_bias"] = _logit_bias(fields.logit_bias)
    given["grammar"] = read_grammar(fields.response_format, fields.structured_outputs)
    if fields.logprobs:
        given["logprobs"] = fields.top_logprobs or 0
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def _stop(stop: Any) -> tuple[str, ...] | None:
    if stop is None:
        return None
    texts: list[Any] = [stop] if isinstance(stop, str) else cast(list[Any], stop) if isinstance(stop, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest("stop must be a string or a list of strings", param="stop")
    return tuple(texts)


def _logit_bias(given: Mapping[str, float]) -> dict[int, float]:
    if not all(token.isascii() and token.isdecimal() and len(token) < 10 for token in given):
        raise BadRequest("logit_bias must map token ids, written as decimal numbers, to numbers", param="logit_bias")
    return {int(token): bias for token, bias in given.items()}
