"""Everything killed in the middle of writing: what was said to be written is there, and nothing is half there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from serve.store import conversations as kept
from serve.store.battles import read_battles
from serve.store.database import Database
from serve.store.images import fetch_image
from tests.store.chats import ME

ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from llava_core.config import StoreLimits
from serve.store.battles import VotedBattle, save_battle
from serve.store.database import Database
from serve.store.keeper import Keeper
from tests.store.chats import small_chat, with_picture

keeper = Keeper(Database(sys.argv[1]), StoreLimits(pause_s=0.001))
keeper.start()
picture = Path(sys.argv[2])
for number in range(100_000):
    said = "word " * 200 + str(number)
    keeper.note("chat-1", lambda: with_picture(small_chat(said=said), picture))
    battle = VotedBattle(f"battle-{number}", "me", ("one", "two"), "a", datetime.now(UTC))
    keeper.do(lambda connection: save_battle(connection, battle)).result(60)
    print(number, flush=True)
"""


def test_a_server_killed_while_it_writes_leaves_whole_chats_and_every_vote_it_told_of(url: str, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "seen.png"
    Image.new("RGB", (40, 30), "teal").save(picture)
    command = [sys.executable, "-c", WRITER, url, str(picture)]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        told = 0
        for line in writer.stdout:
            told = int(line)
            if told == 25:
                # In the middle of whatever it does now.
                writer.send_signal(signal.SIGKILL)
                break
        rest = writer.stdout.read().split()
    told = int(rest[-1]) if rest else told
    database = Database(url)
    database.open()
    with database.reading() as connection:
        battles = {battle.id for battle in read_battles(connection)}
        found = kept.load(connection, "chat-1", ME)
        assert {f"battle-{number}" for number in range(told + 1)} <= battles
        assert found is not None
        question, answer = found.messages
        assert answer.text.startswith("word " * 200)
        assert int(answer.text.split()[-1]) <= told + 1
        assert question.pictures[0].sha256 is not None
        assert fetch_image(connection, question.pictures[0].sha256) is not None
    database.close()
