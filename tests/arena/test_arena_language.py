"""What a question is asked in, by the names of LMArena's column."""

from __future__ import annotations

import sys

import pytest

from serve.arena import language
from serve.arena.language import language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is in this picture?", "English"),
        ("And its colour?", "English"),
        ("Was ist auf dem Bild zu sehen?", "German"),
        ("¿Qué hay en la foto?", "Spanish"),
        ("Qu'est-ce que c'est ?", "French"),
        ("Что на картинке?", "Russian"),
        ("图片里有什么？", "Chinese"),
        ("圖片裡有什麼？這是誰的東西？", "Chinese"),
        ("画像には何がありますか", "Japanese"),
        ("이 그림에 무엇이 있나요?", "Korean"),
    ],
)
def test_a_question_tells_its_language(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize("text", ["", "42", "   ", "?!", "🙂", "\0\x07\ud800", "1 + 1 = 2"])
def test_what_has_no_words_tells_none(text: str) -> None:
    assert language_of(text) == ""


def test_odd_characters_and_length_are_no_trouble() -> None:
    assert language_of("What\0 is\x07 in this\ud800 picture?") == "English"
    assert language_of("Was ist auf dem Bild zu sehen? " * 100_000) == "German"


def test_without_the_package_no_language_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycld2", None)
    language._detector.cache_clear()
    try:
        assert language.language_of("What is in this picture?") == ""
    finally:
        language._detector.cache_clear()
