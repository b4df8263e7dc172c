"""Markdown to HTML that cannot act: raw HTML shows as text, pictures from elsewhere are named but never fetched.

Code is highlighted here; TeX is left as text in `ls-math` elements, which the browser sets with KaTeX.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.texmath import texmath_plugin
from pygments import format as format_tokens
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

_WORDS = re.compile(r"(?:[^\W_]|[ ,.!?':-])+")
"""What means nothing in Markdown and is the same in HTML, within a line that begins with a letter."""
_PARAGRAPH_END = "</p>\n"
HIGHLIGHT_AT_MOST_CHARS = 60_000
"""Longer code is shown plain: highlighting it would hold up everybody else. So is what takes longer than this, and
what looks as if somebody tried: with many lexers the time grows with the square of some repetitions."""
_HIGHLIGHT_S = 0.3
_REPETITION = re.compile(r"(.)\1{499}", re.DOTALL)


def blocks(text: str) -> tuple[str, ...]:
    """The HTML of each top-level block of a finished text."""
    return tuple(_render(group) for group in _groups(_MARKDOWN.parse(_one_kind_of_line_end(text))))


class GrowingText:
    """Renders a text that only grows: a block is final once another has begun, so only the last is done again, and that
    not where a paragraph has got a few more words."""

    def __init__(self) -> None:
        self._final: list[str] = []
        self._offset = 0
        self._text = ""
        self._last: list[str] = []

    def blocks(self, text: str) -> tuple[str, ...]:
        """The blocks of `text`, which starts with every text given before."""
        text = _one_kind_of_line_end(text)
        self._last = self._with_words(text) or self._parsed(text)
        self._text = text
        return (*self._final, *self._last)

    def _with_words(self, text: str) -> list[str] | None:
        """The last block where it is a paragraph that has only grown by words. Neither they nor what they follow can be
        part of a mark, and the line they are in does not begin with one."""
        before, added = self._text, text[len(self._text) :]
        if not (self._last and self._last[0].startswith("<p>") and self._last[0].endswith(_PARAGRAPH_END)):
            return None
        if not (_WORDS.fullmatch(added) and _WORDS.fullmatch(before[-1:])):
            return None
        if not before[before.rfind("\n") + 1 :][:1].isalpha():
            return None
        gap = before[len(before.rstrip(" ")) :]  # which is not shown at the end of a paragraph
        return [self._last[0].removesuffix(_PARAGRAPH_END) + (gap + added).rstrip(" ") + _PARAGRAPH_END]

    def _parsed(self, text: str) -> list[str]:
        tail = text[self._offset :]
        groups = _groups(_MARKDOWN.parse(tail))
        if len(groups) > 1:
            start = _line_offset(tail, _first_line(groups[-1]))
            self._final += [_render(group) for group in groups[:-1]]
            self._offset += start
            tail = tail[start:]
        return [_render(groups[-1], open_fence=not _fence_is_closed(tail))] if groups else []


def _one_kind_of_line_end(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _groups(tokens: Sequence[Token]) -> list[list[Token]]:
    """Tokens cut into top-level blocks."""
    groups: list[list[Token]] = []
    depth = 0
    for token in tokens:
        if depth == 0:
            groups.append([])
        groups[-1].append(token)
        depth += token.nesting
    return groups


def _first_line(group: Sequence[Token]) -> int:
    return group[0].map[0] if group[0].map else 0


def _line_offset(text: str, line: int) -> int:
    offset = 0
    for _ in range(line):
        offset = text.index("\n", offset) + 1
    return offset


def _fence_is_closed(text: str) -> bool:
    lines = text.rstrip().splitlines()
    return len(lines) > 1 and lines[-1].strip()[:3] in ("```", "~~~")


def _render(group: Sequence[Token], open_fence: bool = False) -> str:
    return _MARKDOWN.renderer.render(group, _MARKDOWN.options, {"open_fence": open_fence})


def _lexer(language: str) -> Lexer | None:
    try:
        return get_lexer_by_name(language, stripnl=False) if language else None
    except ClassNotFound:
        return None


def _code(content: str, language: str, plain: bool) -> str:
    if plain or len(content) > HIGHLIGHT_AT_MOST_CHARS or _REPETITION.search(content):
        return escape(content)
    lexer = _lexer(language)
    return _highlighted(content, lexer) if lexer else escape(content)


def _highlighted(content: str, lexer: Lexer) -> str:
    tokens: list[Any] = []
    until = time.thread_time() + _HIGHLIGHT_S
    for token in lexer.get_tokens(content):
        tokens.append(token)
        if time.thread_time() > until:
            return escape(content)
    return format_tokens(tokens, _FORMATTER)


def _fence(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    language = token.info.strip().split(maxsplit=1)[0] if token.info.strip() else ""
    body = _code(token.content, language, plain=bool(env.get("open_fence")))
    return (
        f'<figure class="ls-code"><figcaption><span>{escape(language) or "text"}</span>'
        '<button type="button" class="ls-code-copy">Copy</button></figcaption>'
        f"<pre><code>{body}</code></pre></figure>"
    )


def _image(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    source = str(token.attrs.get("src", ""))
    host = urlsplit(source).hostname or "an address of its own"
    name = escape(token.content) or "picture"
    return f'<span class="ls-blocked" title="{escape(source[:300])}">{name} (not loaded from {escape(host)})</span>'


def _link_open(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    return self.renderToken(tokens, index, options, env)


def _table_open(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return '<div class="ls-table"><table>'


def _table_close(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return "</table></div>"


def _math_inline(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return f'<span class="ls-math">{escape(tokens[index].content)}</span>'


def _math_display(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return f'<span class="ls-math ls-math-display">{escape(tokens[index].content.strip())}</span>'


def _math_block(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return f'<div class="ls-math ls-math-display">{escape(tokens[index].content.strip())}</div>'


def _bracketed(state: StateInline, silent: bool) -> bool:
    r"""`\[…\]` inside a paragraph; where it stands alone the block rule takes it."""
    start = state.pos
    end = state.src.find("\\]", start + 2) if state.src.startswith("\\[", start) else -1
    if end < 0 or not state.src[start + 2 : end].strip():
        return False
    if not silent:
        state.push("math_inline_double", "math", 0).content = state.src[start + 2 : end]
    state.pos = end + 2
    return True


def _parenthesised(state: StateInline, silent: bool) -> bool:
    r"""`\(…\)` in one line. The plug-in's own rule reads all that follows anew at each one that is never closed."""
    start = state.pos
    if not state.src.startswith("\\(", start):
        return False
    line_end = state.src.find("\n", start)
    end = state.src.find("\\)", start + 3, line_end if line_end >= 0 else len(state.src))
    if end < 0:
        return False
    if not silent:
        state.push("math_inline", "math", 0).content = state.src[start + 2 : end]
    state.pos = end + 2
    return True


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    # Both ways models write TeX: $…$ and $$…$$, \(…\) and \[…\]. A dollar beside a digit or a space is money.
    parser.use(texmath_plugin, delimiters="brackets")
    parser.inline.ruler.at("math_inline", _parenthesised)
    parser.use(dollarmath_plugin, allow_labels=False, allow_space=False, allow_digits=False, double_inline=True)
    parser.inline.ruler.before("escape", "math_bracketed", _bracketed)
    rules = {
        "fence": _fence,
        "code_block": _fence,
        "image": _image,
        "link_open": _link_open,
        "table_open": _table_open,
        "table_close": _table_close,
        "math_inline": _math_inline,
        "math_inline_double": _math_display,
        "math_block": _math_block,
        "math_block_eqno": _math_block,
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


_FORMATTER = HtmlFormatter(nowrap=True, classprefix="tok-")
_MARKDOWN = _parser()
