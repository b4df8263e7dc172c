"""Answers to what goes wrong on any route: OpenAI's error body with the class's name, and nothing about our insides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from llava_core.errors import BadRequest, EngineFailure, LlavaError, Unauthorized
from serve.described import ERRORS
from serve.http_errors import CLASS, status_of


def add_error_handlers(app: FastAPI) -> None:
    """Give every error on every route an OpenAI error body: ours, a wrong path or method, a wrong field."""
    app.router.responses.update(ERRORS)
    app.add_exception_handler(LlavaError, _ours)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _wrong_field)


def error_response(error: LlavaError) -> Response:
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.to_body(), status_of(error), headers)


def http_error_response(method: str, path: str, error: HTTPException) -> Response:
    """For errors that have a number and no class: no such path, no such method, too large, too slow."""
    cls = CLASS.get(error.status_code, BadRequest if error.status_code < 500 else EngineFailure)
    if error.status_code == 404:
        # The path is unknown here, which is not the same as a model that is.
        cls = BadRequest
    sentence = {
        404: f"there is nothing at {path[:200]}; chats go to POST /v1/chat/completions",
        405: f"{path[:200]} does not take {method[:20]}",
    }.get(error.status_code, str(error.detail))
    return JSONResponse(cls(sentence).to_body(), error.status_code, error.headers)


async def _ours(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, LlavaError)
    return error_response(error)


async def _http(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return http_error_response(request.method, request.url.path, error)


def wrong_field_response(errors: Sequence[Mapping[str, Any]]) -> Response:
    """For a body whose fields are not as they should be, as pydantic tells it."""
    first = errors[0]
    name = ".".join(str(step) for step in first["loc"] if step != "body")
    # The refused value is not repeated: it may be megabytes, or not even printable.
    sentence = str(first["msg"])
    sentence = sentence[:1].lower() + sentence[1:]
    if name:
        wrong = BadRequest(f"{name}: {sentence}", param=name)
    else:
        wrong = BadRequest("the body must be a JSON object, sent with the header Content-Type: application/json")
    return JSONResponse(wrong.to_body(), 422)


async def _wrong_field(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return wrong_field_response(cast(Sequence[Mapping[str, Any]], error.errors()))
