"""The tokenizer of an original-format checkpoint, with the white-space rules its training code had.

The original LLaVA code loads Llama-type checkpoints through transformers' former slow tokenizer, which ran
SentencePiece piece by piece, and Mistral and MPT ones through the fast one. Both are rebuilt here as one `tokenizers`
pipeline; transformers 5 alone drops the normaliser of `tokenizer.model` and puts the leading space elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llava_core.errors import BadCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prefix = Literal["chunk", "segment", "own"]
SPACE = "▁"


@dataclass(frozen=True)
class OriginalTokenizer:
    """A tokenizer and where a word-start mark goes that the text itself does not have.

    `chunk`: before each stretch of text between pictures, which the caller does (`SPACE`); `segment`: before each
    stretch between special tokens, which the pipeline does; `own`: the checkpoint's tokenizer.json knows.
    """

    tokenizer: PreTrainedTokenizerBase
    prefix: Prefix


def load_original_tokenizer(folder: Path, *, model_type: str) -> OriginalTokenizer:
    """Read `tokenizer.model` or `tokenizer.json` from `folder`. Raises BadCheckpoint when neither can be read."""
    from transformers import AutoTokenizer, LlamaTokenizer

    model_file = folder / "tokenizer.model"
    slow = "mistral" not in model_type and "mpt" not in model_type
    try:
        if not model_file.is_file() or (not slow and (folder / "tokenizer.json").is_file()):
            return OriginalTokenizer(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), "own")
        tokenizer = LlamaTokenizer.from_pretrained(folder)
    except Exception as cause:
        raise BadCheckpoint(
            f"the tokenizer of {folder.name!r} cannot be read ({type(cause).__name__}: {cause}); "
            "it needs a whole tokenizer.model, or tokenizer.json, beside config.json"
        ) from cause
    prefix: Prefix = "chunk" if slow and not _legacy(folder) else "segment"
    # What the fast conversion of the time did: word-start mark and spaces only, no normaliser.
    normaliser = _normaliser(model_file, prefix) if slow else _steps([_prepend(), _escape()])
    backend: Any = tokenizer.backend_tokenizer
    backend.normalizer = normaliser
    backend.pre_tokenizer = None
    return OriginalTokenizer(tokenizer, prefix)


def _legacy(folder: Path) -> bool:
    """Whether the slow tokenizer marked every segment; it did unless its config said `"legacy": false`."""
    config = folder / "tokenizer_config.json"
    return bool(json.loads(config.read_text()).get("legacy", True)) if config.is_file() else True


def _normaliser(model_file: Path, prefix: Prefix) -> Any:
    """SentencePiece's normaliser as the model file specifies it."""
    from tokenizers import Regex, normalizers
    from transformers.convert_slow_tokenizer import import_protobuf

    protobuf: Any = import_protobuf()
    spec: Any = protobuf.ModelProto.FromString(model_file.read_bytes()).normalizer_spec
    steps: list[Any] = []
    if spec.remove_extra_whitespaces and prefix == "chunk":
        # White space other than a space at the start of a segment is stripped with all that follows it.
        steps.append(normalizers.Replace(Regex(r"\A[^\S ]\s*"), ""))
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(left=prefix == "segment", right=True)]
    if prefix == "segment" and spec.add_dummy_prefix:
        steps.append(_prepend())
    return _steps([*steps, _escape()])


def _prepend() -> Any:
    from tokenizers import normalizers

    return normalizers.Prepend(SPACE)


def _escape() -> Any:
    from tokenizers import normalizers

    return normalizers.Replace(" ", SPACE)


def _steps(steps: list[Any]) -> Any:
    from tokenizers import normalizers

    return normalizers.Sequence(steps)
