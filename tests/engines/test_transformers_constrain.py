"""Answers held to a schema or pattern: always in that form, and no concern of their neighbours."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import torch

from llava_core.checkpoints.load import load_checkpoint
from llava_core.config import EngineLimits, GrammarLimits, ImageLimits
from llava_core.engines.base import Engine
from llava_core.engines.load import EngineOptions, load_engine
from llava_core.engines.transformers.constrain import Grammars
from llava_core.engines.transformers.sampler import Draw, Sampler
from llava_core.errors import BadRequest, MissingDependency, Overloaded
from llava_core.types import Grammar, Sampling, assistant, user
from serve.worker_app import create_app
from tests.engines.contenders import (
    ask,
    assert_usable,
    picture,
    read,
    request,
    start,
    texts,
    tiny_folder,
)
from tests.serve.serving import serving

pytest.importorskip("xgrammar")

NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 10, "maximum": 99},
        "inner": {
            "type": "object",
            "properties": {"grün": {"const": "ü 🙂 東"}, "on": {"type": "boolean"}},
            "required": ["grün", "on"],
        },
    },
    "required": ["title", "size", "inner"],
}
ENUM: dict[str, Any] = {"enum": ["cat", "café", None, 7]}
ARRAY: dict[str, Any] = {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 4}
DATE = r"[0-9]{4}-(0[1-9]|1[0-2]), (été|hiver) 🙂"


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def folder(request: pytest.FixtureRequest) -> str:
    return str(tiny_folder(request.param))


@pytest.fixture
async def engine(folder: str) -> AsyncIterator[Engine]:
    options = EngineOptions(
        model_path=folder, device="cpu", dtype="float32", limits=EngineLimits(), images=ImageLimits()
    )
    engine = load_engine("transformers", options)
    yield engine
    await engine.aclose()


def schema(value: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_complete_answers_have_the_form_asked_for(engine: Engine, temperature: float) -> None:
    async def told(grammar: Grammar) -> str:
        answer = await ask(
            engine, user(picture(), "Tell"), grammar=grammar, max_tokens=900, temperature=temperature, seed=5
        )
        assert answer.finish == "stop"
        return answer.text

    nested, enum, array, date = await asyncio.gather(
        told(schema(NESTED)), told(schema(ENUM)), told(schema(ARRAY)), told(Grammar("regex", DATE))
    )
    value = json.loads(nested)
    assert set(value) == {"title", "size", "inner"}
    assert len(value["title"]) <= 12
    assert 10 <= value["size"] <= 99
    assert value["inner"]["grün"] == "ü 🙂 東"
    assert json.loads(enum) in ENUM["enum"]
    assert 2 <= len(json.loads(array)) <= 4
    assert set(json.loads(array)) <= {"a", "b"}
    assert re.fullmatch(DATE, date)


async def test_neighbours_in_a_batch_say_what_they_say_alone(engine: Engine) -> None:
    free = [
        request("Hello", max_tokens=40, ignore_eos=True),
        request(user(picture("blue"), "And this?"), max_tokens=40, temperature=1.0, seed=3),
    ]
    held = [request("Hello", max_tokens=300, grammar=schema(NESTED)), request("Date", grammar=Grammar("regex", DATE))]
    alone = [await read(engine, one) for one in (*free, *held)]
    together = await asyncio.gather(*(read(engine, one) for one in (*free, *held)))
    assert texts(together) == texts(alone)


async def test_a_cut_answer_ends_with_length_and_a_stop_string_still_stops(engine: Engine) -> None:
    grammar = Grammar("regex", r"abc-abc-abc-[x]{400}")
    cut = await ask(engine, "Go", grammar=grammar, max_tokens=20)
    assert cut.finish == "length"
    assert cut.usage.completion_tokens == 20
    assert re.match(r"abc-abc-abc", cut.text)
    stopped = await ask(engine, "Go", grammar=grammar, max_tokens=400, stop=("-abc-[", "c-abc"))
    assert (stopped.text, stopped.finish) == ("ab", "stop")


async def test_an_answer_that_is_complete_ends_whatever_else_is_wished(engine: Engine) -> None:
    for wish in ({"min_tokens": 20}, {"logit_bias": {5: 100.0}}, {"repetition_penalty": 5.0}):
        answer = await ask(engine, "Go", grammar=Grammar("regex", "yes|no"), **wish)
        assert answer.text in ("yes", "no")
        assert answer.finish == "stop"


async def test_a_begun_answer_goes_on_within_its_form(engine: Engine) -> None:
    begun = '["a", "b'
    rest = await ask(
        engine, "Go", assistant(begun), continue_final=True, grammar=schema(ARRAY), max_tokens=300, temperature=1.0
    )
    assert rest.finish == "stop"
    assert json.loads(begun + rest.text)[:2] == ["a", "b"]
    with pytest.raises(BadRequest, match="does not have the form"):
        await ask(engine, "Go", assistant("Well, "), continue_final=True, grammar=schema(ARRAY))


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("regex", "(a"), "parenthesis is not closed"),
        (Grammar("regex", "(?=a)b"), "Lookahead is not supported"),
        (Grammar("regex", "a{2000000}"), "at most 10000"),
        (schema({"type": "frog"}), 'Unsupported type "frog"'),
        (schema({"$ref": "https://schemas.example/cat"}), "only references within the schema"),
        (schema({"$ref": "#/$defs/cat"}), "cannot be used"),
        (schema({"type": "string", "maxLength": 10**9}), "at most 10000"),
        (schema({"properties": {"a": {"pattern": "[a-z]{99999}"}}}), "at most 10000"),
    ],
)
async def test_what_cannot_be_compiled_is_refused_with_the_reason(engine: Engine, grammar: Grammar, words: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(words)) as caught:
        await anext(start(engine, "Go", grammar=grammar))
    assert caught.value.param
    assert "/project/" not in caught.value.message
    await assert_usable(engine)


async def test_a_form_the_vocabulary_cannot_write_fails_alone_and_leaves_the_neighbours_as_they_were(
    grammars: Grammars,
) -> None:
    compiled = grammars._compile(Grammar("regex", "abq"))
    grammars._keep(Grammar("regex", "abq"), compiled)
    held = Draw(
        Sampling(temperature=0.0), frozenset({2}), constraint=await grammars.constraint(Grammar("regex", "abq"))
    )
    free = Draw(Sampling(temperature=0.0, logit_bias={7: 3.0}), frozenset({2}))
    size = grammars._vocabulary
    # Every token with which the form can begin is taken away.
    letters = [token for word, token in grammars._tokenizer.get_vocab().items() if word.startswith("a")]
    starved = Sampler(letters, torch.device("cpu"))
    logits = torch.zeros(2, size)
    with pytest.raises(BadRequest, match="no token with which"):
        starved.draw(logits, [free, held])
    assert float(logits[0, 7]) == 0.0, "a neighbour's bias would count twice when it is drawn again"
    assert (free.produced, held.produced) == (0, 0)
    assert starved.draw(logits[:1], [free])[0].token == 7


async def test_any_json_object_and_a_schema_work_through_the_openai_client(engine: Engine) -> None:
    async with serving(create_app(engine)) as url:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        ask: Any = client.chat.completions.create
        common: dict[str, Any] = {"model": engine.info.name, "messages": [{"role": "user", "content": "Go"}], "seed": 1}
        held = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": NESTED}}
        answer = await ask(**common, response_format=held, max_tokens=900)
        assert set(json.loads(answer.choices[0].message.content)) == {"title", "size", "inner"}
        cut = await ask(**common, response_format={"type": "json_object"}, max_tokens=5)
        assert cut.choices[0].message.content.startswith("{")
        pattern = {"structured_outputs": {"regex": DATE}}
        stream = await ask(**common, extra_body=pattern, stream=True)
        text = "".join([event.choices[0].delta.content or "" async for event in stream if event.choices])
        assert re.fullmatch(DATE, text)
        with pytest.raises(openai.BadRequestError, match="parenthesis"):
            await ask(**common, extra_body={"structured_outputs": {"regex": "(a"}})
        several = await ask(**common, response_format=held, n=3, temperature=1.0, max_tokens=900)
        assert [choice.index for choice in several.choices] == [0, 1, 2]
        assert all(json.loads(choice.message.content) for choice in several.choices)
        await client.close()


@pytest.fixture
async def grammars() -> AsyncIterator[Grammars]:
    loaded = load_checkpoint(str(tiny_folder("llava")), device="cpu", dtype="float32")
    size = loaded.model.config.get_text_config().vocab_size
    made = Grammars(loaded.tokenizer, size, loaded.facts.eos_ids, limits=GrammarLimits(compile_s=0.0, cache_bytes=1))
    yield made
    made.close()


async def test_compiling_that_takes_too_long_is_refused_and_those_behind_it_may_return(grammars: Grammars) -> None:
    import threading

    go_on = threading.Event()
    first = grammars._pool.submit(go_on.wait, 10)
    with pytest.raises(Overloaded) as caught:
        await grammars.constraint(Grammar("regex", "a"))
    assert caught.value.retry_after is not None
    go_on.set()
    await asyncio.wrap_future(first)


async def test_without_the_library_the_message_says_how_to_get_it(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "xgrammar", None)
    with pytest.raises(MissingDependency, match=r"pip install .*xgrammar=="):
        grammars._compile(Grammar("regex", "a"))


async def test_compiled_grammars_are_kept_within_bounds(grammars: Grammars) -> None:
    one, other = (Grammar("regex", letter) for letter in "ab")
    for grammar in (one, other):
        grammars._keep(grammar, grammars._compile(grammar))
    assert list(grammars._kept) == [other]
    assert await grammars.constraint(other)
