"""The page's tabs: every module here that has a `TAB` is one, so a new file is a new tab."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from serve.page.context import PageContext


@dataclass(frozen=True)
class Tab:
    """`build` is called inside the tab, in Gradio's manner: what it makes appears there. Lower `order` comes first."""

    slug: str
    title: str
    order: int
    build: Callable[[PageContext], None]


def discover() -> tuple[Tab, ...]:
    """Every tab, in order. Importing them imports Gradio."""
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    tabs = [module.TAB for module in modules if isinstance(getattr(module, "TAB", None), Tab)]
    return tuple(sorted(tabs, key=lambda tab: (tab.order, tab.slug)))
