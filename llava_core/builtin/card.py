"""The model card: what the model is made of, what it was taught, and how often it is right, measured."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_core.builtin.assemble import VARIANTS, WEAK, WEIGHTS, language_model
from llava_core.builtin.parts import SERVED, TRAINING, Part, Say

if TYPE_CHECKING:
    from llava_core.builtin.data.sources import Pictures
    from llava_core.eval.builtin import Report
    from llava_core.eval.footprint import Footprint

CARD = Path(__file__).with_name("CARD.md")
_WORDS = "SmolLM2 alone"


def measure(
    folders: Mapping[str, Path],
    per_skill: int,
    say: Say,
    *,
    pictures: Pictures | None = None,
    skills: Sequence[str] = (),
    blind: bool = True,
    text: bool = True,
) -> list[Report]:
    """A report of each model and, for the questions without a picture, of the language model alone.

    `pictures` to be asked about, else those of all kinds; only of `skills`, if any are named.
    """
    from llava_core.builtin.rebuild import sources
    from llava_core.eval.builtin import Report, evaluate, load_answerer, text_score
    from llava_core.eval.questions import SKILLS

    tested = pictures or sources(say, tested=True)
    asked = tuple(skills or SKILLS)
    found: list[Report] = []
    for name, folder in folders.items():
        say(f"{name}: {folder}")
        answerer = load_answerer(folder)
        found.append(
            evaluate(answerer, tested, name=name, per_skill=per_skill, say=say, skills=asked, blind=blind, text=text)
        )
    if text:
        alone = text_score(load_answerer(language_model(say)), say)
        found.append(Report(_WORDS, (), 0.0, alone))
    return found


def table(reports: Sequence[Report]) -> str:
    """Markdown: a row per skill, a column per model, the first model's blind baseline beside it."""
    from llava_core.eval.questions import AIMS, SKILLS

    seeing = [report for report in reports if report.scores]
    heads = ["Skill", "Asked", "Aim"]
    for index, report in enumerate(seeing):
        heads += [report.model, f"{report.model}, blank picture"] if index == 0 else [report.model]
    rows = [heads, ["---"] * len(heads)]
    for skill in [score.skill for score in seeing[0].scores] if seeing else []:
        row = [f"{skill}: {SKILLS[skill][1]}", "", f"{AIMS[skill]} %" if skill in AIMS else ""]
        for index, report in enumerate(seeing):
            score = next(score for score in report.scores if score.skill == skill)
            row[1] = row[1] or str(score.asked)
            said = "" if score.yes is None else f' ("yes" {100 * score.yes / max(score.asked, 1):.0f} %)'
            row.append(f"{100 * score.share:.0f} %{said}")
            if index == 0:
                row.append("" if score.blind is None else f"{100 * score.blind / max(score.asked, 1):.0f} %")
        rows.append(row)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    texts = [f"{report.model} {100 * report.text.share:.1f} %" for report in reports if report.text]
    if texts:
        lines += ["", f"Of 200 questions without a picture, right: {', '.join(texts)}."]
    return "\n".join(lines)


def card_text(
    reports: Sequence[Report],
    *,
    weak: str = "",
    trained_on: Sequence[Part] = TRAINING,
    sizes: Mapping[str, Footprint] | None = None,
    shipped: bool = False,
) -> str:
    """`weak` says in a line what it is bad at, else what the shipped one is. `sizes` are what each takes."""
    facts = "\n".join(f"- `{name}`: {words}" for name, words in VARIANTS.items())
    return f"""# The built-in model

{_ABOUT}
{facts}

## Figures

{table(reports)}

{_HOW}
{_compared(reports)}{_SHIPPED if shipped else ""}
**Weak:** {weak or WEAK.read_text("utf-8").strip()}

{_sizes(sizes)}## Made of

| Part | What | Licence | MB |
|---|---|---|---|
{_rows(SERVED)}

{_trained(trained_on)}

{_CLASSIFIER}{_PHOTOS if trained_on else ""}{_LIMITS}"""


def _trained(parts: Sequence[Part]) -> str:
    if not parts:
        return "Trained on pictures that were drawn from scratch, and on nothing else."
    return f"""Trained on, besides what is drawn from scratch; none of it is in the weights' files:

| Part | What | Licence | MB |
|---|---|---|---|
{_rows(parts)}"""


def _compared(reports: Sequence[Report]) -> str:
    """How sure the figures are, and what the second stage adds to the first."""
    seeing = [report for report in reports if report.scores]
    if not seeing:
        return ""
    asked = seeing[0].scores[0].asked
    off = 100 * (0.25 / max(asked, 1)) ** 0.5
    words = [f"Each figure rests on {asked} questions, so it may be off by {off:.0f} points or so."]
    by_name = {report.model: report for report in seeing}
    if set(VARIANTS) <= set(by_name):
        both, first = (_mean(by_name[name]) for name in VARIANTS)
        words.append(
            f"Over all skills {both:.0f} % are right after both stages and {first:.0f} % after the first alone: "
            "alignment teaches what a picture shows, instruction tuning to answer what is asked. LLaVA's paper has the "
            "same gap in its ablation, 85.1 against 21.5."
        )
    return "\n\n".join(textwrap.fill(each, 120) for each in words) + "\n"


def _mean(report: Report) -> float:
    return 100 * sum(score.share for score in report.scores) / len(report.scores)


def _sizes(sizes: Mapping[str, Footprint] | None) -> str:
    if not sizes:
        return ""
    rows = "\n".join(
        f"| {name} | {size.disk / 1e6:.0f} | "
        + " | ".join(f"{size.weights[kind] / 1e6:.0f} | {size.process[kind] / 1e6:.0f}" for kind in ("bf16", "nf4"))
        + " |"
        for name, size in sizes.items()
    )
    ours = sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors"))
    return f"""## Size

In MB: on disk when put together, the weights in memory at bf16 and at NF4 (`:4bit`), and a whole process with Python
and torch that has answered one question about a picture. Measured on a CPU, where what packing to NF4 needs for a
moment is more than NF4 saves of so small a model. Our own weights, which are all that this repository holds,
are {ours / 1e6:.0f} MB.

| Model | Disk | bf16 weights | bf16 process | NF4 weights | NF4 process |
|---|---|---|---|---|---|
{rows}

"""


def _rows(parts: Sequence[Part]) -> str:
    return "\n".join(
        f"| {part.name} {part.version} ({part.index}) | {part.what} | {part.licence} | {part.size / 1e6:.0f} |"
        for part in parts
    )


_ABOUT = """A small LLaVA that answers about pictures on a machine without GPU or model hub: EfficientNet-Lite2 with a
finder of our own as vision tower, an `mlp2x_gelu` projector, SmolLM2-135M-Instruct. To transformers it is a
`LlavaForConditionalGeneration` like any other; 36 tokens per picture. The tower's finder (1.6 million weights) was
taught first, on drawn pictures, to mark objects, letters and bars; the projector starts from the language model's own
embeddings of the words that the tower's columns stand for. Then came LLaVA's two stages.
"""

_HOW = """Made by `python -m llava_core.eval builtin`: greedy answers, fixed seeds, pictures and words that no training
has seen. A blank picture is plain gray. "reading" counts when every letter is right; "reference" when the last of three
turns is right after the model's own first answers; "large photo" when the answer holds what people call the class that
the tower's classifier is surest of, which is not always what the photograph shows. Those photographs are COCO's, out of
a package, and none is trained on.
"""

_SHIPPED = """
Training: 1,200 captions; 5,000 chats in 625 of 709 planned steps of 8, the rate nearly at its end; then five rounds
of practice, 150, 356, 100, 561 and 132 steps of 8, in which what was unsure is asked more often: places, what is beside
what, counts, names of drawings, in the fourth photographs, in the fifth what people ask first, what a picture shows.
The sharp photographs there are to learn from show birds; so the classes that the tower sees in them were moved on among
ImageNet's thousand, and the answer names what they became, as people call it: ImageNet's sorrel is a horse. Before the
second round the tower was made to say its likeliest name for a drawing aloud, however unsure it is: until then no
drawing was named. Before the fourth it was told that what might be a photograph is one: it had learned kinds of
pictures from few sharp ones. What is missing in names is the tower's share (its likeliest
name is right for about three unseen drawings in ten), what is missing in counts and references mostly the language
model's. The adapters of all rounds are shipped as one of rank 46; the figures are of what is shipped.
"""

_CLASSIFIER = """The classifier was trained on ImageNet, whose pictures were licensed for research; its class names are
part of the projector's start. """
_PHOTOS = """Photographs of birds used in training carry the classifier's own labels, where it was
sure (50 %). CIFAR-10 is ten kinds of photographs of 32 by 32 pixels. """
_LIMITS = """The model knows no people, no places and no more
of the world than a language model of 135 million weights; it is a demonstration, not a source of facts.
"""
