"""The page: chat with the models behind a controller, in a browser.

python -m serve.gradio_web_server --controller-url http://127.0.0.1:21001
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from llava_core.config import CONTROLLER_PORT, PAGE_PORT, ImageLimits
from serve.page.actions import Rooms
from serve.page.context import PageContext
from serve.page.examples import load as load_examples
from serve.page.feedback import Feedback
from serve.page.models import ListMode, ModelList
from serve.page.pictures import PictureDesk
from serve.page.source import AnswerSource

ROOT = Path(__file__).resolve().parent.parent
READERS_AT_ONCE = 200

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for the whole network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Which port to listen on.")] = PAGE_PORT,
    controller_url: Annotated[
        str, typer.Option("--controller-url", "--controller", help="Where the controller is.")
    ] = f"http://127.0.0.1:{CONTROLLER_PORT}",
    share: Annotated[bool, typer.Option("--share", help="Ask Gradio for a public link.")] = False,
    embed: Annotated[bool, typer.Option("--embed", help="The bare chat, to put into another page.")] = False,
    model_list_mode: Annotated[
        str, typer.Option(help="once keeps the list found at the start, reload follows the controller.")
    ] = "reload",
    record: Annotated[
        bool, typer.Option("--record", help="Keep likes, dislikes and flags in logs/feedback.jsonl, and say so.")
    ] = False,
    logs: Annotated[Path, typer.Option(help="The folder for --record.", show_default="logs beside launch.sh")] = ROOT
    / "logs",
    examples: Annotated[
        Path, typer.Option(help="The folder with examples.json.", show_default="the one beside launch.sh")
    ] = ROOT / "examples",
) -> None:
    """Serve the chat page for the models behind a controller. Needs no GPU and loads no model."""
    if model_list_mode not in ("once", "reload"):
        raise typer.BadParameter("must be once or reload", param_hint="--model-list-mode")
    from serve.client import Client

    with tempfile.TemporaryDirectory(prefix="llava-serve-page-", ignore_cleanup_errors=True) as uploads:
        quiet_gradio(Path(uploads))
        context = make_context(
            Client(controller_url),
            uploads=Path(uploads),
            examples=examples,
            feedback=logs / "feedback.jsonl" if record else None,
            mode="once" if model_list_mode == "once" else "reload",
            embed=embed,
        )
        serve(context, host, port, share)


def make_context(
    source: AnswerSource,
    *,
    uploads: Path,
    examples: Path = ROOT / "examples",
    feedback: Path | None = None,
    mode: ListMode = "reload",
    embed: bool = False,
    limits: ImageLimits | None = None,
) -> PageContext:
    """What the tabs are built with. `uploads` must be the folder Gradio uploads to."""
    limits = limits or ImageLimits()
    shown = load_examples(examples)
    kept = Feedback(feedback)
    return PageContext(
        source=source,
        rooms=Rooms(source, PictureDesk(uploads, shown, limits), kept),
        models=ModelList(source, mode),
        feedback=kept,
        examples=shown,
        limits=limits,
        readers_at_once=READERS_AT_ONCE,
        embed=embed,
    )


def quiet_gradio(uploads: Path) -> None:
    """Gradio reads these when it is imported: nothing is sent anywhere, uploads go to a folder of this process."""
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        HF_HUB_DISABLE_TELEMETRY="1",
        GRADIO_TEMP_DIR=str(uploads),
        # Gradio would summarise its events with pandas after every single one.
        GRADIO_ANALYTICS_CACHE_FREQUENCY=str(10**12),
        GRADIO_ANALYTICS_MAX_EVENTS="1",
    )


def serve(context: PageContext, host: str, port: int, share: bool) -> None:
    """Run until Ctrl-C or a request to terminate."""
    from serve.tabs.frame import launch

    ended = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        blocks = launch(context, host, port, share)
    except OSError:
        print(
            f"error: the page cannot listen on {host}:{port}, taken or not this machine's; choose another --port",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    print(f"The page is at http://{host}:{port}", flush=True)
    while not ended.wait(timeout=3600):
        pass
    blocks.close(verbose=False)


if __name__ == "__main__":
    app()
