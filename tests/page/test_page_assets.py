"""The page's own styles and scripts: all there, all used, none from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from serve.page import assets


def test_every_style_and_script_in_static_is_in_the_page() -> None:
    listed = {*assets.FRAME_STYLES, *assets.PART_STYLES, *assets.READING_STYLES, *assets.SCRIPTS}
    there = {path.name for path in assets.STATIC.iterdir() if path.suffix in (".css", ".js")}
    assert listed == there


def test_nothing_is_loaded_from_elsewhere() -> None:
    addresses = re.findall(r"https?://[\w./-]+", assets.head())
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}


def test_no_script_ends_the_element_it_stands_in() -> None:
    for name in assets.SCRIPTS:
        assert "</script" not in (assets.STATIC / name).read_text("utf-8")


def test_gradio_carries_the_katex_that_sets_formulas() -> None:
    katex = assets.katex()
    assert katex is not None
    assert all(address.startswith("assets/katex-") for address in katex.values())


@pytest.mark.parametrize("module", ["serve.gradio_web_server", "serve.page.actions", "serve.page.room"])
def test_neither_torch_nor_gradio_nor_pillow_is_imported_before_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'transformers', 'gradio', 'PIL'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "set()"
