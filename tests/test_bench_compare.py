"""Comparisons: turns, ratios, targets that are started here, and the figures that need no model."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from llava_core.errors import BadRequest, EngineFailure
from serve.bench.__main__ import main
from serve.bench.bandwidth import Limits, WeightFacts
from serve.bench.children import running
from serve.bench.compare import (
    CompareReport,
    Line,
    Round,
    Start,
    alternate,
    check_name,
    compare_figures,
    open_target,
)
from serve.bench.load import run_load
from serve.bench.machine import this_machine
from serve.bench.overhead import OverheadPlan, bench_overhead
from serve.bench.plan import LoadPlan
from serve.bench.records import Answer, summarise
from serve.bench.report import Head, read_json, write_json
from serve.bench.tables import short_names
from tests.topology import Topology


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of `python -m serve.bench words`."""
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code if isinstance(left.value.code, int) else 0


async def test_both_are_measured_in_every_round_and_who_was_last_goes_first() -> None:
    order: list[str] = []

    async def run(name: str, number: int) -> str:
        order.append(name)
        return f"{name}{number}"

    results = await alternate(3, lambda number: run("a", number), lambda number: run("b", number))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert results == [("a0", "b0"), ("a1", "b1"), ("a2", "b2")]


def test_ratios_are_medians_of_the_rounds_own_and_not_of_the_medians() -> None:
    rounds = [({"x": 10.0}, {"x": 1.0}), ({"x": 2.0}, {"x": 2.0}), ({"x": 3.0}, {"x": 1.0})]
    assert compare_figures(rounds) == (Line("x", a=3, b=1, ratio=3, low=1, high=10),)


def test_a_figure_that_one_of_them_lacks_or_that_is_zero_is_not_compared() -> None:
    assert compare_figures([({"x": 1.0, "y": 1.0}, {"y": 0.0})]) == ()
    assert compare_figures([]) == ()


@pytest.mark.parametrize("name", ["nobody", "generate:0", "generate:many", "ours:2", ""])
def test_what_is_no_target_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="no target"):
        check_name(name, Start(model_path="x"))


def test_a_target_that_is_started_here_needs_a_checkpoint() -> None:
    with pytest.raises(BadRequest, match="--model-path"):
        check_name("ours", Start())


@pytest.mark.parametrize(
    ("a", "b", "shown"),
    [
        ("ours", "generate", ("ours", "generate")),
        ("ours", "http://h:1/v1#org/m", ("ours", "org/m")),
        ("http://h:1#m", "http://h:2/v1#m", ("h:1", "h:2")),
        ("http://h:1", "http://h:2/", ("h:1", "h:2")),
        ("ours", "ours", ("ours (A)", "ours (B)")),
    ],
)
def test_two_targets_never_share_the_name_above_their_column(a: str, b: str, shown: tuple[str, str]) -> None:
    assert short_names(a, b) == shown


async def test_a_server_started_here_is_gone_when_its_block_is_left() -> None:
    async with running("serve.model_worker", ("--engine", "echo", "--no-register")) as (url, pid):
        async with open_target(f"{url}#echo", Start()) as target:
            answers = await run_load(LoadPlan(users=2, turns=1, images=0), target)
        assert [answer.error for answer in answers] == [None, None]
    assert not psutil.pid_exists(pid)


async def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(EngineFailure, match="no engine is called 'wood'"):
        async with running("serve.model_worker", ("--engine", "wood", "--no-register")):
            pass


async def test_overhead_goes_through_worker_client_and_gateway_and_leaves_nothing_behind() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    plan = OverheadPlan(rounds=1, requests=2, streams=2, max_tokens=4, token_ms=1)
    report = await bench_overhead(plan, Head("test", this_machine(), "today"))
    assert set(report.lines) == {"worker over HTTP", "controller, then worker", "controller's /v1"}
    names = {line.name for lines in report.lines.values() for line in lines}
    assert names == {"1 user: whole answer, ms", "1 user: first token, ms", "2 streams: tokens/s"}
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert after <= before


def test_the_limit_counts_weights_once_and_keys_of_every_earlier_token() -> None:
    facts = WeightFacts(bytes=1000, kv_bytes=10, parameters=500)
    assert Limits(read_bytes_per_s=4000, pass_s=1).tokens_per_s(facts, context=100) == 2


def test_a_comparison_read_back_from_its_file_is_the_same(tmp_path: Path) -> None:
    summary = summarise([Answer(1, 1, 0.0, 1.0, 0.5, (0.5,), completion_tokens=2)])
    lines = (Line("x", 1, 2, 0.5, 0.4, 0.6),)
    head = Head("c", this_machine(), "d")
    report = CompareReport(head, "ours", "generate", LoadPlan(), (Round(summary, summary, "b"),), lines)
    write_json(tmp_path / "c.json", report)
    assert read_json(tmp_path / "c.json", CompareReport) == report


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("load", "nonsense"), 2, "is no address"),
        (("load", "http://127.0.0.1:1"), 1, "cannot be reached"),
        (("load", "http://127.0.0.1:1", "--users", "0"), 2, "--users must be 1 or more"),
        (("compare", "ours", "generate"), 2, "--model-path"),
        (("compare", "http://127.0.0.1:1", "http://127.0.0.1:2"), 1, "cannot be reached"),
        (("engine", "--json", "/no/such/folder/x"), 2, "cannot be written"),
        (("checkpoint", "/dev/null"), 2, "not empty"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, said: str
) -> None:
    assert call(monkeypatch, *words) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_whole_comparison_prints_its_ratios_with_how_they_were_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], topology: Topology, tmp_path: Path
) -> None:
    one, two = topology.worker("one", register=False), topology.worker("two", register=False)
    file = tmp_path / "c.json"
    flags = ("--users", "2", "--turns", "2", "--rounds", "2", "--max-tokens", "4", "--image-size", "32x32")
    code = call(monkeypatch, "compare", f"{one.url}#one", f"{two.url}/v1#two", *flags, "--json", str(file))
    out = capsys.readouterr().out
    assert code == 0
    assert "tokens/s" in out
    assert "cores" in out
    assert "--users 2" in out
    report = read_json(file, CompareReport)
    assert [each.first for each in report.rounds] == ["a", "b"]
    assert all(each.a.requests == each.b.requests == 4 for each in report.rounds)
