"""Both attention backends give what plain causal attention gives, however requests are packed and cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llava_core.engines.transformers.arena import Room
from llava_core.engines.transformers.attention import AttentionBackend, KVShape, Region, Span
from llava_core.engines.transformers.attention_cpu import CpuAttention, fastest_dtype
from llava_core.engines.transformers.attention_padded import PaddedAttention

LAYERS, DIM, LENGTHS = 2, 8, (5, 31, 12)
Make = Callable[[KVShape, int], AttentionBackend]


def on_cpu(shape: KVShape, tokens: int) -> AttentionBackend:
    per_token = 2 * shape.layers * shape.kv_heads * shape.dim * 4
    return CpuAttention(shape, kv_bytes=tokens * per_token, context_length=64)


def padded(shape: KVShape, tokens: int) -> AttentionBackend:
    per_token = 2 * shape.layers * shape.kv_heads * shape.dim * 4
    return PaddedAttention(shape, kv_bytes=tokens * per_token, dtype=torch.float32, device=torch.device("cpu"))


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """(heads, n, dim) over (kv heads, n, dim) -> (n, heads, dim), by the book."""
    groups = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    scores = q @ k.transpose(1, 2) * DIM**-0.5
    at = torch.arange(q.shape[1])
    seen = at[None] <= at[:, None]
    if window is not None:
        seen &= at[None] > at[:, None] - window
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("make", [on_cpu, padded])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 7, 1])
def test_packed_chunks_and_single_tokens_attend_as_whole_rows_do(make: Make, kv_heads: int, window: int | None) -> None:
    torch.manual_seed(0)
    shape = KVShape(LAYERS, 4, kv_heads, DIM)
    backend = make(shape, 100)
    regions = [backend.allocate(length) for length in LENGTHS]
    rows = [
        [(torch.randn(4, n, DIM), torch.randn(kv_heads, n, DIM), torch.randn(kv_heads, n, DIM)) for n in LENGTHS]
        for _ in range(LAYERS)
    ]
    got = [[torch.zeros(n, 4, DIM) for n in LENGTHS] for _ in range(LAYERS)]
    done = [0, 0, 0]
    # Each round takes another number of tokens of each request: whole prompts, chunks, single tokens.
    for counts in ((4, 10, 0), (1, 1, 12), (0, 17, 0), (0, 1, 0), (0, 1, 0), (0, 1, 0)):
        spans: list[Span] = []
        start = 0
        for index, count in enumerate(counts):
            if count:
                region = regions[index]
                assert region is not None
                spans.append(Span(region, start, count, done[index]))
                start += count
        step = backend.begin(spans)
        parts = [(i, slice(done[i], done[i] + c)) for i, c in enumerate(counts) if c]
        for layer in range(LAYERS):
            q, k, v = (
                torch.cat([rows[layer][i][which][:, cut] for i, cut in parts], dim=1)[None] for which in range(3)
            )
            out = step.attend(layer, q, k, v, DIM**-0.5, window)[0]
            for i, cut in parts:
                got[layer][i][cut] = out[: cut.stop - cut.start]
                out = out[cut.stop - cut.start :]
        done = [before + count for before, count in zip(done, counts, strict=True)]
    assert done == list(LENGTHS)
    for layer in range(LAYERS):
        for index in range(len(LENGTHS)):
            torch.testing.assert_close(got[layer][index], dense(*rows[layer][index], window), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [on_cpu, padded])
def test_a_copied_region_holds_the_same_keys(make: Make) -> None:
    backend = make(KVShape(1, 2, 2, DIM), 64)
    source, target = backend.allocate(8), backend.allocate(12)
    assert source is not None
    assert target is not None
    k, v = torch.randn(1, 2, 8, DIM), torch.randn(1, 2, 8, DIM)
    backend.begin([Span(source, 0, 8, 0)]).attend(0, torch.zeros(1, 2, 8, DIM), k, v, 1.0, None)
    backend.copy(source, target, 8)
    backend.release(source)
    q, new = torch.randn(1, 2, 1, DIM), torch.randn(1, 2, 1, DIM)
    out = backend.begin([Span(target, 0, 1, 8)]).attend(0, q, new, new, DIM**-0.5, None)
    keys, values = torch.cat((k, new), 2), torch.cat((v, new), 2)
    expected = torch.nn.functional.scaled_dot_product_attention(q, keys, values, scale=DIM**-0.5)
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_a_region_grows_in_place_where_room_follows_it() -> None:
    backend = padded(KVShape(1, 1, 1, DIM), 30)
    first, second = backend.allocate(10), backend.allocate(10)
    assert first is not None
    assert second is not None
    assert not backend.resize(first, 11)
    assert backend.resize(second, 20)
    assert not backend.resize(second, 21)
    backend.release(second)
    assert backend.resize(first, 30)
    assert backend.allocate(1) is None


def test_spare_address_space_on_a_cpu_is_no_memory_until_it_is_written() -> None:
    backend = CpuAttention(KVShape(8, 8, 8, 128), kv_bytes=1 << 30, context_length=100_000)
    before = _resident()
    regions: list[Region | None] = [backend.allocate(2048) for _ in range(8)]
    assert all(region is not None for region in regions)
    assert _resident() - before < 50 << 20


def test_room_joins_pieces_that_come_back_in_any_order() -> None:
    room = Room(10)
    starts = [room.take(2) for _ in range(5)]
    assert starts == [0, 2, 4, 6, 8]
    assert room.take(1) is None
    for start in (2, 6, 4, 0, 8):
        room.give(start, start + 2)
    assert room.free == 10
    assert room.take(10) == 0


def test_room_fills_the_smallest_piece_that_fits() -> None:
    room = Room(20)
    for _ in range(4):
        room.take(5)
    room.give(0, 5)
    room.give(10, 13)
    assert room.take(3) == 10
    assert room.take(5) == 0


def _resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_keys_kept_in_half_precision_give_the_same_within_its_rounding(heads: tuple[int, int]) -> None:
    shape = KVShape(LAYERS, heads[0], heads[1], DIM)
    backend = CpuAttention(shape, kv_bytes=1 << 20, context_length=64, dtype=torch.bfloat16)
    assert backend.bytes_per_token == 2 * LAYERS * heads[1] * DIM * 2
    torch.manual_seed(0)
    q, k, v = (torch.randn(count, 20, DIM).bfloat16() for count in (heads[0], heads[1], heads[1]))
    region = backend.allocate(20)
    assert region is not None
    given: list[torch.Tensor] = []
    for start, end in ((0, 11), (11, 19), (19, 20)):
        step = backend.begin([Span(region, 0, end - start, start)])
        part = slice(start, end)
        given.append(step.attend(1, q[None, :, part], k[None, :, part], v[None, :, part], DIM**-0.5, None)[0])
    assert given[0].dtype == torch.bfloat16
    torch.testing.assert_close(
        torch.cat(given).float(), dense(q.float(), k.float(), v.float(), None), atol=2e-2, rtol=0
    )


def test_half_precision_is_kept_only_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert fastest_dtype(torch.bfloat16) == torch.bfloat16
    assert fastest_dtype(torch.float32) == fastest_dtype(torch.float16) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert fastest_dtype(torch.bfloat16) == torch.float32
