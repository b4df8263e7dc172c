"""The table of attacks names only tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent


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
