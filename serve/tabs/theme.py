"""Gradio's theme in the page's own colours, for tabs that use Gradio's ready-made components."""

from __future__ import annotations

from gradio.themes import Base
from gradio.themes.utils import colors, fonts, sizes

_EMBER = colors.Color(
    name="ember",
    c50="#fbf3ef",
    c100="#f8e9e2",
    c200="#efcdbf",
    c300="#e5ac96",
    c400="#f0906a",
    c500="#cc6142",
    c600="#b5472b",
    c700="#983820",
    c800="#7a2f1d",
    c900="#5c261a",
    c950="#38241c",
)
_STONE = colors.Color(
    name="stone",
    c50="#faf9f7",
    c100="#f6f5f2",
    c200="#e9e6df",
    c300="#e0dcd3",
    c400="#c9c3b6",
    c500="#74777f",
    c600="#5d606b",
    c700="#2d3036",
    c800="#1e2024",
    c900="#16171a",
    c950="#121316",
)


def theme() -> Base:
    """Fonts come from Gradio's own package, never from the network; only these two weights are complete there."""
    made = Base(
        primary_hue=_EMBER,
        secondary_hue=_STONE,
        neutral_hue=_STONE,
        radius_size=sizes.radius_lg,
        font=(fonts.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=(fonts.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"),
    )
    return made.set(
        body_background_fill="#f6f5f2",
        body_background_fill_dark="#16171a",
        body_text_color="#23252b",
        body_text_color_dark="#e9e7e3",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1e2024",
        block_border_width="0px",
        button_primary_background_fill="#b5472b",
        button_primary_background_fill_hover="#983820",
        button_primary_text_color="#ffffff",
    )
