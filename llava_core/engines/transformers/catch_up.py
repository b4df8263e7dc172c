"""Brings what draws and what writes an answer to where another engine left it, so that it goes on as if begun here."""

from __future__ import annotations

from collections.abc import Collection

from llava_core.engines.transformers.detokenize import Detokenizer
from llava_core.engines.transformers.sampler import Draw
from llava_core.errors import BadRequest, ContextOverflow
from llava_core.types import Begun


def catch_up(begun: Begun, draw: Draw, detokenizer: Detokenizer, *, never: Collection[int], room: int) -> None:
    """Take the begun answer's ids as if they had been drawn here. Raises BadRequest where they cannot have been:
    ids in `never` are pictures or ends, and another model's ids are other words.
    """
    if len(begun.token_ids) >= room:
        raise ContextOverflow(
            f"this worker lets an answer grow to {room} tokens, and {len(begun.token_ids)} have come; ask for less",
            param="continue_token_ids",
        )
    text = ""
    for place, token in enumerate(begun.token_ids, 1):
        if token in never and not (draw.sampling.ignore_eos and token in draw.ending):
            raise BadRequest("continue_token_ids holds an id that no answer goes on after", param="continue_token_ids")
        if not draw.greedy:
            draw.uniform()
        draw.took(token)
        text += detokenizer.push(token, may_stop=place >= draw.sampling.min_tokens)
    if text != begun.text or detokenizer.stopped:
        raise BadRequest(
            "continue_token_ids is not the text at the end of the chat in this model's tokens; send the text alone",
            param="continue_token_ids",
        )
