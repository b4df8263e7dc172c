"""The flags of the operator's moderation, which controller, page and launcher share."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from llava_core.errors import BadRequest
from serve.moderation import KEY, Judge, LocalClassifier, Moderation, ModerationServer, named_classifier

Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Judge questions before a model sees them, and answers at their end, by an address that speaks OpenAI's "
        f"/v1/moderations; its key stands in ${KEY}. [default: not]",
    ),
]
Model = Annotated[str | None, typer.Option(metavar="NAME", help="The model to name to that address. [default: none]")]
ByFunction = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="Judge by a Python function instead, which takes text and pictures' URLs and gives names of categories.",
    ),
]
FailOpen = Annotated[
    bool | None,
    typer.Option("--moderation-fail-open", help="Let everything pass while the judge fails; else nothing passes."),
]

HoldAnswers = Annotated[
    bool | None,
    typer.Option(
        "--moderation-hold-answers",
        help="Show no answer before it was judged whole, and none that is flagged; else flagged ones are marked.",
    ),
]


def moderation(
    url: str | None,
    model: str | None,
    function: str | None,
    fail_open: bool | None,
    hold_answers: bool | None,
) -> Moderation | None:
    """As the flags say; None where they ask for none. Raises BadRequest."""
    judge: Judge
    if url and function:
        raise BadRequest("--moderation-url and --moderation-classifier exclude each other")
    if url:
        if not url.startswith(("http://", "https://")):
            raise BadRequest(f"--moderation-url must be http(s)://HOST/v1/moderations, not {url[:200]!r}")
        judge = ModerationServer(url, os.environ.get(KEY, ""), model or "")
    elif function:
        judge = LocalClassifier(named_classifier(function))
    else:
        return None
    return Moderation(judge, fail_open=bool(fail_open), hold_answers=bool(hold_answers))
