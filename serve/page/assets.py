"""The page's own styles and scripts, joined into what goes into the document's head.

They are put into the page itself rather than linked, so that it works behind any proxy path and in any frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

STATIC = Path(__file__).resolve().parent.parent.parent / "static"
FRAME_STYLES = ("page.css",)
PART_STYLES = (
    "parts.css",
    "chat.css",
    "composer.css",
    "history.css",
    "arena.css",
    "compare.css",
    "board.css",
    "inspect.css",
    "status.css",
)
SCRIPTS = (
    "core.js",
    "theme.js",
    "math.js",
    "models.js",
    "settings.js",
    "live.js",
    "view.js",
    "turn.js",
    "empty.js",
    "pane.js",
    "composer.js",
    "history.js",
    "columns.js",
    "differences.js",
    "compare.js",
    "ballot.js",
    "arena.js",
    "board.js",
    "heat.js",
    "inspect.js",
    "status.js",
)

READING_STYLES = ("shared.css",)
READING_SCRIPTS = ("core.js", "theme.js", "math.js")


def head(bare: bool = False) -> str:
    """Styles and scripts. `bare` leaves no room for a header."""
    scripts = _joined(SCRIPTS)
    frame = "document.documentElement.classList.add('ls-bare');" if bare else ""
    # So that a phone's keyboard shortens the page instead of covering the composer.
    viewport = (
        '<meta name="viewport" content="width=device-width, initial-scale=1, interactive-widget=resizes-content">'
    )
    return f"{viewport}<style>{_styles()}</style><script>(() => {{\n{scripts}\n{_assets()}{frame}\n}})();</script>"


def reading() -> tuple[str, str]:
    """Styles and scripts of a page that only shows a chat; the scripts go to the end of its body."""
    styles = f"{_styles()}\n{_joined(READING_STYLES)}"
    start = "LlavaServe.header(document.querySelector('.ls-host')); setMath(document.body); copyCodeIn(document.body);"
    return styles, f"(() => {{\n{_joined(READING_SCRIPTS)}\n{_assets()}{start}\n}})();"


def _styles() -> str:
    # Gradio resets buttons and fields more strongly than a class can say; an id that no element has says it louder.
    return f"{_joined(FRAME_STYLES)}\nbody:not(#_) {{\n{_joined(PART_STYLES)}\n}}"


def _assets() -> str:
    return f"LlavaServe.assets = {json.dumps({'katex': katex()})};"


def _joined(names: Iterable[str]) -> str:
    return "\n".join((STATIC / name).read_text("utf-8") for name in names)


def katex() -> dict[str, str] | None:
    """The KaTeX that Gradio's own frontend carries, by addresses relative to the page; None if it carries none."""
    gradio = find_spec("gradio")
    if gradio is None or gradio.origin is None:
        return None
    folder = Path(gradio.origin).parent / "templates" / "frontend" / "assets"
    scripts, styles = sorted(folder.glob("katex-*.js")), sorted(folder.glob("katex-*.css"))
    if not (scripts and styles):
        return None
    return {"js": f"assets/{scripts[0].name}", "css": f"assets/{styles[0].name}"}
