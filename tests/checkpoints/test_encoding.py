"""A text encoded from where it is new gets the ids that the tokenizer gives the whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llava_core.checkpoints.encoding import TextEncoder
from llava_core.checkpoints.original_tokenizer import load_original_tokenizer

ORIGINALS = Path(__file__).parent.parent / "fixtures" / "original_checkpoints"
WORDS = ["A cat", "  on the", " mat.\n", "\n\n", "ÜBER", "日本", " x", "1234", "", "USER:", "ASSISTANT: ", "\t"]


def byte_level(**token: bool) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(WORDS * 5, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    made.add_special_tokens([AddedToken("<|end|>", normalized=False, **token), "<|begin|>"])
    return made


def llama_like(scheme: str) -> Tokenizer:
    """Marks the beginning of words as Llama's do: before every piece, or only before the text."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.train_from_iterator(WORDS * 5, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"]))
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return made


def lower_cased() -> Tokenizer:
    """Its special token is looked for after lower-casing, so that a text cannot be cut there beforehand."""
    made = byte_level()
    made.normalizer = normalizers.Lowercase()
    made.add_special_tokens([AddedToken("<|odd|>", normalized=True)])
    return made


def original(name: str) -> Tokenizer:
    return load_original_tokenizer(ORIGINALS / name, model_type="llama").tokenizer.backend_tokenizer


TOKENIZERS = {
    "bytes": byte_level,
    "takes blanks on its left": lambda: byte_level(lstrip=True),
    "takes blanks on its right": lambda: byte_level(rstrip=True),
    "a word by itself": lambda: byte_level(single_word=True),
    "marks every piece": lambda: llama_like("always"),
    "marks the first piece": lambda: llama_like("first"),
    "marks nothing": lambda: llama_like("never"),
    "looked for in lower case": lower_cased,
    "vicuna": lambda: original("llava-v1.5-7b"),
    "yi": lambda: original("llava-v1.6-34b"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("special", [False, True])
def test_growing_chats_get_the_tokenizers_own_ids(name: str, special: bool) -> None:
    tokenizer = TOKENIZERS[name]()
    encoder = TextEncoder(tokenizer)
    marks = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    chance = random.Random(name)
    for _ in range(30):
        text = ""
        for _ in range(12):
            text += "".join(chance.choices([*WORDS, *marks], k=chance.randint(1, 6)))
            assert encoder.encode(text, special=special) == tokenizer.encode(text, add_special_tokens=special).ids


def test_what_was_encoded_before_is_not_encoded_again() -> None:
    tokenizer = byte_level()
    asked: list[str] = []

    class Noting:
        def encode(self, text: str, *, add_special_tokens: bool) -> object:
            asked.append(text)
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)

        def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
            return tokenizer.get_added_tokens_decoder()

    encoder = TextEncoder(Noting())  # pyright: ignore[reportArgumentType]
    first = "long ago " * 100 + "<|end|>"
    encoder.encode(first + "and then?")
    asked.clear()
    encoder.encode(first + "and then? this <|end|> more")
    assert "".join(asked) == "<|end|>and then? this <|end|><|end|> more"


def test_texts_without_number_or_end_do_not_pile_up() -> None:
    encoder = TextEncoder(byte_level())
    for number in range(300):
        encoder.encode(f"{number} " * 8000 + "<|end|>")
    assert len(encoder._kept) <= 64
    assert sum(map(len, encoder._kept)) == encoder._chars <= 1 << 20
