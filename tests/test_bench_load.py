"""The load generator: what it sends, what it counts, and what it says where it cannot."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llava_core.config import ImageLimits
from llava_core.engines.echo import EchoEngine
from llava_core.errors import BadRequest, MissingDependency, Overloaded, UnknownModel
from llava_core.images import decode_image, read_data_url
from llava_core.types import Chunk, Request, TextPart, Usage
from serve.bench import report as reports
from serve.bench.commands import app
from serve.bench.load import run_load
from serve.bench.machine import this_command, this_machine
from serve.bench.plan import LoadPlan, draw_picture, parse_size, write_script
from serve.bench.records import Answer, Spread, figures, summarise
from serve.bench.report import Head, LoadReport, read_json, write_json
from serve.bench.target import HttpTarget, check_url
from serve.worker_app import create_app
from tests.serve.serving import Script, ScriptedEngine, serving, two_words


class EngineTarget:
    """A scripted engine as a target, without HTTP."""

    def __init__(self, script: Script = two_words) -> None:
        self.engine = ScriptedEngine(script)
        self.model = self.engine.name

    def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        return self.engine.generate(request)


async def test_every_user_has_as_many_turns_as_asked_and_each_answer_goes_back_into_the_chat() -> None:
    target = EngineTarget()
    answers = await run_load(LoadPlan(users=3, turns=3, rounds=2, images=0), target)
    assert len(answers) == 3 * 3 * 2
    chats = {answer.chat for answer in answers}
    assert len(chats) == 6
    third = [request for request in target.engine.asked if len(request.messages) == 5]
    assert len(third) == 6
    assert all(
        [message.text for message in request.messages[1::2]] == ["Hello there", "Hello there"] for request in third
    )


async def test_pictures_are_of_the_size_asked_for_and_no_two_people_share_one() -> None:
    target = EngineTarget()
    await run_load(LoadPlan(users=3, turns=1, images=2, image_size=(80, 60)), target)
    pictures = [image.url for request in target.engine.asked for image in request.images]
    assert len(pictures) == len(set(pictures)) == 6
    decoded = decode_image(read_data_url(pictures[0], ImageLimits()), ImageLimits())
    assert decoded.size == (80, 60)


async def test_one_picture_for_all_is_sent_where_that_is_wanted() -> None:
    target = EngineTarget()
    await run_load(LoadPlan(users=3, turns=1, same_picture=True, image_size=(32, 32)), target)
    assert len({image.url for request in target.engine.asked for image in request.images}) == 1


async def test_what_was_asked_for_reaches_the_server() -> None:
    target = EngineTarget()
    plan = LoadPlan(
        users=1, turns=1, images=0, prompt_words=7, max_tokens=9, temperature=0.5, ignore_eos=True, system="Be brief."
    )
    await run_load(plan, target)
    (request,) = target.engine.asked
    assert len(request.messages[-1].text.split()) == 7
    assert request.messages[0].text == "Be brief."
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.ignore_eos) == (9, 0.5, True)


async def test_warm_up_chats_are_sent_but_not_reported() -> None:
    target = EngineTarget()
    answers = await run_load(LoadPlan(users=1, turns=2, images=0, warm_up=3), target)
    assert len(answers) == 2
    assert len(target.engine.asked) == 2 + 3 * 2


async def test_people_chat_side_by_side() -> None:
    met = asyncio.Barrier(4)

    async def wait_for_the_others(request: Request) -> AsyncGenerator[Chunk]:
        await asyncio.wait_for(met.wait(), 10)
        yield Chunk("x", "stop", Usage(1, 1))

    answers = await run_load(LoadPlan(users=4, turns=1, images=0), EngineTarget(wait_for_the_others))
    assert [answer.error for answer in answers] == [None] * 4


async def test_chats_that_arrive_at_random_do_not_wait_for_earlier_ones() -> None:
    met = asyncio.Barrier(5)

    async def wait_for_the_others(request: Request) -> AsyncGenerator[Chunk]:
        await asyncio.wait_for(met.wait(), 10)
        yield Chunk("x", "stop", Usage(1, 1))

    plan = LoadPlan(users=1, rounds=5, turns=1, images=0, request_rate=500)
    assert len(await run_load(plan, EngineTarget(wait_for_the_others))) == 5


async def test_a_load_of_some_seconds_begins_no_chat_after_them() -> None:
    seconds = itertools.count()
    plan = LoadPlan(users=1, turns=1, images=0, duration_s=20)
    answers = await run_load(plan, EngineTarget(), clock=lambda: float(next(seconds)))
    assert len(answers) > 1
    assert all(answer.started_s <= 22 for answer in answers)


async def test_errors_are_counted_by_class_and_end_their_chat_only() -> None:
    numbers = itertools.count()

    async def every_other_fails(request: Request) -> AsyncGenerator[Chunk]:
        yield Chunk("begun ")
        if next(numbers) % 2:
            raise Overloaded("the queue is full; come back later")
        yield Chunk(finish_reason="stop", usage=Usage(5, 1))

    answers = await run_load(LoadPlan(users=4, turns=1, images=0), EngineTarget(every_other_fails))
    summary = summarise(answers)
    assert summary.errors == {"Overloaded": 2}
    assert "queue is full" in summary.error_messages["Overloaded"]
    assert summary.completion_tokens == 2


async def test_a_whole_load_over_http_counts_the_tokens_that_the_worker_counted() -> None:
    engine = EchoEngine("echo", delay_s=0)
    try:
        async with serving(create_app(engine)) as url, HttpTarget(f"{url}/v1") as target:
            await target.open()
            assert target.model == "echo"
            answers = await run_load(LoadPlan(users=2, turns=2, max_tokens=8, image_size=(64, 64)), target)
    finally:
        await engine.aclose()
    summary = summarise(answers)
    assert summary.errors == {}
    assert summary.counted
    assert summary.completion_tokens == 2 * 2 * 8
    assert summary.image_tokens == 2 * 2 * 16
    assert summary.cached_tokens > 0
    assert set(summary.first_s) == {1, 2}


async def test_failures_over_http_keep_their_class() -> None:
    async def refuse(request: Request) -> AsyncGenerator[Chunk]:
        raise Overloaded("the queue is full", retry_after=1)
        yield

    async with serving(create_app(ScriptedEngine(refuse))) as url, HttpTarget(url, "m") as target:
        refused = await run_load(LoadPlan(users=1, turns=1, images=0), target)
    async with HttpTarget(url, "m") as target:
        gone = await run_load(LoadPlan(users=1, turns=1, images=0), target)
    assert [answer.error for answer in refused + gone] == ["Overloaded", "NoWorker"]


async def test_a_model_that_is_not_served_is_refused_with_those_that_are() -> None:
    async with serving(create_app(ScriptedEngine())) as url, HttpTarget(url, "other") as target:
        with pytest.raises(UnknownModel, match="'other'; it serves: m"):
            await target.open()


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://x:port", "http://x:99999"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BadRequest, match="is no address"):
        check_url(url)


def test_an_address_may_end_with_v1() -> None:
    assert check_url("http://x:1/v1/") == check_url("http://x:1") == "http://x:1"


@pytest.mark.parametrize("size", ["", "64", "64x", "x64", "-1x5", "0x5", "99999x99999"])
def test_sizes_that_cannot_be_drawn_are_refused(size: str) -> None:
    with pytest.raises(BadRequest, match="--image-size"):
        LoadPlan(image_size=parse_size(size))


@pytest.mark.parametrize(
    "wrong",
    [{"users": 0}, {"turns": 0}, {"duration_s": 0.0}, {"request_rate": -1.0}, {"think_time_s": float("nan")}],
)
def test_loads_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadRequest):
        LoadPlan(**wrong)  # pyright: ignore[reportArgumentType]


def test_the_same_seed_says_and_draws_the_same_and_the_next_load_something_else() -> None:
    plan = LoadPlan(image_size=(40, 40))
    assert write_script(plan, 3) == write_script(plan, 3)
    assert write_script(plan, 3).questions != write_script(plan.after(1), 3).questions
    first, second = (
        " ".join(part.text for part in question if isinstance(part, TextPart)).strip("?").split()
        for question in write_script(plan, 3).questions[:2]
    )
    assert first != second
    assert sorted(first) == sorted(second), "turns are compared, so their questions must be equally long"
    assert draw_picture((40, 40), "a") != draw_picture((40, 40), "b")


def test_medians_and_tails_come_out_of_known_answers() -> None:
    answers = [
        Answer(chat=n, turn=1, started_s=0, total_s=2, first_s=n / 100, gaps_s=(0.5, 0.5), completion_tokens=3)
        for n in range(1, 101)
    ]
    summary = summarise(answers)
    assert summary.first_s[1] == Spread(p50=0.505, p95=0.96, count=100)
    assert summary.tokens_per_s == 150
    assert figures(summary)["between tokens, ms, p50"] == 500


def test_a_load_without_any_whole_answer_has_a_summary_too() -> None:
    summary = summarise([Answer(chat=1, turn=1, started_s=0, total_s=1, error="NoWorker", message="gone")])
    assert summary.tokens_per_s == 0
    assert summary.errors == {"NoWorker": 1}
    assert figures(summary) == {"tokens/s": 0}


def test_a_report_read_back_from_its_file_is_the_same(tmp_path: Path) -> None:
    answers = (Answer(1, 1, 0.0, 1.0, 0.5, (0.25, 0.25), 30, 5, 16, 3, text="a b c"),)
    head = Head("python -m serve.bench load URL", this_machine(torch_threads=2), "today")
    report = LoadReport(head, "http://x", "m", LoadPlan(image_size=(10, 20)), summarise(answers), answers)
    write_json(tmp_path / "r.json", report)
    assert read_json(tmp_path / "r.json", LoadReport) == report


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(BadRequest, match="holds no LoadReport"):
        read_json(tmp_path / "x.json", LoadReport)


def test_a_key_does_not_get_into_the_recorded_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "load", "--api-key", "sk-1", "--api-key=sk-2", "--seed", "3"])
    assert this_command() == "python -m serve.bench load --api-key … … --seed 3"


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match="pip install matplotlib"):
        reports.check_plot(tmp_path / "x.png")


def test_the_plot_shows_errors_by_class_beside_the_figures_of_whole_answers(tmp_path: Path) -> None:
    good = Answer(1, 1, 0.0, 1.0, 0.5, (0.25, 0.25), 30, 5, 16, 3)
    refused, lost = (Answer(2, 1, 0.0, 1.0, error=error) for error in ("Overloaded", "NoWorker"))
    both = [reports.Series("a", [good, refused, refused, lost]), reports.Series("b", [good])]
    errors = reports.draw(both, "title").axes[3]
    assert [label.get_text() for label in errors.get_xticklabels()] == ["NoWorker", "Overloaded"]
    assert [[bar.get_height() for bar in bars] for bars in errors.containers] == [[1, 2], [0, 0]]
    assert errors.get_legend_handles_labels()[1] == ["a: 3 of 4", "b: 0 of 1"]
    reports.write_plot(tmp_path / "x.png", [both[1]], "title")
    assert (tmp_path / "x.png").stat().st_size > 0
    alone = reports.draw([both[1]], "title")
    assert [text.get_text() for text in alone.axes[3].texts] == ["no errors"]
    assert [len(axes.lines) for axes in alone.axes[:3]] == [2, 1, 1]


def test_a_file_in_no_folder_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["load", "http://127.0.0.1:1", "--json", str(tmp_path / "no" / "x.json")])
    assert isinstance(result.exception, BadRequest)
    assert "no such folder" in result.exception.message
