"""Who may import what, held over the source and over running processes."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("llava_core", "serve") for path in (ROOT / folder).rglob("*.py"))
HEAVY = ("torch", "transformers")
WORDS = ("llava_core.types", "llava_core.errors", "llava_core.config")


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    at_top: bool
    """Runs when the file is imported, not only when a function is called or types are checked."""


@functools.cache
def imports_of(path: Path) -> tuple[Import, ...]:
    return tuple(_imports(ast.parse(path.read_text("utf-8")), path, at_top=True))


def _imports(node: ast.AST, path: Path, *, at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, at_top)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{path}:{child.lineno}: imports are absolute here"
            yield from (Import(f"{child.module}.{alias.name}", child.lineno, at_top) for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports(ast.Module(child.orelse, []), path, at_top=at_top)
        else:
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, path, at_top=at_top and not lazy)


def name_of(path: Path) -> str:
    """The module's dotted name, as `python -m` takes it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] in ("__init__", "__main__") else parts)


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def offences(forbidden: tuple[str, ...], *, but_in: tuple[str, ...] = (), below: str = "") -> list[str]:
    found: list[str] = []
    for path in FILES:
        where = path.relative_to(ROOT).as_posix()
        if where.startswith(below) and not where.startswith(but_in):
            wrong = (found_import for found_import in imports_of(path) if within(found_import.module, *forbidden))
            found += [f"{where}:{one.line} imports {one.module}" for one in wrong]
    return found


def runnable() -> list[str]:
    """Every module that `python -m` runs."""
    mains = [path for path in FILES if path.name == "__main__.py" or '\nif __name__ == "__main__":' in path.read_text()]
    return [name_of(path) for path in mains]


@pytest.mark.parametrize("name", WORDS)
def test_the_shared_words_need_the_standard_library_only(name: str) -> None:
    for one in imports_of(ROOT / f"{name.replace('.', '/')}.py"):
        assert within(one.module, *sys.stdlib_module_names, *WORDS), f"line {one.line} imports {one.module}"


def test_the_core_does_not_know_the_servers() -> None:
    assert offences(("serve",), below="llava_core/") == []


def test_torch_stays_with_the_models() -> None:
    # The benchmark measures the machine and plain `generate` with it, inside functions only (see below).
    homes = (
        "llava_core/checkpoints/",
        "llava_core/engines/transformers/",
        "llava_core/train/",
        "llava_core/builtin/",
        "llava_core/eval/",
        "serve/bench/",
    )
    assert offences(HEAVY, but_in=homes) == []


def test_gradio_stays_with_the_page() -> None:
    homes = ("serve/gradio_web_server.py", "serve/tabs/", "serve/bench/naive_page.py")
    assert offences(("gradio", "gradio_client"), but_in=homes) == []


def test_what_is_imported_at_the_top_of_a_file_is_pinned() -> None:
    """So whatever is not installed with the rest is imported inside the function that needs it."""
    pinned = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if "==" in line
    }
    owners = packages_distributions()
    missing: set[str] = set()
    for path in FILES:
        for one in imports_of(path):
            package = one.module.partition(".")[0]
            if not one.at_top or package in sys.stdlib_module_names or package in ("llava_core", "serve"):
                continue
            names = {re.sub(r"[-_.]+", "-", name).lower() for name in owners.get(package, [])}
            if not names & pinned:
                missing.add(f"{package} ({path.relative_to(ROOT)})")
    assert sorted(missing) == []


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_servers_and_core_words_are_imported_without_torch() -> None:
    parts = ("checkpoints", "engines/tr", "train", "builtin", "eval")
    heavy = tuple(f"llava_core/{part}" for part in parts)
    light = [
        name_of(path)
        for path in FILES
        if path.name != "__main__.py" and not path.relative_to(ROOT).as_posix().startswith(heavy)
    ]
    assert "serve.controller" in light
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = set({HEAVY!r}) & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    done = run(code, *light)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("module", runnable())
def test_help_is_shown_without_torch(module: str) -> None:
    code = (
        "import runpy, sys\n"
        "name = sys.argv[1]; sys.argv = [name, '--help']\n"
        "try:\n"
        "    runpy.run_module(name, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"assert not set({HEAVY!r}) & set(sys.modules), 'torch was imported'\n"
    )
    done = run(code, module)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
