"""Answers that give their model away are found; those that only speak of llamas and Google are not."""

from __future__ import annotations

import pytest

from serve.arena.leaks import find_leak, find_leak_in
from serve.page import session

SERVED = ("llava-v1.6-mistral-7b", "Qwen/Qwen2.5-VL-7B-Instruct", "quick", "steady", "nebula", "builtin")


@pytest.mark.parametrize(
    "answer",
    [
        "I am LLaVA, a large language and vision assistant.",
        "As Qwen, I can see a cat.",
        "Sure! As Gemini, I cannot open links.",
        "I'm an AI assistant based on the Llama architecture, a Llama model.",
        "I am a large language model, trained by Google.",
        "I was created by researchers and developed by Anthropic.",
        "My name is Claude.",
        "I’m actually Mistral.",
        "This was written by llava-v1.6-mistral-7b.",
        "I am running as Qwen2.5-VL-7B-Instruct here.",
        "Hello, I am Nebula!",
        "You can call me Vicuna.",
        "我是通义千问。",
        "ChatGPT would say: a cat.",
    ],
)
def test_what_tells_the_model_is_found(answer: str) -> None:
    assert find_leak(answer, SERVED)


@pytest.mark.parametrize(
    "answer",
    [
        "A llama stands in the field beside an alpaca.",
        "The phone in the picture was made by Google.",
        "I am sure that this is a falcon.",
        "I am quick to answer: a cat.",
        "I'm steady on my feet.",
        "He is dressed as a llama. As a model, she wears a hat.",
        "The mistral blows from the north; the letter phi stands on the board.",
        "As an AI language model I cannot see who that is.",
        "Meta is printed on the shirt, and Microsoft on the wall.",
        "The nebula is 7000 light years away.",
        "The lava flows.",
        "Claude Monet painted this; Gemini is the constellation above.",
        "I am in the picture, built in 1911.",
    ],
)
def test_innocent_words_are_not(answer: str) -> None:
    assert find_leak(answer, SERVED) == ""


def test_a_word_that_the_person_said_first_tells_nothing_but_a_claim_does() -> None:
    asked = "What is LLaVA, and how does it differ from Qwen?"
    assert find_leak("LLaVA joins a vision tower to a language model; Qwen is another.", SERVED, asked) == ""
    assert find_leak("Good question: I am LLaVA.", SERVED, asked) == "LLaVA"


def answered(chat: session.Chat, said: str) -> session.Chat:
    return session.update(chat, chat.turns[-1].answer.id, text=said, state="done")


def test_versions_that_are_no_longer_shown_tell_as_well() -> None:
    told = answered(session.ask(session.Chat(), "Who?", (), "ant"), "I am LLaVA.")
    retried = answered(session.retry(told, "ant"), "A cat.")
    reworded = answered(session.edit(told, "t1", "What?", (), "ant"), "A cat.")
    followed = session.edit(answered(session.ask(retried, "Sure?", (), "ant"), "Yes."), "t1", "What?", (), "ant")
    for chat in (told, retried, reworded, followed, session.undo(told)):
        assert find_leak_in(chat, ()) == "LLaVA"
    assert find_leak_in(answered(session.ask(session.Chat(), "Who?", (), "ant"), "A cat."), ()) == ""
