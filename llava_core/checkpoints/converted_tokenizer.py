"""The tokenizer of a converted checkpoint: one pass over the whole prompt gives the ids the original code gave.

The original tokenises the text between pictures piece by piece. Where that shows, the pieces' rules are written into
the pipeline around the `<image>` token.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from llava_core.checkpoints.original_tokenizer import SPACE, OriginalTokenizer
from llava_core.checkpoints.prompting import IMAGE_MARK
from llava_core.errors import BadCheckpoint


def converted_tokenizer(original: OriginalTokenizer, placeholder: int, chat_template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that knows `<image>` as the id `placeholder`, with `chat_template`."""
    source: Any = original.tokenizer
    by_piece = original.prefix == "chunk"
    spec = json.loads(source.backend_tokenizer.to_str())
    if by_piece:
        spec["normalizer"] = {"type": "Sequence", "normalizers": _pieces(spec["normalizer"]["normalizers"])}
        spec["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": "first",
            "split": False,
        }
    backend = Tokenizer.from_str(json.dumps(spec))
    # Seen by the normaliser, which puts the word-start mark behind it; other special tokens split the text before.
    image = AddedToken(IMAGE_MARK, special=True, normalized=by_piece)
    backend.add_special_tokens([image])
    if backend.token_to_id(IMAGE_MARK) != placeholder:
        raise BadCheckpoint(
            f"the tokenizer already has {IMAGE_MARK} as {backend.token_to_id(IMAGE_MARK)}, not as {placeholder}; such "
            "a checkpoint cannot be converted"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=source.bos_token,
        eos_token=source.eos_token,
        unk_token=source.unk_token,
        pad_token=source.pad_token or source.unk_token or source.eos_token,
        extra_special_tokens={"image_token": image},
        chat_template=chat_template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _pieces(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The normaliser of one piece made into one of several with pictures between them."""
    strips = any(step["type"] == "Strip" for step in steps)
    mark = {
        "type": "Replace",
        "pattern": {"Regex": rf"{IMAGE_MARK}(?!{IMAGE_MARK}|\z)"},
        "content": IMAGE_MARK + SPACE,
    }
    trim = {"type": "Replace", "pattern": {"Regex": rf" +(?={IMAGE_MARK})"}, "content": ""}
    *before, escape = steps
    return [mark, *before, *([trim] if strips else []), escape]
