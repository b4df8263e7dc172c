"""The table of attacks names only tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent


# Those published for LLaVA, FastChat and vLLM's multimodal side, and for Pillow, whose kind is tried here.
PUBLISHED = {
    *(f"2024-{number}" for number in (9308, 9309, 10225, 12065, 12068, 12070)),
    *(f"2024-{number}" for number in (10044, 10907, 10908, 10912, 11603, 12376)),
    *(f"2026-{number}" for number in (6607, 85695, 44222, 96639, 22778, 22773)),
}


def test_every_published_hole_of_the_predecessors_has_a_row():
    named: set[str] = set()
    for listed in re.findall(r"CVE-([\d, -]+)", (HERE / "ROWS.md").read_text()):
        year = listed[:4]
        for each in listed.split(","):
            year, _, number = each.strip().rpartition("-") if "-" in each else (year, "", each.strip())
            named.add(f"{year}-{number}")
    assert PUBLISHED - named == set()


def test_every_row_names_a_test_that_exists():
    rows = [line for line in (HERE / "ROWS.md").read_text().splitlines() if line.startswith("| ")][1:]
    missing: list[str] = []
    for row in rows:
        named = re.findall(r"`([\w./]+\.py)::(\w+)`", row)
        assert named, row
        for file, name in named:
            path = (HERE / file).resolve()
            tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
            there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            there |= {
                target.id
                for node in tree.body
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            if name not in there:
                missing.append(f"{file}::{name}")
    assert missing == []
    assert len(rows) > 60
