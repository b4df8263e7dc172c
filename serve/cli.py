"""Chat in a terminal, or answer one question in a pipe, against a controller or straight on a checkpoint.

python -m serve.cli [--controller URL | --local PATH] [--image FILE]... [--prompt TEXT]
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import Awaitable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llava_core.checkpoints.precision import QUANTIZE, one_quantize
from llava_core.config import CONTROL_PORT
from llava_core.engines.load import EngineOptions
from llava_core.errors import BadRequest, LlavaError
from llava_core.types import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, DEFAULT_TOP_P, Request, Sampling
from serve import tracing
from serve.engine_flags import batch_limits, checked_dtype
from serve.model_paths import find_model
from serve.terminal.answer import Answer, figures, harmless, stream_answer
from serve.terminal.chat import Chat, read_picture
from serve.terminal.source import RemoteSource, Source, choose_model, load_local

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    controller: Annotated[
        str, typer.Option(metavar="URL", help="The controller to ask; a worker's address serves too.")
    ] = f"http://127.0.0.1:{CONTROL_PORT}",
    local: Annotated[
        str | None, typer.Option(metavar="PATH", help="Load this checkpoint here instead of asking a controller.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model to ask; with --prompt needed when several run, else the first one listed."),
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A picture for the first question; repeat it for more.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this once and leave; - reads it from standard input.")
    ] = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = DEFAULT_TEMPERATURE,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest tokens that make up this much.")
    ] = DEFAULT_TOP_P,
    top_k: Annotated[int, typer.Option(help="Draw from this many tokens; 0 from all.")] = 0,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "--max-new-tokens", help="Longest answer.")
    ] = DEFAULT_MAX_TOKENS,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 repeats less.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text.")] = None,
    model_base: Annotated[str | None, typer.Option(help="With --local: the base of a LoRA or projector.")] = None,
    device: Annotated[str, typer.Option(help="With --local: auto, cpu, cuda, cuda:1, mps…")] = "auto",
    dtype: Annotated[str, typer.Option(help="With --local: auto, float32, bfloat16 or float16.")] = "auto",
    quantize: Annotated[
        str | None, typer.Option(metavar="KIND", help=f"With --local: {', '.join(QUANTIZE)}. [default: not quantised]")
    ] = None,
    load_4bit: Annotated[bool, typer.Option("--load-4bit", help="With --local: the same as --quantize nf4.")] = False,
    load_8bit: Annotated[bool, typer.Option("--load-8bit", help="With --local: the same as --quantize int8.")] = False,
    kv_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="With --local: memory for the chat's keys and values, 8GiB or 40%."),
    ] = None,
    speculate: Annotated[
        str | None,
        typer.Option(metavar="MODE", help="With --local: guess words of greedy answers ahead: auto, on, off."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="With --local: threads of the model on a CPU.")] = None,
    conv_template: Annotated[
        str | None, typer.Option(help="With --local: prompt template of an original-format checkpoint.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="With --prompt: no status line on stderr.")] = False,
) -> None:
    """Chat with a model about pictures.

    With --prompt, or when text is piped in, it answers once: the answer goes to stdout, everything else to stderr.
    """
    try:
        options = EngineOptions(
            model_path=None if local is None else find_model(local, Path.cwd(), "--local"),
            model_base=None if model_base is None else find_model(model_base, Path.cwd(), "--model-base"),
            device=device,
            dtype=checked_dtype(dtype),
            quantize=one_quantize(quantize, load_4bit=load_4bit, load_8bit=load_8bit),
            conv_template=conv_template,
            batch=batch_limits(kv_memory=kv_memory, speculate=speculate, threads=threads),
        )
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=tuple(stop or ()),
        )
        chat = Chat(system=system, attached=[read_picture(name) for name in image or []])
        question = _question(prompt)
        source = _remote(controller) if local is None else _local(options)
        tracing.start_tracing("cli")
        asyncio.run(_converse(source, model, chat, question, sampling, quiet=quiet))
    except LlavaError as error:
        _console().print(f"error: {error.message}", markup=False, soft_wrap=True)
        raise SystemExit(2 if isinstance(error, BadRequest) else 1) from None
    except KeyboardInterrupt:
        sys.stdout.flush()
        # A checkpoint may still be loading in a thread, which nothing can interrupt.
        os._exit(130)
    except BrokenPipeError:
        # Whoever read our answer has heard enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    finally:
        tracing.stop_tracing()


def _question(prompt: str | None) -> str | None:
    """What to answer once, or None to chat."""
    if prompt is None and sys.stdin.isatty():
        return None
    piped = prompt is None or prompt == "-"
    question = sys.stdin.buffer.read().decode("utf-8", "replace").strip() if piped else prompt or ""
    if not question.strip():
        raise BadRequest("the prompt is empty; give --prompt TEXT or pipe some in", param="--prompt")
    return question


async def _remote(controller: str) -> Source:
    return RemoteSource(controller)


async def _local(options: EngineOptions) -> Source:
    # Libraries' own progress bars would run through ours, and through scripts' logs.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    console = _console()
    if not console.is_terminal:
        return await load_local(options)
    with console.status(f"Loading {options.model_path}"):
        return await load_local(options)


async def _converse(
    opening: Awaitable[Source], wanted: str | None, chat: Chat, question: str | None, sampling: Sampling, *, quiet: bool
) -> None:
    source = await opening
    try:
        if question is not None:
            await _answer_once(source, wanted, chat, question, sampling, quiet=quiet)
            return
        model, _ = await choose_model(source, wanted)
        # Only a person at a terminal needs prompt_toolkit.
        from serve.terminal.screen import Terminal

        await Terminal(source, model, chat, sampling).run()
    finally:
        await source.aclose()


async def _answer_once(
    source: Source, wanted: str | None, chat: Chat, question: str, sampling: Sampling, *, quiet: bool
) -> None:
    model, models = await choose_model(source, wanted)
    if wanted is None and len(models) > 1:
        names = ", ".join(each.name for each in models)
        raise BadRequest(f"several models run: {names}; choose one with --model", param="--model")
    answer = Answer()
    in_terminal = sys.stdout.isatty()

    def write(text: str) -> None:
        sys.stdout.write(harmless(text) if in_terminal else text)
        sys.stdout.flush()

    try:
        request = Request(model.name, tuple(chat.ask(question)), sampling, owner=f"cli-{uuid.uuid4().hex}")
        await stream_answer(source, request, answer, write)
    finally:
        if answer.text and not answer.text.endswith("\n"):
            write("\n")
    console = _console()
    if not quiet and (console.is_terminal or answer.finish_reason == "length"):
        console.print(figures(answer), style="dim", markup=False, soft_wrap=True)


def _console() -> Console:
    """For everything that is not the answer."""
    return Console(stderr=True, highlight=False)


if __name__ == "__main__":
    app()
