"""Assembled models that were replaced leave the cache; what may still be served does not."""

from __future__ import annotations

import os
from pathlib import Path

from llava_core.builtin import old_models

DAY = 24 * 3600.0
NOW = 1_000 * DAY


def folder(cache: Path, name: str, days: float) -> Path:
    """One that was last used so many days ago."""
    made = cache / "models" / name
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    when = NOW - days * DAY
    os.utime(made, (when, when))
    return made


def left(cache: Path) -> set[str]:
    return {path.name for path in (cache / "models").iterdir()}


def test_those_that_newer_ones_replaced_go_and_the_newest_two_of_each_kind_stay(tmp_path: Path) -> None:
    used = folder(tmp_path, f"builtin-{'a' * 12}", 0)
    kept = {folder(tmp_path, f"{kind}-{'b' * 12}", 300).name for kind in ("builtin", "builtin-stage1")}
    kept.add(folder(tmp_path, f"base-{'b' * 12}-{'b' * 8}", 300).name)
    old = [folder(tmp_path, f"builtin-{digit * 12}", 301 + at) for at, digit in enumerate("cd")]
    said: list[str] = []
    old_models.clear_old(used, said.append, NOW)
    assert left(tmp_path) == {used.name, *kept}
    assert {path for path in old if str(path) in " ".join(said)} == set(old)


def test_what_a_start_used_within_two_months_stays(tmp_path: Path) -> None:
    days = {"a": 0, "b": 1, "c": 59, "d": 61}
    folders = [folder(tmp_path, f"builtin-{digit * 12}", ago) for digit, ago in days.items()]
    old_models.clear_old(folders[0], print, NOW)
    assert left(tmp_path) == {each.name for each in folders[:3]}


def test_using_one_again_counts(tmp_path: Path) -> None:
    oldest = folder(tmp_path, f"builtin-{'a' * 12}", 90)
    for digit, days in zip("bc", (65, 70), strict=True):
        folder(tmp_path, f"builtin-{digit * 12}", days)
    old_models.clear_old(oldest, print, NOW)
    assert left(tmp_path) == {f"builtin-{digit * 12}" for digit in "ab"}


def test_what_a_killed_start_left_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    used = folder(tmp_path, f"builtin-{'a' * 12}", 0)
    killed, running = f".builtin-{'b' * 12}.41", f".builtin-{'c' * 12}.42"
    folder(tmp_path, killed, 61)
    folder(tmp_path, running, 0.01)
    others = {"builtin-mine", "llava-1.5-7b", f"builtin-{'b' * 12}.backup"}
    for other in others:
        folder(tmp_path, other, 300)
    old_models.clear_old(used, print, NOW)
    assert left(tmp_path) == {used.name, running, *others}
