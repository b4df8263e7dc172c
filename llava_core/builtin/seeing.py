"""Teaches the tower's finder and its names on drawn pictures, before any language model looks through it.

python -m llava_core.builtin rebuild runs it as its first step.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from llava_core.builtin.anchors import class_names
from llava_core.builtin.columns import COLOURS, KINDS, LETTERS, SHAPES, SIZES, SMALL_PHOTOS
from llava_core.builtin.data.drawing import Drawn
from llava_core.builtin.data.sources import Sources
from llava_core.builtin.tower import Finder, Naming, SeeingTower

MIX = {
    "shapes": 0.25, "photo shapes": 0.06, "text": 0.24, "photo text": 0.05, "chart": 0.07,
    "icon": 0.04, "photo icon": 0.04, "icons": 0.08, "photo icons": 0.05, "photo": 0.1, "real photo": 0.02,
}  # fmt: skip
"""How much of each kind of picture there is."""
NAMED = {
    "icon": 0.3, "photo icon": 0.25, "icons": 0.1, "photo icons": 0.1, "photo": 0.32, "real photo": 0.05,
    "shapes": 0.04, "text": 0.03, "photo text": 0.02, "chart": 0.03, "photo shapes": 0.02,
}  # fmt: skip
"""The same for learning names, where icons and photographs matter."""
_BATCH, _SHARD = 16, 128
Say = Callable[[str], None]


@dataclass(frozen=True)
class Truth:
    """What the finder should say about a picture, as numbers."""

    things: list[tuple[float, float, int, int, int, int, int]]
    """x, y, colour, shape, size, value, name; -1 where there is none."""
    letters: list[tuple[float, float, int]]
    kind: int
    name: int
    small_photo: int


def truth_of(drawn: Drawn, names: dict[str, int]) -> Truth:
    def index(words: Sequence[str], word: str) -> int:
        return words.index(word) if word in words else -1

    things = [
        (
            thing.x, thing.y, index(COLOURS, thing.colour), index(SHAPES, thing.shape), index(SIZES, thing.size),
            -1 if thing.value is None else thing.value, names.get(thing.name, -1),
        )
        for thing in drawn.things
    ]  # fmt: skip
    letters = [(letter.x, letter.y, index(LETTERS, letter.letter)) for letter in drawn.letters]
    is_photo = drawn.kind == "small photo"
    name = -1 if is_photo else names.get(drawn.name, -1)
    return Truth(things, letters, KINDS.index(drawn.kind), name, index(SMALL_PHOTOS, drawn.name) if is_photo else -1)


def pixels_of(images: Sequence[Image.Image], side: int) -> torch.Tensor:
    """(pictures, 3, side, side), as the tower wants them."""
    squares = [
        np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
        for image in images
    ]
    return (torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous() - 127) / 128


def encode(
    tower: SeeingTower, sources: Sources, folder: Path, kinds: dict[str, float], many: int, names: list[str], seed: int,
    say: Say,
) -> None:  # fmt: skip
    """Draw pictures, run the trunk over them and keep the features that names are learned from, in shards."""
    folder.mkdir(parents=True, exist_ok=True)
    number = {name: index for index, name in enumerate(names)}
    started = time.monotonic()
    for first in range(0, many, _SHARD):
        path = folder / f"{seed}-{first:06d}.pt"
        if path.exists():
            continue
        dice = random.Random(f"{seed}/{first}")
        drawn = [sources.draw(_pick(kinds, dice), dice) for _ in range(min(_SHARD, many - first))]
        rows: list[tuple[int, int, int]] = []
        features: list[torch.Tensor] = []
        for at in range(0, len(drawn), _BATCH):
            some = drawn[at : at + _BATCH]
            last = last_features(tower, some)
            near = F.avg_pool2d(F.pad(last, (1, 1, 1, 1), mode="replicate"), 3, 1)
            side = near.shape[-1]
            for index, truth in enumerate(truth_of(one, number) for one in some):
                features.append(last[index].mean((1, 2)))
                rows.append((truth.name, truth.small_photo, truth.kind))
                for x, y, *_, name in truth.things:
                    if name >= 0:
                        features.append(near[index, :, int(y * side), int(x * side)])
                        rows.append((name, -1, -1))
        torch.save({"features": torch.stack(features).half(), "rows": torch.tensor(rows)}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)
        say(f"{first + len(drawn)} of {many} pictures encoded, {time.monotonic() - started:.0f} s")


def last_features(tower: SeeingTower, drawn: Sequence[Drawn]) -> torch.Tensor:
    pixels = pixels_of([one.image for one in drawn], tower.config.image_size)
    with torch.inference_mode():
        return tower.features(pixels.contiguous(memory_format=torch.channels_last))


def classify(tower: SeeingTower, images: Sequence[Image.Image]) -> list[tuple[str, float]]:
    """The likeliest ImageNet class of each picture, and how likely it is."""
    with torch.inference_mode():
        pixels = pixels_of(images, tower.config.image_size).contiguous(memory_format=torch.channels_last)
        scores = tower.classes(tower.features(pixels).mean((2, 3), keepdim=True)).flatten(1).softmax(1)
    names = class_names()
    return [(names[index], chance) for chance, index in zip(*(part.tolist() for part in scores.max(1)), strict=True)]


def train_finder(
    finder: Finder, sources: Sources, *, pictures: int, say: Say, state: Path | None = None, rate: float = 1.5e-3,
    side: int = 288, batch: int = 16, seed: int = 11, seconds: float = math.inf,
) -> bool:  # fmt: skip
    """Learn to find things and letters, each picture drawn anew; whether that is done or `seconds` were over before.

    Goes on from `state` where that was left.
    """
    optimizer = torch.optim.AdamW(finder.parameters(), lr=rate, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    total, step, started, worked = pictures // batch, 0, time.monotonic(), time.process_time()
    running: dict[str, float] = {}
    if state and state.exists():
        kept = torch.load(state, weights_only=True)
        finder.load_state_dict(kept["finder"])
        optimizer.load_state_dict(kept["optimizer"])
        step = kept["step"]
    cast(Any, finder.train()).to(memory_format=torch.channels_last)
    while step < total and time.process_time() - worked < seconds:
        dice = random.Random(f"{seed}/{step}")
        drawn = [sources.draw(_pick(MIX, dice), dice) for _ in range(batch)]
        truths = [vars(truth_of(one, {})) for one in drawn]
        pixels = pixels_of([one.image for one in drawn], side).contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * max(0.5 * (1 + math.cos(math.pi * step / total)), 0.01)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = finder(pixels)
        losses = finder_losses({key: value.float() for key, value in found.items()}, truths)
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(finder.parameters(), 3.0)
        optimizer.step()
        for key, value in losses.items():
            running[key] = 0.98 * running.get(key, value.item()) + 0.02 * value.item()
        step += 1
        if step % 50 == 0 or step == total or time.process_time() - worked >= seconds:
            words = " ".join(f"{key} {value:.3f}" for key, value in running.items())
            say(f"finder {step}/{total} {time.monotonic() - started:.0f} s: {words}")
            if state:
                kept = {"finder": finder.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(kept, state.with_suffix(".tmp"))
                state.with_suffix(".tmp").rename(state)
    finder.eval()
    return step >= total


def finder_losses(found: dict[str, torch.Tensor], truths: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Where are centres (focal, softened around each), and what is there (cross entropy at each and beside it)."""
    losses: dict[str, torch.Tensor] = {}
    objects, letters = found["objects"], found["letters"]
    places = [[(x, y) for x, y, *_ in truth["things"]] for truth in truths]
    losses["where"] = _heat_loss(objects[:, 0], places, 0.8)
    places = [[(x, y) for x, y, _ in truth["letters"]] for truth in truths]
    losses["letters"] = _heat_loss(letters[:, 0], places, 0.6)
    rows, targets = _around([[(t[0], t[1], t[2:6]) for t in truth["things"]] for truth in truths], objects.shape[-1])
    if rows:
        picture, y, x = (torch.tensor(part) for part in zip(*rows, strict=True))
        here = objects[picture, 1:, y, x].split((len(COLOURS), len(SHAPES), len(SIZES), 11), -1)
        wanted = torch.tensor(targets)
        for index, key in enumerate(("colour", "shape", "size", "value")):
            if bool((wanted[:, index] >= 0).any()):
                losses[key] = F.cross_entropy(here[index], wanted[:, index], ignore_index=-1)
    rows, letters_wanted = _around(
        [[(t[0], t[1], (t[2],)) for t in truth["letters"]] for truth in truths], letters.shape[-1]
    )
    if rows:
        picture, y, x = (torch.tensor(part) for part in zip(*rows, strict=True))
        wanted = torch.tensor(letters_wanted)[:, 0]
        losses["letter"] = F.cross_entropy(letters[picture, 1:, y, x], wanted, ignore_index=-1)
    return losses


def train_names(naming: Naming, folder: Path, *, epochs: int, say: Say) -> None:
    """Learn what things, small photographs and kinds of pictures are called, from the trunk's features."""
    shards = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]
    table = F.normalize(torch.cat([shard["features"] for shard in shards]).float(), dim=1) * 16
    targets = torch.cat([shard["rows"] for shard in shards]).unbind(1)
    heads = (naming.names, naming.small_photo, naming.kinds)
    for head, target, key, decay in zip(heads, targets, ("names", "photos", "kinds"), (2e-4, 1e-2, 1e-4), strict=True):
        rows = torch.nonzero(target >= 0).flatten()
        weight = torch.zeros(head.weight.shape[0], table.shape[1], requires_grad=True)
        bias = torch.zeros(head.weight.shape[0], requires_grad=True)
        optimizer = torch.optim.AdamW([weight, bias], lr=3e-3, weight_decay=decay)
        steps = epochs * max(len(rows) // 256, 1)
        value = 0.0
        for step in range(steps):
            some = rows[torch.randint(len(rows), (256,))]
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * (1 - step / steps)
            loss = F.cross_entropy(table[some] @ weight.T + bias, target[some], label_smoothing=0.05)
            loss = loss + decay * weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            value = float(loss)
        with torch.no_grad():
            head.weight.copy_(weight[:, :, None, None])
            assert head.bias is not None
            head.bias.copy_(bias)
        say(f"{key}: loss {value:.3f} on {len(rows)} features")


def _pick(kinds: dict[str, float], dice: random.Random) -> str:
    return dice.choices(list(kinds), list(kinds.values()))[0]


def _heat_loss(scores: torch.Tensor, places: list[list[tuple[float, float]]], sigma: float) -> torch.Tensor:
    side = scores.shape[-1]
    steps = torch.arange(side) + 0.5
    target = torch.zeros_like(scores)
    for row, centres in enumerate(places):
        for x, y in centres:
            # The cell it is in is 1 whatever its place within.
            dx, dy = ((steps - 0.5 - min(int(part * side), side - 1)) ** 2 for part in (x, y))
            target[row] = torch.maximum(target[row], torch.exp(-(dy[:, None] + dx[None]) / (2 * sigma**2)))
    chance = scores.sigmoid().clamp(1e-4, 1 - 1e-4)
    hit = target == 1
    positive = ((1 - chance) ** 2 * chance.log())[hit].sum()
    negative = ((1 - target) ** 4 * chance**2 * (1 - chance).log())[~hit].sum()
    return -(positive + negative) / max(int(hit.sum()), 1)


def _around(
    marks: list[list[tuple[float, float, tuple[int, ...]]]], side: int
) -> tuple[list[tuple[int, int, int]], list[tuple[int, ...]]]:
    """The cell of each mark, twice, and those beside it, once, since a peak may be found there."""
    rows: list[tuple[int, int, int]] = []
    targets: list[tuple[int, ...]] = []
    for picture, found in enumerate(marks):
        for x, y, what in found:
            column, line = min(int(x * side), side - 1), min(int(y * side), side - 1)
            for dx, dy in ((0, 0), (0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
                if 0 <= column + dx < side and 0 <= line + dy < side:
                    rows.append((picture, line + dy, column + dx))
                    targets.append(what)
    return rows, targets
