"""A stage made ready: checkpoint, checked samples, cached features, and how they are cut into steps."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from llava_core.checkpoints.hub import HubSide, ends_of, read_side
from llava_core.checkpoints.recognise import Recognised, recognise
from llava_core.errors import BadCheckpoint, BadRequest
from llava_core.train.attention import use_samples_attention
from llava_core.train.check import Survey, check_once, refuse
from llava_core.train.dataset import Collate, Lessons, PictureSide
from llava_core.train.encode import fill, missing
from llava_core.train.feature_cache import FeatureCache, cache_key
from llava_core.train.heap import keep_freed_memory
from llava_core.train.learn import Precision, choose_precision, load_model
from llava_core.train.lessons import Teacher
from llava_core.train.records import Picture
from llava_core.train.sampler import GroupedOrder
from llava_core.train.settings import Settings
from llava_core.train.sources import Chain, Source, open_source
from llava_core.train.tower import register_towers

WAIT = timedelta(hours=6)
"""For other processes of a run, which may check or encode for long."""
_ROW_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens that go through the model at once when nobody says. Activations are most of a CPU run's memory (of a model of
135 million weights about 3 MB a token in float32), and its speed does not grow beyond this."""


@dataclass(frozen=True)
class Data:
    """Lessons, what the check found, and the indices that are used."""

    lessons: Lessons
    survey: Survey
    taken: np.ndarray

    @property
    def tokens(self) -> int:
        return int(self.survey.lengths[self.taken].sum())

    @property
    def pictures(self) -> int:
        return int(self.survey.pictures[self.taken].sum())


@dataclass(frozen=True)
class Steps:
    """How samples are cut: `micro` at once on a device, `rounds` of these before weights change, `total` changes."""

    micro: int
    rounds: int
    per_epoch: int
    total: int


@dataclass
class Stage:
    """Everything a run needs, before its first step."""

    settings: Settings
    found: Recognised
    model: Any
    data: Data
    held_out: Data | None
    precision: Precision
    packing: bool
    cache: FeatureCache | None
    to_encode: list[tuple[str, Picture]]
    state: Any
    world: int
    device: str

    def steps(self) -> Steps:
        return _steps(self.settings, self.data, self.world, self.device)

    def order(self) -> GroupedOrder:
        survey = self.data.survey
        return GroupedOrder(
            survey.lengths,
            survey.pictures > 0,
            group=self.steps().micro * self.world,
            seed=self.settings.seed,
            taken=self.data.taken,
        )

    def collate(self) -> Collate:
        text: Any = self.model.config.get_text_config()
        pad: Any = self.data.lessons.teacher.tokenizer.pad_token_id
        pad = pad if pad is not None else (text.pad_token_id or 0)
        return Collate(self.packing, cached=self.cache is not None, pad=int(pad))

    def encode(self, console: Console) -> None:
        """Bring the features of all pictures to disk, each process its share."""
        if self.cache is None:
            return
        # Shares are cut from equal lists: all must have listed what is missing before anybody adds to the cache.
        self.state.wait_for_everyone()
        mine = self.to_encode[self.state.process_index :: self.world]
        tower = self.model.model.vision_tower
        if self.device == "cuda":
            tower.to("cuda")
        side = self.data.lessons.side
        with _ticking(console, "encoding pictures", len(mine)) as tick:
            fill(self.model, side, self.cache, mine, workers=self.settings.workers, tick=tick)
        self.state.wait_for_everyone()
        self.to_encode = []
        for data in (self.data, self.held_out):
            if data is not None:
                data.lessons.cache = self.cache


def prepare(settings: Settings, console: Console, *, records: Path | None) -> Stage:
    """Load and check everything. `records` is where the check and features are kept; None keeps nothing."""
    from accelerate import PartialState
    from transformers import set_seed

    cuda = torch.cuda.is_available()
    state = PartialState(cpu=not cuda, timeout=WAIT) if _distributed() else PartialState(cpu=not cuda)
    device = "cuda" if cuda else "cpu"
    if not cuda:
        keep_freed_memory()
    register_towers()
    found = recognise(settings.model)
    if found.kind != "hub":
        raise BadCheckpoint(
            f"{settings.model!r} is no llava-hf checkpoint ({found.kind}); `python -m llava_core.checkpoints PATH "
            "--convert OUT` converts the original format, `python -m llava_core.train build` puts a new one together"
        )
    side = read_side(found)
    teacher = teacher_of(found, side, plain=settings.template == "plain")
    pictures = PictureSide(side.vision)
    if state.is_main_process:
        console.print(f"template: {'plain' if teacher.plain else side.template} ({side.reason})", style="dim")
    data = _data(settings, settings.data, teacher, pictures, found, state, console, records)
    held_out = None
    if settings.eval_data:
        held_out = _data(settings, settings.eval_data, teacher, pictures, found, state, console, records)
    precision = choose_precision(settings.precision, device)
    set_seed(settings.seed)  # adapters begin at random
    model = load_model(found, settings, precision, sharded=_sharded())
    packing = settings.packing and use_samples_attention(model)
    if settings.packing and not packing and state.is_main_process:
        console.print("this language model's attention cannot be packed; batches are padded", style="dim")
    stage = Stage(
        settings, found, model, data, held_out, precision, packing, None, [], state, state.num_processes, device
    )
    if settings.tower_rate == 0 and settings.cache != "off":
        root = Path(settings.cache).expanduser() if settings.cache else records and records / "features"
        if root is not None:
            key = cache_key(model, pictures.vision.processor, precision.frozen)
            stage.cache = FeatureCache(root, key, precision.frozen)
            stage.to_encode = missing(_pictures(data, held_out), stage.cache)
    return stage


def teacher_of(found: Recognised, side: HubSide, *, plain: bool) -> Teacher:
    """How this checkpoint's samples become lessons."""
    if plain:
        config: Any = side.config
        return Teacher.for_captions(side.tokenizer, int(config.image_token_id))
    ends, stops = ends_of(found, side, _generation(found.folder))
    return Teacher(side.tokenizer, side.prompter, ends, stops)


def open_sources(names: Sequence[str], images: str) -> Source:
    sources = [open_source(name, images) for name in names]
    source = sources[0] if len(sources) == 1 else Chain(sources)
    if not len(source):
        raise BadRequest(f"{source.name} holds no samples", param="--data")
    return source


def _generation(folder: Path) -> Any:
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(folder)


def _data(
    settings: Settings,
    names: Sequence[str],
    teacher: Teacher,
    pictures: PictureSide,
    found: Recognised,
    state: Any,
    console: Console,
    records: Path | None,
) -> Data:
    from accelerate.utils import broadcast_object_list

    source = open_sources(names, settings.images)
    lessons = Lessons(source, teacher, pictures, max_length=settings.max_length, pictures_first=settings.pictures_first)
    kept: list[Any] = [None]
    if state.is_main_process:
        root = Path(settings.cache).expanduser() if settings.cache not in ("", "off") else records
        key = _stamp(found, teacher.plain)
        with _ticking(console, f"checking {source.name}", len(source)) as tick:
            if root is None:
                from llava_core.train.check import check_lessons

                kept = [check_lessons(lessons, workers=settings.workers, tick=tick)]
            else:
                kept = [check_once(lessons, root, key, workers=settings.workers, tick=tick)]
    if state.num_processes > 1:
        broadcast_object_list(kept)
    survey: Survey = kept[0]
    if survey.problems and not settings.skip_bad:
        raise refuse(survey.problems, len(source))
    if not len(survey.good):
        raise refuse(survey.problems, len(source))
    if survey.problems and state.is_main_process:
        console.print(f"{len(survey.problems)} of {len(source)} samples of {source.name} are left out (--skip-bad)")
    return Data(lessons, survey, survey.good)


def _steps(settings: Settings, data: Data, world: int, device: str) -> Steps:
    if settings.batch_size % world:
        raise BadRequest(f"--batch-size {settings.batch_size} cannot be shared by {world} devices")
    each = settings.batch_size // world
    micro = settings.micro_batch
    if not micro:
        usual = float(np.percentile(data.survey.lengths[data.taken], 90))
        fitting = max(1, int(_ROW_TOKENS[device] // max(1.0, usual)))
        micro = max(divisor for divisor in range(1, each + 1) if each % divisor == 0 and divisor <= fitting)
    if each % micro:
        raise BadRequest(
            f"--micro-batch {micro} times {world} devices does not divide --batch-size {settings.batch_size}"
        )
    rounds = each // micro
    batches = math.ceil(len(data.taken) / (micro * world))
    per_epoch = max(1, math.ceil(batches / rounds))
    total = settings.max_steps or max(1, math.ceil(per_epoch * settings.epochs))
    return Steps(micro, rounds, per_epoch, total)


def _pictures(*several: Data | None) -> Iterable[Picture]:
    for data in several:
        if data is not None:
            for index in data.taken:
                if data.survey.pictures[index]:
                    yield from data.lessons.sample(int(index)).pictures


def _stamp(found: Recognised, plain: bool) -> str:
    names = (
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "processor_config.json",
    )
    known = [(found.folder / name) for name in names if (found.folder / name).is_file()]
    digest = hashlib.sha256(str(plain).encode())
    for path in known:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _distributed() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _sharded() -> bool:
    """Whether accelerate was told to shard the model."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")


class _ticking:
    """A bar that appears only for what takes a while."""

    def __init__(self, console: Console, words: str, total: int) -> None:
        self._total = total
        self._words = words
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)

    def __enter__(self) -> Any:
        self._progress.start()
        task = self._progress.add_task(self._words, total=self._total)
        return lambda done: self._progress.update(task, completed=done)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
