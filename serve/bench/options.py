"""Command-line options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.bench.plan import LoadPlan

Users = Annotated[int, typer.Option(help="People who chat side by side.")]
Turns = Annotated[int, typer.Option(help="Questions in a chat; answers go back into it.")]
Rounds = Annotated[int, typer.Option(help="Chats of each person, one after the other.")]
Images = Annotated[int, typer.Option(help="Pictures in a chat's first question.")]
ImageSize = Annotated[str, typer.Option(metavar="WxH", help="Size of the pictures, which are drawn here.")]
SamePicture = Annotated[bool, typer.Option("--same-picture", help="One picture for all instead of each their own.")]
PromptWords = Annotated[int, typer.Option(help="Words in a question.")]
System = Annotated[str, typer.Option(help="System prompt.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", help="Every answer as long as --max-tokens (ours, vLLM, SGLang).")
]
ThinkTime = Annotated[float, typer.Option(metavar="S", help="Seconds between an answer and the next question.")]
WarmUp = Annotated[int, typer.Option(help="Chats before the measured ones, side by side.")]
Seed = Annotated[int, typer.Option(help="Decides words, pictures and arrivals.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything measured as JSON.")]
PlotFile = Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw it (needs matplotlib).")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="BENCH_API_KEY", show_envvar=True, metavar="KEY", help="Sent to addresses as bearer token."),
]
ModelPath = Annotated[str | None, typer.Option(metavar="PATH", help="The checkpoint to serve or run.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps…")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
WaitReady = Annotated[float, typer.Option(metavar="S", help="Longest wait for a server that is started here.")]

DEFAULT = LoadPlan()
DEFAULT_SIZE = "x".join(map(str, DEFAULT.image_size))
