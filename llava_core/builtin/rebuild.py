"""Everything from parts to card in one go: the tower's lessons, the samples, both stages, the figures.

python -m llava_core.builtin rebuild --size small
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_core.builtin.assemble import TOWER_WEIGHTS, base, drawn_names, language_model
from llava_core.builtin.data.sources import OneShape, Pictures
from llava_core.builtin.pack import pack
from llava_core.builtin.parts import (
    ICON_WORDS,
    ICONS,
    LARGE_PHOTOS,
    REAL_PHOTOS,
    SMALL_PHOTOS,
    TRUNK,
    Say,
    cache_folder,
    fetch,
)
from llava_core.builtin.rebuild_sizes import SIZES, Size, cost_of
from llava_core.builtin.recipe import PRACTICE_ROUNDS, STAGE_ONE, STAGE_TWO, Round
from llava_core.errors import BadRequest
from llava_core.train.words import duration

if TYPE_CHECKING:
    from llava_core.train.recipes import Stage


_TAUGHT_LITTLE = (
    "It was taught one thing in a minute, the colour of a single shape, and knows nothing else of pictures."
)
_TAUGHT_LESS = "It was taught anew; its figures above say where it is weak."


def sources(say: Say, cache: Path | None = None, *, tested: bool = False) -> Any:
    """Icons, photographs and words; fetched at the first time."""
    from llava_core.builtin.data.icons import IconSets
    from llava_core.builtin.data.photos import SmallPhotos
    from llava_core.builtin.data.real_photos import RealPhotos, label_photos
    from llava_core.builtin.data.sources import Sources

    folders = {style: fetch(part, say, cache) for style, part in ICONS.items()}
    birds = fetch(REAL_PHOTOS, say, cache)
    kept, classify = cache or cache_folder(), _classifier(say)
    labels = label_photos(birds, kept / "photo-labels.json", classify)
    large: RealPhotos | None = None
    if tested:
        coco = fetch(LARGE_PHOTOS, say, cache)
        large = RealPhotos(coco, label_photos(coco, kept / "large-photo-labels.json", classify), tested=None)
    vocabulary = json.loads((language_model(say, cache) / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    return Sources(
        IconSets(folders, fetch(ICON_WORDS, say, cache)),
        SmallPhotos(fetch(SMALL_PHOTOS, say, cache)),
        tuple(word[1:] for word in vocabulary if word.startswith("Ġ")),
        RealPhotos(birds, labels, tested=tested),
        tested,
        large,
    )


def rebuild(size: str, out: Path, say: Say, *, seed: int = 1, resume: bool = False) -> Path:
    """Train anew into `out`; the shipped weights stay as they are. Gives the finished checkpoint."""
    chosen = SIZES.get(size)
    if chosen is None:
        raise BadRequest(f"there is no size {size!r}; there are {', '.join(SIZES)}", param="--size")
    if out.exists() and any(out.iterdir()) and not resume:
        raise BadRequest(f"{str(out)!r} is not empty; name a new folder, or go on in it with --resume", param="--out")
    say(cost_of(size))
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    drawn = OneShape() if chosen.only else sources(say)
    tower = TOWER_WEIGHTS
    if chosen.tower:
        tower = out / "tower.safetensors"
        teach_tower(drawn, chosen, out, tower, seed, say)
    foundation = base(say, tower_weights=tower)
    captions, chats = write_data(
        out / "data",
        drawn,
        pictures=chosen.pictures,
        captions=chosen.captions,
        texts=chosen.texts,
        seed=seed,
        say=say,
        rounds=chosen.rounds,
        skills=chosen.only,
    )
    # The second stage looks at the pictures of the first: what the tower sees in them is computed once.
    seen = {"cache": str(out / "features"), "seed": seed}
    first = _train("pretrain", foundation, captions, out / "stage1", {**STAGE_ONE, **seen}, resume)
    second = _train("finetune", first, chats, out / "stage2", {**STAGE_TWO, **seen}, resume)
    runs = [second]
    for each in PRACTICE_ROUNDS if chosen.practice else ():
        again = write_practice(
            out / each.name, drawn, each, runs[-1], out / "features", part=chosen.practice, seed=seed, say=say
        )
        recipe = {**STAGE_TWO, "lora_rank": each.rank, "lora_alpha": 2 * each.rank, "lora_rate": each.rate}
        recipe |= {"projector_rate": each.projector_rate, "max_steps": round(each.steps * chosen.practice)}
        runs.append(_train("finetune", runs[-1], again, out / f"stage2-{each.name}", {**recipe, **seen}, resume))
    shutil.rmtree(out / "features", ignore_errors=True)
    for name, packed in (("builtin-stage1", [first]), ("builtin", runs)):
        pack(packed, out / "weights" / f"{name}.safetensors", say)
    second = runs[-1]
    _measure({"builtin": second, "builtin-stage1": first}, chosen, out, say)
    say(f"Done in {duration(time.monotonic() - started)}: {second}")
    return second


def _measure(folders: Mapping[str, Path], size: Size, out: Path, say: Say) -> None:
    """The card, and all figures as JSON beside it."""
    from llava_core.builtin.card import card_text, measure, table

    if size.only:
        shapes = OneShape(tested=True)
        reports = measure(folders, size.per_skill, say, pictures=shapes, skills=size.only, text=False)
        card = card_text(reports, weak=_TAUGHT_LITTLE, trained_on=())
    else:
        reports = measure(folders, size.per_skill, say)
        card = card_text(reports, weak=_TAUGHT_LESS)
    (out / "CARD.md").write_text(card, "utf-8")
    (out / "figures.json").write_text(json.dumps([report.as_json() for report in reports], indent=1) + "\n", "utf-8")
    say(table(reports))


def write_data(
    out: Path,
    drawn: Pictures,
    *,
    pictures: int,
    captions: int,
    texts: bool,
    seed: int,
    say: Say,
    rounds: int = 2,
    skills: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Samples for both stages; files that are there already are kept. `rounds` are chats about each picture."""
    from llava_core.builtin.data.distill import own_answers
    from llava_core.builtin.data.samples import write_samples

    answers: list[tuple[str, str]] = []
    if texts:
        answers = own_answers(language_model(say), cache_folder() / "own-answers.json", say)
    return write_samples(
        drawn,
        out,
        pictures=pictures,
        captions=captions,
        rounds=rounds,
        texts=answers,
        seed=seed,
        say=say,
        skills=skills,
    )


def write_practice(
    out: Path, drawn: Any, this: Round, model: Path, cache: Path, *, part: float, seed: int, say: Say
) -> Path:
    """Samples for a round of practice, or for a part of it. `model` is what the round begins with, `cache` where its
    tower's features are kept."""
    from llava_core.builtin.data.distill import own_answers
    from llava_core.builtin.data.samples import PRACTISED, write_samples

    seed += this.seed
    answers: list[tuple[str, str]] = []
    if this.texts:
        known = own_answers(language_model(say), cache_folder() / "own-answers.json", say)
        answers = random.Random(seed).sample(known, round(this.texts * part))
    _, chats = write_samples(
        drawn,
        out,
        pictures=max(8, round(this.pictures * part)),
        captions=0,
        rounds=2,
        texts=answers,
        seed=seed,
        say=say,
        skills=() if this.drilled else PRACTISED,
        kinds=this.kinds,
        drilled=this.drilled,
        opened=this.opened,
    )
    if this.relabelled:
        from llava_core.builtin.data.relabelled import write_relabelled

        many = max(8, round(this.relabelled * part))
        say(f"Giving {many} photographs other names")
        samples = json.loads(chats.read_text("utf-8"))
        samples += write_relabelled(drawn.real_photos, out, model, cache, many=many, seed=seed)
        random.Random(seed).shuffle(samples)
        chats.write_text(json.dumps(samples, indent=1) + "\n", "utf-8")
    return chats


def teach_tower(drawn: Any, size: Size, out: Path, weights: Path, seed: int, say: Say) -> None:
    """The finder and the names, from nothing; written to `weights`."""
    import torch
    from safetensors.torch import save_file

    from llava_core.builtin import seeing

    if weights.exists():
        return
    torch.manual_seed(seed)
    names = drawn_names()
    tower = untaught_tower(say)
    tower.finder.start()
    seeing.train_finder(tower.finder, drawn, pictures=size.tower, say=say, state=out / "finder.pt", seed=seed + 10)
    seeing.encode(tower, drawn, out / "features", seeing.NAMED, size.encoded, names, seed, say)
    seeing.train_names(tower.naming, out / "features", epochs=60, say=say)
    ours = {
        name: tensor.half().contiguous()
        for name, tensor in tower.state_dict().items()
        if name.startswith(("finder.", "naming."))
    }
    save_file(ours, weights)
    shutil.rmtree(out / "features", ignore_errors=True)


def _train(stage: Stage, model: Path, data: Path, out: Path, recipe: Mapping[str, Any], resume: bool) -> Path:
    from rich.console import Console

    from llava_core.train.run import train
    from llava_core.train.settings import settle

    given = {"model": str(model), "data": (str(data),), "out": str(out), **recipe}
    if not (out / "config.json").exists():
        train(settle(stage, None, given), Console(highlight=False), resume=resume)
    return out


def untaught_tower(say: Say) -> Any:
    """The tower with the classifier's weights, before it has learned to find things."""
    from llava_core.builtin.convert import convert_trunk
    from llava_core.builtin.tower import SeeingConfig, SeeingTower

    tower = SeeingTower(SeeingConfig(names=len(drawn_names()))).eval()
    tower.load_state_dict(convert_trunk(next(fetch(TRUNK, say).rglob("*.pth"))), strict=False)
    return tower


def _classifier(say: Say) -> Any:
    tower: list[Any] = []

    def classify(images: Any) -> list[tuple[str, float]]:
        from llava_core.builtin import seeing

        if not tower:
            tower.append(untaught_tower(say))
        return seeing.classify(tower[0], images)

    return classify
