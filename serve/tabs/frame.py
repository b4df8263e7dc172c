"""The page around the tabs: header, theme, headers of safety, and how Gradio is started."""

from __future__ import annotations

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from serve.page.assets import STATIC, head
from serve.page.context import PageContext
from serve.page.headers import SafeHeaders
from serve.tabs import discover
from serve.tabs.api import add_endpoints
from serve.tabs.theme import theme


def build(context: PageContext) -> gr.Blocks:
    """The page with all its tabs, or the bare chat where it is to be embedded."""
    tabs = discover()
    with gr.Blocks(
        title="LLaVA Serve", fill_height=True, delete_cache=(3600, 86400), analytics_enabled=False
    ) as blocks:
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

        async def leave(request: gr.Request) -> None:
            context.rooms.leave(request.session_hash or "")

        blocks.unload(leave)
        add_endpoints(context)
    return blocks


def launch(context: PageContext, host: str, port: int, share: bool = False) -> gr.Blocks:
    """Build and start the page; returns once it answers."""
    folders = {example.path.parent for example in context.examples}
    blocks = build(context).queue(max_size=2000, default_concurrency_limit=64)
    blocks.launch(
        server_name=host,
        server_port=port,
        share=share,
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
            "middleware": [Middleware(SafeHeaders)],
            "routes": [
                Route("/health/live", _alive),
                *(Mount("/examples", StaticFiles(directory=folder)) for folder in folders),
            ],
        },
    )
    return blocks


def _alive(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})
