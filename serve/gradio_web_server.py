"""The page: chat with the models behind a controller, in a browser.

python -m serve.gradio_web_server --controller-url http://127.0.0.1:21000
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from llava_core.config import CONTROL_PORT, PAGE_PORT, ImageLimits, UploadLimits
from llava_core.errors import BadRequest, LlavaError
from serve import moderation_flags as judging
from serve import quota_flags as allowing
from serve import tracing
from serve.credentials import PUBLIC_LINK, is_loopback
from serve.key_ring import KeyRing, keys_file
from serve.page.actions import Rooms
from serve.page.context import PageContext
from serve.page.doorman import Doorman
from serve.page.examples import load as load_examples
from serve.page.feedback import Feedback
from serve.page.history import History
from serve.page.models import ListMode, ModelList
from serve.page.pictures import PictureDesk
from serve.page.source import AnswerSource
from serve.page.upload_folder import upload_folder
from serve.page.uploads import Uploads
from serve.quota import Quota
from serve.quotas import Quotas
from serve.store.database import Database
from serve.store.keeper import Keeper

ROOT = Path(__file__).resolve().parent.parent
READERS_AT_ONCE = 200
DATABASE_URL = f"sqlite:///{ROOT / 'data' / 'chats.db'}"

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for the whole network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Which port to listen on.")] = PAGE_PORT,
    controller_url: Annotated[
        str, typer.Option("--controller-url", "--controller", help="Where the controller is.")
    ] = f"http://127.0.0.1:{CONTROL_PORT}",
    share: Annotated[bool, typer.Option("--share", help="Ask Gradio for a public link.")] = False,
    embed: Annotated[bool, typer.Option("--embed", help="The bare chat, to put into another page.")] = False,
    login: Annotated[
        bool,
        typer.Option("--login", help="Ask everybody for a name and its key, which python -m serve.keys makes."),
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let a network use the page though it asks nobody who they are.")
    ] = False,
    address_rate: allowing.AddressRate = None,
    address_at_once: allowing.AddressAtOnce = None,
    rate_storage: allowing.Storage = allowing.IN_MEMORY,
    trusted_proxies: allowing.Proxies = 0,
    moderation_url: judging.Url = None,
    moderation_model: judging.Model = None,
    moderation_classifier: judging.ByFunction = None,
    moderation_fail_open: judging.FailOpen = None,
    moderation_hold_answers: judging.HoldAnswers = None,
    model_list_mode: Annotated[
        str, typer.Option(help="once keeps the list found at the start, reload follows the controller.")
    ] = "reload",
    record: Annotated[
        bool, typer.Option("--record", help="Keep likes, dislikes and flags in logs/feedback.jsonl, and say so.")
    ] = False,
    history: Annotated[
        str, typer.Option(help="on keeps people's chats so that they find them again, off keeps none of them.")
    ] = "on",
    database_url: Annotated[
        str,
        typer.Option(
            envvar="LLAVA_SERVE_DATABASE_URL",
            help="Where they are kept: sqlite:////folder/file.db or postgresql://user:password@host/name.",
            show_default="data/chats.db beside launch.sh",
            show_envvar=True,
        ),
    ] = DATABASE_URL,
    keep_days: Annotated[
        int,
        typer.Option(
            min=0,
            help="Delete chats this many days after their last question, and what ratings and votes say after as many "
            "days; 0 never does.",
        ),
    ] = 0,
    keep_originals: Annotated[
        bool, typer.Option("--keep-originals", help="Keep pictures with what cameras wrote into them, places too.")
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
    if history not in ("on", "off"):
        raise typer.BadParameter("must be on or off", param_hint="--history")
    from serve.client import Client
    from serve.server import start_logging

    start_logging()
    tracing.start_tracing("page")
    doorman = make_doorman(PUBLIC_LINK if share else host, login, insecure)
    client = Client(controller_url)
    try:
        client.moderation = judging.moderation(
            moderation_url, moderation_model, moderation_classifier, moderation_fail_open, moderation_hold_answers
        )
        quota = Quota(address_rate, address_at_once)
        quotas = Quotas(
            # Of who logs in the name is known, and counts instead of the address, which may be that of many.
            key=quota,
            address=quota,
            of_key=KeyRing(keys_file()).quota_of,
            storage=rate_storage,
            proxies=trusted_proxies,
        )
    except LlavaError as error:
        print(f"error: {error.message}", file=sys.stderr)
        raise SystemExit(2) from None
    keeper = make_keeper(database_url, keep_days, keep_originals) if history == "on" else None
    with upload_folder() as uploads:
        quiet_gradio(uploads)
        context = make_context(
            client,
            uploads=uploads,
            examples=examples,
            feedback=logs / "feedback.jsonl" if record else None,
            mode="once" if model_list_mode == "once" else "reload",
            embed=embed,
            keeper=keeper,
            keep_days=keep_days,
            originals=keep_originals,
            quotas=quotas,
        )
        local = is_loopback(host) and not (login or insecure or share)
        serve(context, host, port, share, doorman, local=local)


def make_context(
    source: AnswerSource,
    *,
    uploads: Path,
    examples: Path = ROOT / "examples",
    feedback: Path | None = None,
    mode: ListMode = "reload",
    embed: bool = False,
    limits: ImageLimits | None = None,
    keeper: Keeper | None = None,
    keep_days: int = 0,
    originals: bool = False,
    quotas: Quotas | None = None,
) -> PageContext:
    """What the tabs are built with. `uploads` must be the folder Gradio uploads to."""
    limits = limits or ImageLimits()
    shown = load_examples(examples)
    kept = Feedback(feedback, keep_days, deletable=keeper is not None)
    desk = PictureDesk(uploads, shown, limits)
    quotas = quotas or Quotas()
    history = History(keeper, desk, keep_days=keep_days)
    return PageContext(
        source=source,
        rooms=Rooms(source, desk, kept, history=history),
        models=ModelList(source, mode),
        feedback=kept,
        history=history,
        examples=shown,
        limits=limits,
        readers_at_once=READERS_AT_ONCE,
        embed=embed,
        desk=desk,
        uploads=Uploads(uploads, limits, originals=originals, for_all=embed, address=quotas.address_of),
        quotas=quotas,
    )


def make_keeper(database_url: str, keep_days: int, keep_originals: bool) -> Keeper:
    """A keeper at work. A database that cannot be reached now is tried again and again; a wrong address ends here."""
    try:
        keeper = Keeper(Database(database_url), keep_days=keep_days, originals=keep_originals)
    except LlavaError as error:
        print(f"error: {error.message}", file=sys.stderr)
        raise SystemExit(2) from None
    keeper.start()
    return keeper


def make_doorman(host: str, login: bool, insecure: bool) -> Doorman | None:
    """None where nobody is asked, which a network must not meet."""
    from serve.credentials import check_exposure

    try:
        check_exposure(host, guarded=login, insecure=insecure, remedy="add --login")
        ring = KeyRing(keys_file())
        if login and not ring.asks:
            raise BadRequest("--login needs somebody who can log in: python -m serve.keys add NAME")
    except LlavaError as error:
        print(f"error: {error.message}", file=sys.stderr)
        raise SystemExit(2) from None
    return Doorman(ring) if login else None


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


def serve(
    context: PageContext,
    host: str,
    port: int,
    share: bool,
    login: Doorman | None = None,
    *,
    local: bool = False,
) -> None:
    """Run until Ctrl-C or a request to terminate."""
    from serve.server import spare_what_stays
    from serve.tabs.frame import launch

    ended = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        blocks = launch(context, host, port, share, login, local)
    except OSError:
        print(
            f"error: the page cannot listen on {host}:{port}, taken or not this machine's; choose another --port",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    spare_what_stays()
    print(f"The page is at http://{host}:{port}", flush=True)
    context.feedback.expire()
    while not ended.wait(timeout=UploadLimits().sweep_s):
        context.uploads.sweep()
        context.feedback.expire()
    blocks.close(verbose=False)
    tracing.stop_tracing()
    context.history.close()


if __name__ == "__main__":
    app()
