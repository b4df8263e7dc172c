"""Text comes out as soon as it is certain, and no sooner."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llava_core.engines.transformers.detokenize import Detokenizer


def byte_tokenizer() -> Tokenizer:
    """Every byte a token, as the smallest pieces of real vocabularies are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    words = ["<unk>", "▁Hello", "▁world", "!", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


BYTES = byte_tokenizer()
PIECES = sentencepiece_tokenizer()


def pieces(text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(BYTES, stops)
    found: list[str] = []
    for token in BYTES.encode(text).ids:
        found.append(detokenizer.push(token))
        if detokenizer.stopped:
            return found, detokenizer
    return [*found, detokenizer.finish()], detokenizer


@pytest.mark.parametrize(
    "text", ["plain words", "naïve café", "日本語のテキスト", "🙂 and 👩‍👩‍👧 too", "tab\tand\nline"]
)
def test_the_pieces_join_to_the_text_without_half_characters(text: str) -> None:
    found, _ = pieces(text)
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)


def test_bytes_that_are_no_text_come_out_as_marks_and_never_raise() -> None:
    detokenizer = Detokenizer(BYTES)
    ids = [BYTES.token_to_id(char) for char in ("Ã", "Ã", "Ã", "a", "b", "é", "Ã")] * 6
    text = "".join(detokenizer.push(token) for token in ids) + detokenizer.finish()
    assert text.count("ab") == 6


@pytest.mark.parametrize("text", ["né", "né🙂", "東", "a東🙂"])
def test_an_answer_cut_inside_a_character_ends_before_it(text: str) -> None:
    for cut in range(len(text.encode()) + 1):
        whole = text.encode()[:cut].decode(errors="ignore")
        for tokenizer, ids in (
            (BYTES, BYTES.encode(text).ids[:cut]),
            (PIECES, [4 + byte for byte in text.encode()[:cut]]),
        ):
            detokenizer = Detokenizer(tokenizer)
            assert "".join(detokenizer.push(token) for token in ids) + detokenizer.finish() == whole


def test_bytes_that_never_form_a_character_stay_marks_where_only_the_last_is_cut_short() -> None:
    for tokenizer, ids in (
        (BYTES, [BYTES.token_to_id(char) for char in ("a", "ÿ", "b", "ÿ", "Ã")]),
        (PIECES, [4 + byte for byte in b"a\xffb\xff\xc3"]),
    ):
        detokenizer = Detokenizer(tokenizer)
        text = "".join(detokenizer.push(token) for token in ids) + detokenizer.finish()
        assert text == "a\ufffdb\ufffd"


def test_a_stop_string_is_cut_off_even_when_it_comes_in_parts() -> None:
    found, detokenizer = pieces("one ## two ### three", ("###",))
    assert detokenizer.stopped
    assert "".join(found) == "one ## two "
    assert not any(piece.endswith("##") and piece != "##" for piece in found)


def test_what_might_begin_a_stop_string_is_held_back_until_it_cannot() -> None:
    found, _ = pieces("a##b", ("###",))
    assert found == ["a", "", "", "##b", ""]
    found, _ = pieces("end##", ("###",))
    assert found[-1] == "##"


def test_the_earliest_of_several_stop_strings_wins() -> None:
    found, _ = pieces("abcdef", ("ef", "cd", "d"))
    assert "".join(found) == "ab"


def test_stop_strings_before_the_least_tokens_are_passed_over() -> None:
    detokenizer = Detokenizer(BYTES, ("b",))
    ids = BYTES.encode("abcb").ids
    text = "".join(detokenizer.push(token, may_stop=index >= 2) for index, token in enumerate(ids))
    assert text == "abc"
    assert detokenizer.stopped


def test_spaces_between_words_survive_and_the_first_does_not() -> None:
    detokenizer = Detokenizer(PIECES)
    assert [detokenizer.push(token) for token in (1, 2, 3)] == ["Hello", " world", "!"]


def test_a_continued_text_keeps_its_first_space() -> None:
    detokenizer = Detokenizer(PIECES, before=(1,))
    assert [detokenizer.push(token) for token in (2, 3)] == [" world", "!"]


def test_characters_made_of_byte_tokens_wait_for_their_last_byte() -> None:
    detokenizer = Detokenizer(PIECES)
    ids = [1, *(4 + byte for byte in "é".encode()), 3]
    assert [detokenizer.push(token) for token in ids] == ["Hello", "", "é", "!"]
