"""From messages to prompt ids, with every word of a person or a model kept as text.

A rendered prompt mixes the template's own special tokens with people's words. Before rendering, each string in
those words that the tokenizer would take for a special token is masked by private characters; after it, the
template's tokens are the only ones left to see. A prompt without such strings is tokenised as it is.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import AddedToken, Tokenizer

from llava_core.checkpoints.encoding import TextEncoder
from llava_core.checkpoints.original_tokenizer import SPACE, Prefix
from llava_core.conversation import Template, render
from llava_core.errors import BadCheckpoint, BadRequest
from llava_core.types import ImagePart, Message, Role, TextPart

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE_MARK = "<image>"
_CUT = "\ue004"
_MARKER_SHAPE = re.compile(r"^(<.*>|\[.*\])$", re.DOTALL)


@dataclass(frozen=True)
class TokenizedPrompt:
    """`ids` hold one placeholder per image feature row; picture *i* starts at `starts[i]`."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    text: str


Render = Callable[[Sequence[Message], bool], str]
"""Masked messages and whether the last is to be continued -> the prompt with one image token per picture."""


@dataclass(frozen=True)
class _Layout:
    """How a rendered prompt is cut and tokenised."""

    image_token: str
    image_wrap: tuple[str, str]
    by_chunk: bool
    """Tokenise the text around each picture by itself, as the original does, not the whole at once."""
    prefix: Prefix


class Prompter:
    """Renders and tokenises chats for one checkpoint; safe to use from any thread."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, render: Render, layout: _Layout, *, placeholder_id: int | None
    ) -> None:
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise BadCheckpoint(f"{type(tokenizer).__name__} has no `tokenizers` pipeline; a tokenizer.json is needed")
        # A copy: transformers switches truncation and padding on its own object while others encode with it.
        self._plain = Tokenizer.from_str(backend.to_str())
        self._plain.no_truncation()
        self._plain.no_padding()
        self._texts = TextEncoder(self._plain)
        self._markers = _markers(self._plain, layout.image_token)
        self._guarded, self._aliases = _guarded(self._plain)
        self._bos = str(tokenizer.bos_token or "")
        self._render = render
        self._layout = layout
        self._placeholder_id = placeholder_id

    @classmethod
    def for_template(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        *,
        placeholder_id: int | None,
        prefix: Prefix = "own",
        image_wrap: tuple[str, str] = ("", ""),
    ) -> Prompter:
        """For a checkpoint in the original format: text between pictures is tokenised piece by piece, as
        `tokenizer_image_token` does. `image_wrap` is `("<im_start>", "<im_end>")` where the config says so."""

        def rendered(messages: Sequence[Message], continue_final: bool) -> str:
            system, turns = _turns(messages, "".join((image_wrap[0], IMAGE_MARK, image_wrap[1])))
            return render(template, turns, system=system, continue_final=continue_final)

        # The wrap is part of the text around a picture here, so that its tokens count for the word-start mark.
        layout = _Layout(IMAGE_MARK, ("", ""), by_chunk=True, prefix=prefix)
        return cls(tokenizer, rendered, layout, placeholder_id=placeholder_id)

    @classmethod
    def for_chat_template(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str,
        *,
        image_token: str | None,
        placeholder_id: int | None = None,
        image_wrap: tuple[str, str] = ("", ""),
    ) -> Prompter:
        """For a checkpoint with a chat template of its own (Jinja, run in transformers' sandbox).

        `image_token` is what the template writes for a picture (None for a text-only model); `image_wrap` is put
        around each picture's placeholders where the processor, not the template, adds it (InternVL).
        """
        token = image_token or IMAGE_MARK
        as_parts = _takes_parts(tokenizer, chat_template)

        def rendered(messages: Sequence[Message], continue_final: bool) -> str:
            return _apply(tokenizer, chat_template, messages, token if not as_parts else None, continue_final)

        if placeholder_id is None and image_token is not None:
            found = tokenizer.convert_tokens_to_ids(image_token)
            placeholder_id = found if isinstance(found, int) else None
        layout = _Layout(token, image_wrap, by_chunk=False, prefix="own")
        return cls(tokenizer, rendered, layout, placeholder_id=placeholder_id)

    @classmethod
    def for_captions(cls, tokenizer: PreTrainedTokenizerBase, *, placeholder_id: int) -> Prompter:
        """For aligning a projector: pictures, then their caption and a line break; the user's words are left out."""

        def rendered(messages: Sequence[Message], continue_final: bool) -> str:
            text = "".join(
                IMAGE_MARK * len(message.images) if message.role == "user" else f"{message.text}\n"
                for message in messages
                if message.role != "system"
            )
            return text.removesuffix("\n") if continue_final else text

        layout = _Layout(IMAGE_MARK, ("", ""), by_chunk=True, prefix="own")
        return cls(tokenizer, rendered, layout, placeholder_id=placeholder_id)

    def tokenize(
        self, messages: Sequence[Message], image_lengths: Sequence[int], *, continue_final: bool = False
    ) -> TokenizedPrompt:
        """`image_lengths` are the feature rows of each picture, in the order of the messages' image parts.

        Raises BadRequest when the model takes no pictures, or its template does not take this chat.
        """
        if image_lengths and self._placeholder_id is None:
            raise BadRequest("this model takes no pictures; remove them or choose another model", param="messages")
        if continue_final and not messages[-1].text:
            messages, continue_final = messages[:-1], False
        nonce = secrets.token_hex(6)
        masked = self._render([self._mask(message, nonce) for message in messages], continue_final)
        if masked.count(self._layout.image_token) != len(image_lengths):
            raise BadRequest(
                f"the chat template of this model kept {masked.count(self._layout.image_token)} of the chat's "
                f"{len(image_lengths)} pictures; leave pictures out of turns where it takes none",
                param="messages",
            )
        ids, starts = self._encode(masked, image_lengths, nonce)
        return TokenizedPrompt(tuple(ids), tuple(starts), self._unmask(masked, nonce))

    def _encode(self, masked: str, lengths: Sequence[int], nonce: str) -> tuple[list[int], list[int]]:
        """Ids of the prompt with placeholders in place, and where each picture starts."""
        layout = self._layout
        ids: list[int] = []
        starts: list[int] = []
        if layout.by_chunk:
            for index, chunk in enumerate(masked.split(layout.image_token)):
                if index:
                    starts.append(len(ids))
                    ids += [self._placeholder()] * lengths[index - 1]
                ids += self._ids(self._prefixed(chunk), nonce, special=index == 0)
            return ids, starts
        open_ids, close_ids = (self._plain.encode(mark, add_special_tokens=False).ids for mark in layout.image_wrap)
        # As in transformers: a processor adds the begin-of-text token that its template left out, a tokenizer does not.
        special = self._placeholder_id is not None and not (self._bos and masked.startswith(self._bos))
        for token in self._ids(masked, nonce, special=special):
            if token != self._placeholder_id or not lengths:
                ids.append(token)
                continue
            ids += open_ids
            starts.append(len(ids))
            ids += [token] * lengths[len(starts) - 1]
            ids += close_ids
        return ids, starts

    def _placeholder(self) -> int:
        assert self._placeholder_id is not None
        return self._placeholder_id

    def _prefixed(self, chunk: str) -> str:
        """The chunk with the word-start mark the slow tokenizer put before it, unless a special token opens it."""
        if self._layout.prefix != "chunk" or not chunk or chunk.startswith(tuple(self._aliases)):
            return chunk
        return SPACE + chunk

    def _ids(self, masked: str, nonce: str, *, special: bool) -> list[int]:
        if nonce not in masked:
            return self._texts.encode(masked, special=special)
        # People wrote special-looking text: the template's tokens get aliases, the rest is encoded as plain text.
        pattern = "|".join(re.escape(content) for content in sorted(self._aliases, key=len, reverse=True))
        aliased = re.sub(pattern, lambda m: self._aliases[m[0]][0], masked) if pattern else masked
        true_ids = dict(self._aliases.values())
        encoded = self._guarded.encode(self._unmask(aliased, nonce), add_special_tokens=special)
        if set(encoded.ids[special:]) & set(true_ids.values()):
            # Some vocabularies spell a special token out of ordinary pieces: cut those words so that none can.
            encoded = self._guarded.encode(self._unmask(aliased, nonce, cut=_CUT), add_special_tokens=special)
        pairs = zip(encoded.tokens, encoded.ids, strict=True)
        return [true_ids.get(token, i) for token, i in pairs if token != _CUT]

    def _mask(self, message: Message, nonce: str) -> Message:
        def masked(text: str) -> str:
            for index, marker in enumerate(self._markers):
                text = text.replace(marker, f"\ue000{nonce}.{index}\ue001")
            return text

        parts = tuple(TextPart(masked(p.text)) if isinstance(p, TextPart) else p for p in message.parts)
        return Message(message.role, parts)

    def _unmask(self, text: str, nonce: str, *, cut: str = "") -> str:
        def marker(match: re.Match[str]) -> str:
            return cut.join(self._markers[int(match[1])]) if cut else self._markers[int(match[1])]

        return re.sub(f"\ue000{nonce}\\.(\\d+)\ue001", marker, text)


def _markers(tokenizer: Tokenizer, image_token: str) -> tuple[str, ...]:
    """Strings that must stay text in people's words, longest first."""
    added = tokenizer.get_added_tokens_decoder().values()
    found = {token.content for token in added if token.special or _MARKER_SHAPE.match(token.content)}
    return tuple(sorted(found | {image_token, IMAGE_MARK}, key=len, reverse=True))


def _guarded(plain: Tokenizer) -> tuple[Tokenizer, dict[str, tuple[str, int]]]:
    """A tokenizer that takes marker strings for plain text, and for each of them the alias it does know.

    The aliases map content to (alias, true id).
    """
    spec = json.loads(plain.to_str())
    aliases: dict[str, tuple[str, int]] = {}
    tokens: list[AddedToken] = []
    for token in spec["added_tokens"]:
        if token["special"] or _MARKER_SHAPE.match(token["content"]):
            token["special"] = True
            alias = f"\ue002{token['id']}\ue003"
            aliases[token["content"]] = (alias, token["id"])
            flags = {key: token[key] for key in ("single_word", "lstrip", "rstrip")}
            tokens.append(AddedToken(alias, normalized=False, special=False, **flags))
    guarded = Tokenizer.from_str(json.dumps(spec))
    guarded.encode_special_tokens = True
    guarded.add_tokens([*tokens, AddedToken(_CUT, normalized=False, special=False)])
    return guarded, aliases


def _turns(messages: Sequence[Message], image: str) -> tuple[str | None, list[tuple[Role, str]]]:
    """System text (several joined) and the other turns as strings; same-role neighbours become one turn."""
    systems = [message.text for message in messages if message.role == "system"]
    turns: list[tuple[Role, str]] = []
    for message in messages:
        if message.role == "system":
            continue
        text = flatten(message, image)
        if turns and turns[-1][0] == message.role:
            turns[-1] = (message.role, f"{turns[-1][1]}\n{text}")
        else:
            turns.append((message.role, text))
    return ("\n".join(systems) if systems else None), turns


def flatten(message: Message, image: str) -> str:
    """A message as the original's pages write it: a line break between a picture's mark and its neighbours."""
    text = ""
    before: Literal["start", "text", "image"] = "start"
    for part in message.parts:
        if isinstance(part, ImagePart):
            text += ("" if before == "start" else "\n") + image
            before = "image"
        elif part.text:
            text += ("\n" if before == "image" else "") + part.text
            before = "text"
    return text + "\n" if message.parts and all(isinstance(part, ImagePart) for part in message.parts) else text


def _takes_parts(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> bool:
    """Whether the template reads content as a list of parts; text-only ones want a string."""
    probe = "\ue000probe\ue001"
    messages = [{"role": "user", "content": [{"type": "text", "text": probe}]}]
    try:
        rendered: Any = tokenizer.apply_chat_template(messages, chat_template=chat_template, tokenize=False)
    except Exception:
        return False
    return probe in rendered and "'type'" not in rendered


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str,
    messages: Sequence[Message],
    image_token: str | None,
    continue_final: bool,
) -> str:
    """Run the checkpoint's template; `image_token` is given where it takes strings. BadRequest if it refuses."""
    chat: list[dict[str, Any]] = []
    for message in messages:
        content: Any
        if image_token is None:
            content = [
                {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
                for part in message.parts
            ]
        else:
            content = flatten(message, image_token)
        chat.append({"role": message.role, "content": content})
    try:
        rendered: Any = tokenizer.apply_chat_template(
            chat,
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=not continue_final,
            continue_final_message=continue_final,
        )
    except Exception as cause:
        raise BadRequest(f"the model's chat template refuses this chat: {cause}", param="messages") from cause
    return rendered
