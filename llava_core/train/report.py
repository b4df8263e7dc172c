"""The report of `check`: what the samples are, and each that is wrong with its line and the reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from llava_core.errors import BadRequest
from llava_core.train.check import Survey, check_lessons, check_records
from llava_core.train.sources import Chain, open_source


def check_and_print(
    data: Sequence[str],
    model: str | None,
    console: Console,
    *,
    images: str,
    max_length: int,
    plain: bool,
    workers: int,
) -> bool:
    """Whether all samples are good."""
    sources = [open_source(name, images) for name in data]
    source = sources[0] if len(sources) == 1 else Chain(sources)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("checking", total=len(source))

        def tick(done: int) -> None:
            bar.update(task, completed=done)

        if model is None:
            survey = check_records(source, tick=tick)
        else:
            from llava_core.checkpoints.hub import read_side
            from llava_core.checkpoints.recognise import recognise
            from llava_core.train.dataset import Lessons, PictureSide
            from llava_core.train.stage import teacher_of

            found = recognise(model)
            if found.kind != "hub":
                raise BadRequest(f"{model!r} is no llava-hf checkpoint", param="--model")
            side = read_side(found)
            teacher = teacher_of(found, side, plain=plain)
            lessons = Lessons(source, teacher, PictureSide(side.vision), max_length=max_length)
            survey = check_lessons(lessons, workers=workers, tick=tick)
    _print(console, survey, source.name, "tokens" if model else "words")
    return not survey.problems


def _print(console: Console, survey: Survey, name: str, unit: str) -> None:
    good = survey.good
    pictures = survey.pictures[good]
    console.print(
        f"{name}: {len(survey.lengths):,} samples, {len(good):,} of them good: {int((pictures == 1).sum()):,} with a "
        f"picture, {int((pictures > 1).sum()):,} with several, {int((pictures == 0).sum()):,} with none",
        markup=False,
        soft_wrap=True,
    )
    if len(good):
        lengths = survey.lengths[good]
        middle, most = np.percentile(lengths, [50, 95]).astype(int)
        console.print(f"{unit} a sample: {middle} in the middle, {most} at 95 %, {lengths.max()} at most")
    if not survey.problems:
        return
    table = Table("where", "id", "reason", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[2].overflow = "fold"
    for problem in survey.problems:
        table.add_row(problem.place, problem.id, problem.reason)
    console.print(table, markup=False)
    console.print(f"{len(survey.problems):,} samples are wrong", style="bold red")
