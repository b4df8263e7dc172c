"""What the operator records of ratings goes with the chat, with the browser, and with time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from serve.page.feedback import Feedback
from serve.page.session import Answer, Chat, Turn

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@dataclass
class Recorder:
    """Ratings as they are recorded, at any time."""

    path: Path
    now: datetime = NOON

    def feedback(self, keep_days: int = 0) -> Feedback:
        return Feedback(self.path, keep_days, lambda: self.now)

    async def rate(self, room: str, owner: str, said: str = "yes") -> None:
        turn = Turn("t1", room, (), (Answer("a1", "echo", "done", said, rating="like"),))
        await self.feedback().keep(room, owner, Chat((turn,)), turn, turn.answer)

    def questions(self) -> list[str]:
        with self.path.open(encoding="utf-8", newline="\n") as file:
            return [json.loads(line)["question"] for line in file]


async def test_all_that_a_browser_rated_is_taken_out_whatever_became_of_its_chats(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "feedback.jsonl")
    for room, owner in (("one", "me"), ("two", "me"), ("three", "you")):
        await recorder.rate(room, owner, "a\u2028b\x85c")
    assert "me" not in recorder.path.read_text().split('"by": "')[1][:24]
    await recorder.feedback().forget([], "me")
    assert recorder.questions() == ["three"]
    await recorder.feedback().forget(["three"])
    assert recorder.questions() == []


async def test_what_is_older_than_it_is_kept_goes_and_so_does_a_line_that_was_cut_off(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "feedback.jsonl")
    recorder.feedback(7).expire()
    assert not recorder.path.exists()
    await recorder.rate("old", "me")
    recorder.now += timedelta(days=4)
    await recorder.rate("new", "me")
    recorder.now += timedelta(days=4)
    recorder.feedback().expire()
    assert recorder.questions() == ["old", "new"]
    with recorder.path.open("a") as file:
        file.write('{"time": "2026-05-0')
    recorder.feedback(7).expire()
    assert recorder.questions() == ["new"]
    assert "after 7 days" in recorder.feedback(7).promise
    assert "days" not in recorder.feedback().promise


async def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "feedback.jsonl")
    await recorder.rate("mine", "me")
    await recorder.rate("yours", "you", "half a sign: \ud83d")
    recorder.path.write_bytes(recorder.path.read_bytes()[:-40])
    await recorder.rate("theirs", "them")
    whole, cut, after = recorder.path.read_text().splitlines()
    assert [json.loads(line)["question"] for line in (whole, after)] == ["mine", "theirs"]
    assert "yours" in cut
    await recorder.feedback().forget(["yours"])
    assert recorder.questions() == ["mine", "theirs"]
