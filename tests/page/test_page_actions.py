"""From the browser's messages to rooms: whose chat it is, what is refused, what is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_core.config import ImageLimits
from llava_core.engines.echo import EchoEngine
from llava_core.errors import BadRequest, Unauthorized
from serve.page.actions import Rooms
from serve.page.examples import Example
from serve.page.feedback import Feedback
from serve.page.pictures import PictureDesk
from serve.page.room import RoomTimings
from tests.page import sources
from tests.page.sources import EchoSource

QUICK = RoomTimings(update_s=0.001, grace_s=0.02)
MINE, YOURS = "m" * 32, "y" * 32


@pytest.fixture
async def source() -> AsyncIterator[EchoSource]:
    made = EchoSource(EchoEngine("echo", delay_s=0.0005), EchoEngine("slow", delay_s=0.2))
    yield made
    for engine in made.engines.values():
        await engine.aclose()


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


@pytest.fixture
async def rooms(source: EchoSource, uploads: Path, tmp_path: Path) -> AsyncIterator[Rooms]:
    example = tmp_path / "example.png"
    Image.new("RGB", (40, 30)).save(example)
    desk = PictureDesk(
        uploads, (Example("example.png", example, "An example", ("What?",)),), ImageLimits(max_bytes=50_000)
    )
    made = Rooms(source, desk, Feedback(tmp_path / "feedback.jsonl"), QUICK)
    yield made
    await made.aclose()


def picture(folder: Path, name: str, size: tuple[int, int]) -> dict[str, str]:
    Image.new("RGB", size, "teal").save(folder / name)
    return {"path": str(folder / name), "name": name}


async def act(rooms: Rooms, do: str, room: str = MINE, **more: Any) -> dict[str, Any]:
    view: dict[str, Any] = {}
    async with asyncio.timeout(60):
        async for shown in sources.act(rooms, {"do": do, "room": room, **more}):
            view = shown
    return view


def kept_in(folder: Path) -> list[Path]:
    return list(folder.glob("*.jsonl"))


def said(view: dict[str, Any]) -> str:
    return view["turns"][-1]["answer"]["text"]


async def test_three_turns_about_one_picture_then_a_second_are_all_in_context(rooms: Rooms, uploads: Path) -> None:
    await act(rooms, "ask", text="What is it?", pictures=[picture(uploads, "a.png", (64, 48))], model="echo")
    await act(rooms, "ask", text="Its colour?", model="echo")
    await act(rooms, "ask", text="Its mood?", model="echo")
    view = await act(rooms, "ask", text="And this?", pictures=[picture(uploads, "b.png", (20, 10))], model="echo")
    reply = said(view)
    assert reply.startswith("I received 7 turns and 2 images.")
    assert "1. user: 1 image (64x48)" in reply
    assert "7. user: 1 image (20x10)" in reply
    figures = view["turns"][-1]["answer"]["figures"]
    assert figures["image_tokens"] == 32
    assert figures["cached_tokens"] > 0


async def test_two_people_do_not_see_each_others_chats(rooms: Rooms, source: EchoSource) -> None:
    await act(rooms, "ask", MINE, text="mine", model="echo")
    view = await act(rooms, "ask", YOURS, text="yours", model="echo")
    assert [turn["text"] for turn in view["turns"]] == ["yours"]
    assert source.requests[0].owner != source.requests[1].owner


@pytest.mark.parametrize("secret", ["", "short", "../../etc/passwd-and-more-of-it", None, 7])
async def test_a_room_without_a_proper_secret_is_refused(rooms: Rooms, secret: Any) -> None:
    with pytest.raises(BadRequest, match="reload"):
        await act(rooms, "open", secret)


async def test_a_file_outside_the_uploads_is_never_read(rooms: Rooms, tmp_path: Path, source: EchoSource) -> None:
    Image.new("RGB", (5, 5)).save(tmp_path / "private.png")
    for path in (str(tmp_path / "private.png"), "/etc/passwd", f"{tmp_path}/uploads/../private.png", ""):
        view = await act(rooms, "ask", text="x", pictures=[{"path": path, "name": "x.png"}], model="echo")
        assert view["turns"][-1]["answer"]["notice"]["code"] == "BadImage"
    assert source.requests == []


async def test_an_example_is_known_by_its_file_name_only(rooms: Rooms) -> None:
    view = await act(rooms, "ask", text="What?", pictures=[{"example": "example.png"}], model="echo")
    assert "1 image (40x30)" in said(view)
    (shown,) = view["turns"][0]["pictures"]
    assert shown["url"] == "examples/example.png"
    assert "path" not in shown
    view = await act(rooms, "ask", text="x", pictures=[{"example": "../example.png"}], model="echo")
    assert view["turns"][-1]["answer"]["notice"]["code"] == "BadImage"


async def test_a_picture_over_the_limit_is_refused_by_name_and_size(rooms: Rooms, uploads: Path) -> None:
    (uploads / "big.png").write_bytes(b"x" * 60_000)
    view = await act(
        rooms, "ask", text="x", pictures=[{"path": str(uploads / "big.png"), "name": "big.png"}], model="echo"
    )
    notice = view["turns"][-1]["answer"]["notice"]
    assert "big.png" in notice["message"]
    assert "larger than" in notice["message"]
    assert notice["retry"] is False


async def test_html_named_png_is_a_notice_and_the_next_question_works(rooms: Rooms, uploads: Path) -> None:
    (uploads / "page.png").write_text("<html></html>")
    view = await act(
        rooms, "ask", text="x", pictures=[{"path": str(uploads / "page.png"), "name": "page.png"}], model="echo"
    )
    answer = view["turns"][-1]["answer"]
    assert (answer["state"], answer["notice"]["code"], answer["text"]) == ("failed", "BadImage", "")
    assert said(await act(rooms, "ask", text="still there?", model="echo")).startswith(
        "I received 1 turn and 0 images."
    )


@pytest.mark.parametrize(
    "settings",
    [{"temperature": "NaN"}, {"temperature": 7}, {"top_p": -1}, {"max_tokens": 0}, {"seed": "x"}, {"max_tokens": [1]}],
)
async def test_a_setting_out_of_range_is_a_notice(rooms: Rooms, source: EchoSource, settings: dict[str, Any]) -> None:
    view = await act(rooms, "ask", text="x", model="echo", settings=settings)
    assert view["turns"][-1]["answer"]["notice"]["code"] == "BadRequest"
    assert source.requests == []


async def test_settings_reach_the_model(rooms: Rooms, source: EchoSource) -> None:
    settings = {"temperature": 0, "top_p": 0.5, "max_tokens": 64, "seed": "11", "system": "Be brief."}
    view = await act(rooms, "ask", text="x", model="echo", settings=settings)
    sampling = source.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed) == (0, 0.5, 64, 11)
    assert "System prompt: Be brief." in said(view)


async def test_without_settings_the_originals_defaults_apply(rooms: Rooms, source: EchoSource) -> None:
    await act(rooms, "ask", text="x", model="echo")
    sampling = source.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed) == (0.2, 0.7, 512, None)


async def test_an_unknown_model_is_a_notice_with_retry_on_another(rooms: Rooms) -> None:
    view = await act(rooms, "ask", text="x", model="gone")
    assert view["turns"][-1]["answer"]["notice"]["code"] == "UnknownModel"
    assert said(await act(rooms, "retry", model="echo")).startswith("I received 1 turn")


async def test_retry_edit_undo_and_restore(rooms: Rooms) -> None:
    await act(rooms, "ask", text="one", model="echo")
    view = await act(rooms, "retry", model="echo")
    assert (view["turns"][0]["answers"], view["turns"][0]["shown"]) == (2, 1)
    view = await act(rooms, "show", turn=view["turns"][0]["id"], shown=0)
    assert view["turns"][0]["shown"] == 0
    view = await act(rooms, "edit", turn=view["turns"][0]["id"], text="uno", model="echo")
    assert [turn["text"] for turn in view["turns"]] == ["uno"]
    assert (view["turns"][0]["wording"], view["turns"][0]["wordings"]) == (1, 2)
    view = await act(rooms, "show wording", turn=view["turns"][0]["id"], shown=0)
    assert [turn["text"] for turn in view["turns"]] == ["one"]
    view = await act(rooms, "undo")
    assert view["restorable"]
    assert (await act(rooms, "restore"))["turns"][0]["text"] == "one"


async def test_stop_comes_through_while_the_answer_streams(rooms: Rooms) -> None:
    views = sources.act(rooms, {"do": "ask", "room": MINE, "text": "a b c d e f", "model": "slow"}, "one")
    async with asyncio.timeout(60):
        async for view in views:
            if view["turns"] and view["turns"][-1]["answer"]["blocks"]:
                break
        stopped = await act(rooms, "stop")
    assert stopped["turns"][-1]["answer"]["state"] == "stopped"
    assert said(stopped) != ""


async def test_ratings_are_kept_with_what_they_are_about(rooms: Rooms, uploads: Path, tmp_path: Path) -> None:
    await act(rooms, "ask", text="one", pictures=[picture(uploads, "a.png", (9, 9))], model="echo")
    view = await act(rooms, "ask", text="two", model="echo")
    answer = view["turns"][-1]["answer"]["id"]
    view = await act(rooms, "rate", answer=answer, rating="dislike", flagged=True)
    assert view["turns"][-1]["answer"]["rating"] == "dislike"
    (line,) = (tmp_path / "feedback.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["rating"], record["flagged"], record["model"], record["question"]) == (
        "dislike",
        True,
        "echo",
        "two",
    )
    assert record["before"][0]["question"] == "one"
    assert MINE not in line
    await act(rooms, "ask", YOURS, text="theirs", model="echo")
    await act(rooms, "rate", YOURS, answer="a1", rating="like")
    await rooms.forget_ratings([MINE])
    (line,) = (tmp_path / "feedback.jsonl").read_text().splitlines()
    assert json.loads(line)["question"] == "theirs"


async def test_ratings_are_kept_nowhere_unless_asked_for(source: EchoSource, uploads: Path, tmp_path: Path) -> None:
    rooms = Rooms(source, PictureDesk(uploads), Feedback(None), QUICK)
    view = await act(rooms, "ask", text="one", model="echo")
    view = await act(rooms, "rate", answer=view["turns"][0]["answer"]["id"], rating="like")
    assert view["turns"][0]["answer"]["rating"] == "like"
    assert kept_in(tmp_path) == []


async def test_an_export_can_be_sent_to_the_api_as_it_is(rooms: Rooms, uploads: Path) -> None:
    await act(rooms, "ask", text="What is it?", pictures=[picture(uploads, "a.png", (9, 9))], model="echo")
    await act(rooms, "ask", text="x", model="gone")
    document = json.loads(await rooms.export({"room": MINE, "kind": "json"}))
    roles = [message["role"] for message in document["messages"]]
    assert roles == ["user", "assistant", "user"]
    first = document["messages"][0]["content"]
    assert first[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert first[1] == {"type": "text", "text": "What is it?"}
    assert document["turns"][1]["answers"][0]["notice"]["code"] == "UnknownModel"
    assert str(uploads) not in json.dumps(document)


async def test_an_export_as_markdown_reads_well_and_holds_the_picture(rooms: Rooms, uploads: Path) -> None:
    await act(rooms, "ask", text="What is it?", pictures=[picture(uploads, "a.png", (9, 9))], model="echo")
    text = await rooms.export({"room": MINE, "kind": "markdown"})
    assert "## Question\n\n![a.png][picture-1]\n\nWhat is it?\n\n## echo\n" in text
    assert text.rstrip().splitlines()[-1].startswith("[picture-1]: data:image/png;base64,")


async def test_the_longest_unused_chat_is_forgotten_first(source: EchoSource, uploads: Path) -> None:
    rooms = Rooms(source, PictureDesk(uploads), Feedback(None), QUICK, most=2)
    for letter in "abc":
        await act(rooms, "ask", letter * 32, text=letter, model="echo")
    assert (await act(rooms, "open", "c" * 32))["turns"][0]["text"] == "c"
    assert (await act(rooms, "open", "a" * 32))["turns"] == []


async def test_rooms_that_somebody_only_makes_up_push_no_chat_out(source: EchoSource, uploads: Path) -> None:
    rooms = Rooms(source, PictureDesk(uploads), Feedback(None), QUICK, most=3)
    for letter in "ab":
        await act(rooms, "ask", letter * 32, text=letter, model="echo")
    for number in range(20):
        await act(rooms, "open", f"made-up-{number:024}")
    for letter in "ab":
        assert (await act(rooms, "open", letter * 32))["turns"][0]["text"] == letter


async def test_an_empty_question_is_refused(rooms: Rooms, source: EchoSource) -> None:
    view = await act(rooms, "ask", text="   ", model="echo")
    assert view["turns"][-1]["answer"]["notice"]["code"] == "BadRequest"
    assert source.requests == []


async def test_the_view_holds_no_path_but_what_the_browser_sent(rooms: Rooms, uploads: Path) -> None:
    view = await act(rooms, "ask", text="x", pictures=[picture(uploads, "a b.png", (9, 9))], model="echo")
    (shown,) = view["turns"][0]["pictures"]
    assert shown["url"] == f"gradio_api/file={uploads}/a%20b.png"
    assert json.loads(json.dumps(view)) == view


async def test_another_model_joins_with_the_conversation_so_far_and_a_copy_goes_its_own_way(
    rooms: Rooms, uploads: Path
) -> None:
    me = {"owner": "o" * 32}
    new, copy = "n" * 32, "c" * 32
    await act(rooms, "ask", text="What?", pictures=[picture(uploads, "a.png", (64, 48))], model="echo", **me)
    await act(rooms, "ask", text="And?", model="echo", **me)
    joined = await act(rooms, "join", new, model="echo", **{**me, "from": MINE})
    assert said(joined).startswith("I received 3 turns and 1 image.")
    copied = await act(rooms, "copy", copy, **{**me, "from": MINE})
    assert [turn["text"] for turn in copied["turns"]] == ["What?", "And?"]
    await act(rooms, "ask", copy, text="Only here", model="echo", **me)
    assert len((await act(rooms, "open", **me))["turns"]) == 2
    with pytest.raises(Unauthorized):
        await act(rooms, "copy", "d" * 32, owner="y" * 32, **{"from": MINE})
    with pytest.raises(BadRequest, match="from itself"):
        await act(rooms, "join", **{**me, "from": MINE})
