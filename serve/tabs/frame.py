"""The page around the tabs: header, theme, headers of safety, and how Gradio is started."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import gradio as gr
import uvicorn.config
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from llava_core.config import ServerLimits
from serve.http_protocol import impatient_protocol
from serve.page.assets import STATIC, head
from serve.page.context import PageContext
from serve.page.doorman import Doorman
from serve.page.gate import PageFrame
from serve.page.live import routes as live_routes
from serve.page.shared import routes as shared_routes
from serve.tabs import discover
from serve.tabs.api import add_endpoints
from serve.tabs.theme import theme

# Gradio looks into its queue a thousand times a second while nobody asks for anything, unless it is told otherwise.
QUEUE_POLL_S = 0.01
PROGRESS_POLL_S = 1.0
"""For bars of progress, of which the page has none."""


def build(context: PageContext) -> gr.Blocks:
    """The page with all its tabs, or the bare chat where it is to be embedded."""
    tabs = discover()
    with gr.Blocks(title="LLaVA Serve", fill_height=True, analytics_enabled=False) as blocks:
        if context.embed:
            tabs[0].build(context)
        else:
            gr.HTML(
                html_template='<div class="ls-header"></div>',
                js_on_load="LlavaServe.header(element);",
                apply_default_css=False,
                elem_classes=["ls-host"],
            )
            with gr.Tabs(elem_classes=["ls-tabs"]):
                for tab in tabs:
                    with gr.Tab(tab.title, id=tab.slug, elem_id=f"ls-tab-{tab.slug}"):
                        tab.build(context)

        add_endpoints(context)
    return blocks


def launch(
    context: PageContext,
    host: str,
    port: int,
    share: bool = False,
    login: Doorman | None = None,
    local: bool = False,
) -> gr.Blocks:
    """Build and start the page; returns once it answers. `login` says who may see it. A `local` one
    answers to names of this machine only."""
    folders = {example.path.parent for example in context.examples}
    blocks = build(context).queue(max_size=2000, default_concurrency_limit=64)
    blocks._queue.sleep_when_free = QUEUE_POLL_S
    blocks._queue.progress_update_sleep_when_free = PROGRESS_POLL_S
    with _framed_servers(context, local):
        blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=login,
            auth_message=None if login is None else "Enter your name and your key.",
            prevent_thread_lock=True,
            quiet=not share,
            head=head(bare=context.embed),
            theme=theme(),
            max_threads=2 * context.readers_at_once + 64,
            max_file_size=context.limits.max_bytes,
            footer_links=[],
            favicon_path=STATIC / "favicon.svg",
            run_history=False,
            ssr_mode=False,
            show_error=False,
            app_kwargs={
                "routes": [
                    Route("/health/live", _alive),
                    *live_routes(context, _is_logged_in),
                    *shared_routes(context.history),
                    *(Mount("/examples", StaticFiles(directory=folder)) for folder in folders),
                ],
            },
        )
    return blocks


@contextmanager
def _framed_servers(context: PageContext, local: bool) -> Generator[None]:
    """Servers that start within have our frame around their app and our patience with connections: Gradio starts its
    own server, and asks nobody how."""
    frames: dict[int, PageFrame] = {}

    class Framed(impatient_protocol(ServerLimits().header_s)):
        def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)  # pyright: ignore[reportCallIssue]
            app = cast("Any", config.loaded_app)
            if id(app) not in frames:
                frames[id(app)] = PageFrame(
                    app, context.uploads, local=local, login_of=_login_at(cast("Any", config.app))
                )
            self.app = frames[id(app)]

    plain = uvicorn.config.HTTP_PROTOCOLS["auto"]
    uvicorn.config.HTTP_PROTOCOLS["auto"] = Framed  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        uvicorn.config.HTTP_PROTOCOLS["auto"] = plain


def _is_logged_in(request: Request) -> bool:
    return _login_at(request.app)(request.headers) is not None


def _login_at(app: Any) -> Callable[[Headers], str | None]:
    """The name under which Gradio, whose `app` it is, would let the caller in: "" where it asks nobody, None where it
    would not. Its own routes ask the same in a function that is not to be had."""

    def login_of(headers: Headers) -> str | None:
        if app.auth is None:
            return ""
        shown = Request({"type": "http", "headers": headers.raw}).cookies
        cookies = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
        for token in map(shown.get, cookies):
            name = app.tokens.get(token)
            if name is None:
                continue
            if app.auth.knows(token, name):
                return name
            # Whose key was revoked is let in by Gradio's own routes no more either.
            del app.tokens[token]
        return None

    return login_of


def _alive(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})
