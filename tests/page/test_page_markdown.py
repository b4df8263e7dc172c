"""Markdown as it is shown: nothing in it acts, nothing is fetched, and a growing text ends as the whole would."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.page.markdown import GrowingText, blocks

TEXT = """# A title

Some *words*, `code`, ~~gone~~ and $x^2$.

```python
def f(x):
    return "a < b"
```

| a | b |
|---|---|
| 1 | 2 |

1. one
2. two

   deeper

\\[
E = mc^2
\\]

$$
y = 1
$$

The end
"""


def html(text: str) -> str:
    return "".join(blocks(text))


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "before <b onclick=alert(1)>bold</b>",
        "<iframe src='https://example.com'></iframe>",
        "```html\n<script>alert(1)</script>\n```",
        "$<img src=x onerror=alert(1)>$",
        "\\[<script>alert(1)</script>\\]",
        "```<img/src=x>\ncode\n```",
        "![<img src=x>](https://example.com/<script>)",
    ],
)
def test_html_from_a_model_is_text(text: str) -> None:
    shown = html(text)
    for tag in ("<script", "<img", "<iframe", "<b ", "onclick=alert(1)>b"):
        assert tag not in shown


@pytest.mark.parametrize("target", ["javascript:alert(1)", "vbscript:x", "data:text/html,x", "file:///etc/passwd"])
def test_a_link_that_would_act_is_no_link(target: str) -> None:
    assert "<a " not in html(f"[click]({target})")


def test_a_link_opens_elsewhere_and_tells_nothing_of_this_page() -> None:
    shown = html("[there](https://example.com/a?b=1&c=2)")
    assert 'href="https://example.com/a?b=1&amp;c=2"' in shown
    assert 'rel="noopener noreferrer nofollow"' in shown
    assert 'target="_blank"' in shown


@pytest.mark.parametrize("source", ["https://example.com/pixel.png", "//example.com/x", "data:image/png;base64,AA"])
def test_a_picture_in_an_answer_is_named_and_not_fetched(source: str) -> None:
    shown = html(f"![a cat]({source})")
    assert "src=" not in shown
    assert "a cat (not loaded from" in shown


@pytest.mark.parametrize("token", ["<image>", "</s>", "[INST]", "<|im_start|>", "USER:", "<unk>"])
def test_special_tokens_are_shown_as_they_are(token: str) -> None:
    escaped = token.replace("<", "&lt;").replace(">", "&gt;")
    assert f"before {escaped} after" in html(f"before {token} after")


def test_code_is_highlighted_and_can_be_copied() -> None:
    shown = html("```python\nreturn 1\n```")
    assert '<span class="tok-k">return</span>' in shown
    assert "ls-code-copy" in shown
    assert "<span>python</span>" in shown


def test_code_in_an_unknown_language_is_shown_plain() -> None:
    assert "<code>x &lt; y\n</code>" in html("```nolanguage\nx < y\n```")


@pytest.mark.parametrize("text", ["\\(\\)", "\\(a\nb\\)", "\\(a"])
def test_brackets_without_a_formula_in_one_line_are_text(text: str) -> None:
    assert "ls-math" not in html(f"so {text} is")


@pytest.mark.parametrize("text", ["$a_1$", "\\(a_1\\)"])
def test_formulas_in_a_line_are_kept_for_the_browser_to_set(text: str) -> None:
    assert '<span class="ls-math">a_1</span>' in html(f"so {text} is")


@pytest.mark.parametrize("text", ["so $$a_1$$ is", "so \\[a_1\\] is", "$$\na_1\n$$", "\\[\na_1\n\\]", "\\[ a_1 \\]"])
def test_displayed_formulas_are_kept_for_the_browser_to_set(text: str) -> None:
    assert 'ls-math-display">a_1</' in html(text)


@pytest.mark.parametrize("text", ["It costs $5 and $6.", "from $ 3 to 4 $ or so", "US$10, not US$12"])
def test_money_is_no_formula(text: str) -> None:
    assert "ls-math" not in html(text)


@pytest.mark.parametrize(
    ("language", "code"), [("java", "\n" * 4000), ("make", "a" * 4000), ("c", " \n" * 2000), ("matlab", "\n" * 8000)]
)
def test_code_made_to_be_slow_is_shown_plain_before_long(language: str, code: str) -> None:
    began = time.thread_time()
    shown = html(f"```{language}\nint x;\n{code}y\n```")
    # Highlighted to the end some would take seconds; those that are done in time are coloured.
    assert time.thread_time() - began < 1
    assert "int x;" in re.sub(r"<[^>]*>", "", shown)


def test_line_breaks_of_a_model_are_kept() -> None:
    assert "<br" in html("one\ntwo")


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_a_text_that_grows_ends_as_the_whole_text(step: int) -> None:
    growing, shown = GrowingText(), ()
    for end in range(0, len(TEXT) + step, step):
        shown = growing.blocks(TEXT[:end])
    assert shown == blocks(TEXT)


def test_blocks_that_are_complete_do_not_change_any_more() -> None:
    growing = GrowingText()
    seen: list[tuple[str, ...]] = [growing.blocks(TEXT[:end]) for end in range(len(TEXT))]
    for before, after in pairwise(seen):
        assert after[: len(before) - 1] == before[:-1]


def test_code_that_is_still_being_written_is_shown_as_it_comes() -> None:
    shown = GrowingText().blocks("Look:\n\n```python\nreturn 1")
    assert "return 1" in shown[-1]
    assert "ls-code" in shown[-1]


@pytest.mark.parametrize("mark", ["\\(", "\\[", "$", "$$", "\\(a\n", "![", "[a](", "a|b\n-|-\n"])
def test_no_mark_that_is_never_closed_takes_long_however_often_it_comes(mark: str) -> None:
    def took(times: int) -> float:
        text = mark * times
        began = time.thread_time()
        blocks(text)
        return time.thread_time() - began

    few = min(took(1000) for _ in range(3))
    # In proportion it would be 8 times as long, in proportion to the square 64 times.
    assert took(8000) < 30 * few + 0.1


@given(
    st.lists(
        st.sampled_from(
            [*"ab*_`~$|<>[]()!#-+.:\\\r\n\t 1", "```", "$$", "\\[", "\\]", "\n\n", "> ", "1. ", "\x00", "é😀"]
        ),
        max_size=60,
    )
)
def test_no_text_however_odd_breaks_the_view(pieces: list[str]) -> None:
    growing, text = GrowingText(), ""
    for piece in pieces:
        text += piece
        growing.blocks(text)
    assert "<script" not in "".join(blocks(text))


@given(
    st.lists(
        st.sampled_from(
            [
                *"ab1 *_`~$|<>[]()!&;:-.+=#'\\\r\n",
                "word ",
                " more words, and",
                "é",
                "图",
                "$$",
                "\n\n",
                "\n- ",
                "\n1. ",
                "  \n",
            ]
        ),
        max_size=40,
    )
)
def test_words_that_are_added_without_parsing_look_as_if_they_were_parsed(pieces: list[str]) -> None:
    growing, parsed, text = GrowingText(), GrowingText(), ""
    parsed._with_words = lambda text: None  # pyright: ignore[reportAttributeAccessIssue]
    for piece in pieces:
        text += piece
        assert growing.blocks(text) == parsed.blocks(text)
