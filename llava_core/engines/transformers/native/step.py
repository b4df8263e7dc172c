"""Packed passes through the kernel: what is told to it of each row, and the memory it works in."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Seq
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from llava_core.engines.transformers.attention_cpu import CpuRegion
from llava_core.engines.transformers.native.scratch import Scratch
from llava_core.engines.transformers.native.turns import Turns
from llava_core.engines.transformers.native.weights import Packed
from llava_core.engines.transformers.step import Work, placed_rows
from llava_core.engines.transformers.watch import WatchedRows, watched_rows

_ALONE = 4
"""Chunks of so many rows are attended to row by row, like single ones."""
_Long, _Pointer = ctypes.c_int64, ctypes.c_void_p


class CStep(ctypes.Structure):
    """`Step` of decoder.c."""

    _fields_ = (
        ("rows", _Long),
        *((name, _Pointer) for name in ("x", "cos", "sin", "store", "capacity", "place", "singles")),
        ("single_count", _Long),
        ("chunks", _Pointer),
        ("chunk_count", _Long),
        *((name, _Pointer) for name in ("normed", "qkv", "attended", "gated", "packed", "scores")),
        ("longest", _Long),
        ("watched", _Pointer),
        ("watched_count", _Long),
        ("queries", _Pointer),
    )


class NativeStep:
    """Runs packed passes of a decoder whose weights the kernel has taken; serves in the place of `Step`."""

    def __init__(self, model: PreTrainedModel, library: ctypes.CDLL, packed: Packed) -> None:
        self._library = library
        self._packed = packed
        decoder: Any = model.get_decoder()
        self._embedding: torch.Tensor = cast(Any, model.get_input_embeddings()).weight
        self._turns = Turns(decoder.rotary_emb)
        self._scratch = Scratch()

    def run(self, works: Seq[Work]) -> torch.Tensor:
        """Logits (rows, vocabulary) in float32, as `Step.run` orders them."""
        model = self._packed.model
        ids: list[int] = []
        stores: list[int] = []
        capacities: list[int] = []
        places: list[int] = []
        singles: list[int] = []
        chunks: list[int] = []
        packed = 0
        keep: list[int] = []
        for work in works:
            sequence, start, rows = work.sequence, len(ids), work.rows
            region = cast(CpuRegion, sequence.region)
            ids += sequence.ids[sequence.computed : sequence.computed + work.count]
            ids += work.guessed
            stores += [region.address] * rows
            capacities += [region.capacity] * rows
            places += range(sequence.computed, sequence.computed + rows)
            if rows <= _ALONE:
                singles += range(start, start + rows)
            else:
                chunks += (start, rows, packed)
                packed += 2 * model.kv_heads * self._library.padded_tokens(sequence.computed + rows) * model.dim
            if work.ends:
                keep += range(len(ids) - 1 - len(work.guessed), len(ids))
        total = len(ids)
        # One tensor for all that is counted: each small one costs as much as a few thousand weights.
        numbers = torch.tensor([*stores, *capacities, *places, *singles, *chunks, *keep, *ids])
        x = self._embedding.index_select(0, numbers[-total:]).float()
        for first, features in placed_rows(works):
            x[first : first + len(features)] = features.float()
        address = numbers.data_ptr()
        longest = max(places) + 1
        # These decoders count rows one by one, pictures included.
        cos, sin = self._turns.at(numbers[2 * total : 3 * total], longest)
        heads, width = model.heads * model.dim, self._library.padded_width

        noted = watched_rows(works)
        watched = torch.tensor([row for each in noted for row in each.packed], dtype=torch.long)
        queries = torch.empty(model.layers if noted else 0, len(watched), heads, dtype=torch.bfloat16)

        def halves(name: str, count: int) -> int:
            return self._scratch.room(name, 2 * count)

        step = CStep(
            rows=total,
            x=x.data_ptr(),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            store=address,
            capacity=address + 8 * total,
            place=address + 16 * total,
            singles=address + 24 * total,
            single_count=len(singles),
            chunks=address + 24 * total + 8 * len(singles),
            chunk_count=len(chunks) // 3,
            normed=halves("normed", (total + 32) * width(model.hidden)),
            qkv=halves("qkv", (total + 32) * (heads + 2 * model.kv_heads * model.dim)),
            attended=halves("attended", (total + 32) * width(heads)),
            gated=halves("gated", (total + 32) * width(model.inner)),
            packed=halves("packed", packed),
            scores=halves("scores", 2 * torch.get_num_threads() * self._library.scores_per_thread(longest)),
            longest=longest,
            watched=watched.data_ptr(),
            watched_count=len(watched),
            queries=queries.data_ptr(),
        )
        whole, this = ctypes.byref(model), ctypes.byref(step)
        self._library.advance(whole, this)
        self._note(noted, queries)
        logits = torch.empty(len(keep), model.vocabulary)
        if keep:
            kept = _Pointer(address + 24 * total + 8 * (len(singles) + len(chunks)))
            self._library.score(whole, this, kept, _Long(len(keep)), _Pointer(logits.data_ptr()))
        return logits

    def _note(self, noted: Seq[WatchedRows], queries: torch.Tensor) -> None:
        """`queries` (layers, rows, heads * dim): where these rows looked, told from the keys that are kept."""
        model, at = self._packed.model, 0
        for each in noted:
            region, watch = cast(CpuRegion, each.sequence.region), each.sequence.watch
            assert watch is not None
            own = queries[:, at : at + len(each.places)].unflatten(2, (model.heads, model.dim)).transpose(1, 2)
            at += len(each.places)
            for layer, query in enumerate(own):
                keys = region.store[layer, 0, :, : each.places[-1] + 1]
                watch.note(layer, each.places, query, keys, model.scale, model.window or None)
