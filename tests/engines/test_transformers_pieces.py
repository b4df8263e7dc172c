"""A picture is encoded in pieces that are no longer than a step, and comes out as if encoded in one go."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import torch
from exactness import PICTURE_FAMILIES, greedy, load, picture, reference, token_ids
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE

from llava_core.checkpoints.loaded import Checkpoint
from llava_core.config import BatchLimits
from llava_core.engines.transformers.detokenize import Detokenizer
from llava_core.engines.transformers.encode import Encoder
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.engines.transformers.features import FeatureCache
from llava_core.engines.transformers.pieces import Task, pause_between_operations, token_work
from llava_core.engines.transformers.sampler import Draw
from llava_core.engines.transformers.sequence import Sequence
from llava_core.types import ImagePart, Request, Sampling, user

MIB = 1024 * 1024


def prompting(loaded: Checkpoint, *seeds: int, owner: str = "") -> Sequence:
    """A request with a picture for each seed, as the engine makes it."""
    images = [Image.frombytes("RGB", (120, 60), random.Random(seed).randbytes(120 * 60 * 3)) for seed in seeds]
    prompt = loaded.prompt((user(*[ImagePart("data:,")] * len(seeds), "Hi"),), images)
    sampling = Sampling(max_tokens=1)
    request = Request("m", (user("x"),), sampling)
    return Sequence(request, prompt, 1, Draw(sampling, frozenset()), Detokenizer(Tokenizer(BPE())), owner=owner)


def fail(sequence: Sequence, error: Exception) -> None:
    raise error


@pytest.mark.parametrize("family", PICTURE_FAMILIES)
@torch.inference_mode()
def test_features_in_pieces_equal_those_in_one_go_bit_by_bit(family: str) -> None:
    loaded = load(family)
    images = [placed.image for placed in prompting(loaded, 1).prompt.images]
    whole = loaded.encode(images)
    pause_between_operations(loaded.model)
    task = Task(lambda: loaded.encode(images))
    pieces = 1
    while not task.advance(1.0):
        pieces += 1
        # What the language model does in between must not disturb the rest.
        torch.manual_seed(pieces)
    assert pieces > 10, "each operation is a piece of its own"
    for rows, wanted in zip(task.result, whole, strict=True):
        assert torch.equal(rows, wanted)
    assert all(torch.equal(rows, wanted) for rows, wanted in zip(loaded.encode(images), whole, strict=True))


@torch.inference_mode()
def test_a_piece_is_no_longer_than_allowed_unless_it_is_one_operation() -> None:
    loaded = load("llava_next")
    pause_between_operations(loaded.model)
    images = [placed.image for placed in prompting(loaded, 1).prompt.images]

    def spent(allowed: float) -> list[float]:
        task, found = Task(lambda: loaded.encode(images)), []
        done = False
        while not done:
            done = task.advance(allowed)
            found.append(task.spent)
        return found

    single = spent(0.0)
    largest = max(single)
    for allowed in (largest, 3 * largest):
        cut = spent(allowed)
        assert max(cut) <= allowed
        assert sum(cut) == pytest.approx(sum(single))
        assert len(cut) < len(single)


async def test_running_answers_wait_no_longer_for_a_picture_than_for_text(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = 16
    engine = TransformersEngine(load("llava_next"), batch=BatchLimits(step_tokens=budget, kv_bytes=64 * MIB))
    try:
        parts: Any = engine._loop._parts
        turns: list[tuple[int, int]] = []
        advance, run, encoded = parts.encoder.advance, parts.step.run, [0]

        def counted_advance(*args: Any, **kwargs: Any) -> int:
            encoded[0] = advance(*args, **kwargs)
            return encoded[0]

        def counted_run(works: Any) -> Any:
            if any(work.sequence.decoding for work in works):
                turns.append((encoded[0], sum(work.count for work in works)))
            encoded[0] = 0
            return run(works)

        monkeypatch.setattr(parts.encoder, "advance", counted_advance)
        monkeypatch.setattr(parts.step, "run", counted_run)
        running = greedy(user("tell me a long story"), tokens=400)
        stream = engine.generate(running)
        ids = [logprob.token_id for logprob in (await anext(stream)).logprobs]
        newcomer = greedy(user(picture(7, 120, 60), "and this?"), tokens=8)
        other = asyncio.create_task(token_ids(engine, newcomer))
        ids += [logprob.token_id async for chunk in stream for logprob in chunk.logprobs]
        prompt = engine._loaded.prompt(running.messages, [])
        assert ids == reference("llava_next", prompt, 400)
        await other
        during = [work for work, _ in turns if work]
        assert len(during) >= 3, "the picture was encoded in several pieces beside the running answer"
        assert max(work + rows for work, rows in turns) <= budget + 1
    finally:
        await engine.aclose()


@torch.inference_mode()
def test_an_encoding_that_nobody_waits_for_is_left() -> None:
    loaded = load("llava")
    pause_between_operations(loaded.model)
    cache = FeatureCache(MIB)
    encoder = Encoder(loaded, cache, batch=2)
    alone = prompting(loaded, 1)
    key = alone.prompt.images[0].image.key
    encoder.advance([alone], [], tokens=1, hurry=True, failed=fail)
    assert encoder.busy
    encoder.advance([], [prompting(loaded, 2)], tokens=1, hurry=True, failed=fail)
    assert not encoder.busy
    encoder.advance([alone], [], tokens=1, hurry=True, failed=fail)
    second = prompting(loaded, 1)
    while encoder.busy:
        encoder.advance([], [second], tokens=1, hurry=True, failed=fail)
    assert cache.get(("", key)) is not None, "who waits for the same picture keeps its encoding going"
    encoder.advance([second], [], tokens=1, hurry=True, failed=fail)
    assert key in second.features
    encoder.advance([prompting(loaded, 3)], [], tokens=1, hurry=True, failed=fail)
    encoder.stop()
    assert not encoder.busy


@torch.inference_mode()
def test_pictures_go_together_unless_somebody_is_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llava")
    pause_between_operations(loaded.model)
    encode, sizes = loaded.encode, list[int]()
    monkeypatch.setattr(loaded, "encode", lambda images: sizes.append(len(images)) or encode(images))
    for hurry, expected in ((False, [3, 1]), (True, [1, 1, 1, 1])):
        encoder = Encoder(loaded, FeatureCache(0), batch=3)
        asking = [prompting(loaded, 10 + seed) for seed in range(4)]
        sizes.clear()
        while not all(sequence.features for sequence in asking):
            encoder.advance(asking, [], tokens=100, hurry=hurry, failed=fail)
        assert sizes == expected


@pytest.mark.parametrize("share", [False, True])
@torch.inference_mode()
def test_a_picture_that_another_owner_sent_is_encoded_again_unless_owners_share(
    monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    loaded = load("llava")
    pause_between_operations(loaded.model)
    encode, count = loaded.encode, list[int]()
    monkeypatch.setattr(loaded, "encode", lambda images: count.append(len(images)) or encode(images))
    encoder = Encoder(loaded, FeatureCache(MIB), batch=3, share_between_owners=share)
    done: dict[str, Sequence] = {}
    for number, owner in enumerate(("ann", "ann", "bob", "bob")):
        sequence = prompting(loaded, 1, owner=owner)
        while not sequence.features:
            encoder.advance([sequence], [], tokens=100, hurry=False, failed=fail)
        assert sum(count) == (1 if share or number < 2 else 2)
        done[owner] = sequence
    (ann,), (bob,) = done["ann"].features.values(), done["bob"].features.values()
    assert torch.equal(ann, bob)
    # Side by side as well: nobody notices that somebody else is waiting for the same picture.
    count.clear()
    both = [prompting(loaded, 2, owner=owner) for owner in ("ann", "bob")]
    while not all(sequence.features for sequence in both):
        encoder.advance(both, [], tokens=100, hurry=False, failed=fail)
    assert sum(count) == (1 if share else 2)


@torch.inference_mode()
def test_a_picture_that_fails_in_a_batch_ends_only_its_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llava")
    pause_between_operations(loaded.model)
    good, bad, fine = (prompting(loaded, seed) for seed in (1, 2, 3))
    broken = bad.prompt.images[0].image.key
    encode = loaded.encode

    def fragile(images: Any) -> list[torch.Tensor]:
        features = encode(images)
        if any(image.key == broken for image in images):
            raise ValueError("no such picture")
        return features

    monkeypatch.setattr(loaded, "encode", fragile)
    encoder = Encoder(loaded, FeatureCache(MIB), batch=3)
    running, ended = [good, bad, fine], list[Sequence]()

    def failed(sequence: Sequence, error: Exception) -> None:
        running.remove(sequence)
        ended.append(sequence)

    while not all(sequence.features for sequence in running):
        encoder.advance(running, [], tokens=1000, hurry=False, failed=failed)
    assert (running, ended) == ([good, fine], [bad])


def test_the_work_of_a_token_is_that_of_the_language_models_layers() -> None:
    loaded = load("llava")
    text = loaded.model.config.get_text_config()
    heads = 2 * (text.num_attention_heads + text.num_key_value_heads) * text.head_dim
    layer = text.hidden_size * (heads + 3 * text.intermediate_size)
    assert token_work(loaded.model) == text.num_hidden_layers * layer
