"""The command line as people run it: in a pipe, and in a terminal with its keys, against a real worker."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CLI = (sys.executable, "-m", "serve.cli")
PATIENCE_S = 60


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a worker without a controller that echoes, slowly enough to be stopped."""
    log = tmp_path_factory.mktemp("worker") / "log"
    command = [sys.executable, "-m", "serve.model_worker", "--no-register", "--port", "0", "--engine", "echo"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--model-name", "parrot", "--echo-delay", "0.02"], cwd=ROOT, stdout=sink, stderr=sink
        )
    try:
        address = None
        while address is None or "ready: " not in log.read_text():
            assert process.poll() is None, log.read_text()
            address = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        yield address.group()
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "my picture.png"
    Image.new("RGB", (64, 32), "teal").save(file)
    return file


def run(*arguments: str, piped: str | None = None) -> subprocess.CompletedProcess[str]:
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if piped is None else {"input": piped}
    return subprocess.run([*CLI, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, **given)


class Person:
    """Somebody at a terminal."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.seen = io.StringIO()
        self._child = pexpect.spawn(
            CLI[0],
            [*CLI[1:], *arguments],
            cwd=str(cwd),
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "NO_COLOR": "1", "PROMPT_TOOLKIT_NO_CPR": "1"},
            encoding="utf-8",
            timeout=PATIENCE_S,
            dimensions=(40, 160),
        )
        self._child.logfile_read = self.seen
        self.sees("›")

    def types(self, line: str) -> None:
        self._child.send(line + "\r")

    def presses(self, letter: str, *, at_prompt: bool = True) -> None:
        """Ctrl and the letter. At the prompt means once it is there: before, the key would be the terminal's own."""
        if at_prompt:
            self.sees("›")
        self._child.sendcontrol(letter)

    def interrupts(self) -> None:
        self._child.kill(signal.SIGINT)

    def sees(self, pattern: str) -> str:
        self._child.expect(pattern)
        return self._child.match.group()

    def leaves(self) -> int:
        self._child.expect(pexpect.EOF)
        self._child.close()
        return self._child.exitstatus


@pytest.fixture
def person(worker: str, tmp_path: Path) -> Iterator[Person]:
    somebody = Person("--controller", worker, cwd=tmp_path)
    yield somebody
    somebody._child.close(force=True)


def test_one_question_with_a_picture_prints_only_the_answer(worker: str, picture: Path) -> None:
    ran = run("--controller", worker, "--image", str(picture), "--image", str(picture), "--prompt", "What is it?")
    assert ran.returncode == 0, ran.stderr
    assert "1. user: 2 images (64x32, 64x32), 3 words" in ran.stdout
    assert ran.stdout.endswith("You said: What is it?\n")
    assert ran.stderr == ""


@pytest.mark.parametrize("arguments", [(), ("--prompt", "-")])
def test_a_question_can_be_piped_in(worker: str, arguments: tuple[str, ...]) -> None:
    ran = run("--controller", worker, "--system", "Be brief.", *arguments, piped="Piped words\n")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "System prompt: Be brief." in ran.stdout
    assert ran.stdout.endswith("You said: Piped words\n")


def test_an_answer_that_was_cut_off_says_so_beside_the_answer(worker: str) -> None:
    ran = run("--controller", worker, "--prompt", "Hello", "--max-tokens", "2")
    assert (ran.returncode, ran.stdout) == (0, "I received \n")
    assert "cut off at the token limit" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--prompt", "x", "--model", "gpt"), 2, "no worker serves 'gpt'; running: parrot"),
        (("--prompt", " "), 2, "the prompt is empty"),
        (("--prompt", "x", "--image", "nowhere.png"), 2, "nowhere.png"),
        (("--prompt", "x", "--temperature", "nan"), 2, "temperature must be between"),
        (("--prompt", "x", "--controller", "http://127.0.0.1:9"), 1, "cannot be reached"),
        (("--prompt", "x", "--local", "/nowhere/at/all"), 2, "/nowhere/at/all"),
    ],
)
def test_what_goes_wrong_is_one_sentence_on_stderr_and_an_exit_code(
    worker: str, arguments: tuple[str, ...], code: int, words: str
) -> None:
    ran = run("--controller", worker, *arguments)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert words in ran.stderr
    assert ran.stderr.startswith("error: ")
    assert "Traceback" not in ran.stderr


def test_a_broken_picture_is_refused_by_the_worker_s_sentence(worker: str, tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<html>")
    ran = run("--controller", worker, "--prompt", "x", "--image", str(tmp_path / "page.png"))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")


def test_a_reader_who_stops_reading_does_not_make_it_complain(worker: str) -> None:
    command = f"{CLI[0]} -m serve.cli --controller {worker} --prompt 'Hello there' | head -c 5"
    ran = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (ran.stdout, ran.stderr) == ("I rec", "")


def test_a_chat_over_several_turns_with_pictures_and_a_saved_file(
    person: Person, picture: Path, tmp_path: Path
) -> None:
    person.types(f"/image {picture}")
    person.sees("my picture.png goes with the next question")
    person.types("/system Be brief.")
    person.sees("system prompt: Be brief.")
    person.types("What is it?")
    person.sees("1 image \\(64x32\\)")
    person.sees("first token [0-9.]+ s .* tokens/s .* prompt [0-9]+ \\(16 of images")
    person.types("And now?")
    person.sees("I received 3 turns and 1 image")
    person.sees("You said: And now\\?")
    person.sees("first token")
    person.types("/save chat.json")
    person.sees("saved to chat.json")
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    person.types("/reset")
    person.sees("new chat")
    person.types("/retry")
    person.sees("nothing to ask again")
    person.types("Fresh")
    person.sees("I received 1 turn and no image|I received 1 turn and 0 images")
    person.types("/quit")
    assert person.leaves() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(person: Person) -> None:
    person.types("one two three four five six seven eight nine ten " * 20)
    person.sees("You said: one")
    person.interrupts()
    person.sees("stopped; /retry asks again")
    person.types("Are you there?")
    person.sees("I received 3 turns")
    person.sees("You said: Are you there\\?")
    person.sees("first token")
    person.presses("c")
    person.sees("Ctrl-C again, or Ctrl-D, leaves")
    person.types("Still there?")
    person.sees("You said: Still there\\?")
    person.sees("first token")
    person.presses("c")
    person.sees("leaves")
    person.presses("c")
    assert person.leaves() == 0


def test_ctrl_c_typed_during_an_answer_stops_it(person: Person) -> None:
    person.types("one two three four five six seven eight nine ten " * 20)
    person.sees("You said: one")
    person.presses("c", at_prompt=False)
    person.sees("stopped; /retry asks again")
    person.presses("d")
    assert person.leaves() == 0


def test_commands_models_and_mistakes_are_answered_in_words(person: Person) -> None:
    person.types("/help")
    person.sees("/retry .*ask the last question again")
    person.types("/model")
    person.sees("› parrot.*  echo: no model")
    person.types("/model gpt")
    person.sees("error: no worker serves 'gpt'; running: parrot")
    person.types("/qiut")
    person.sees("there is no command /qiut; /help")
    person.types("/image nowhere.png")
    person.sees("error: cannot read nowhere.png")
    person.types("/save chat.txt")
    person.sees("end the name in .json or .md")
    person.presses("d")
    assert person.leaves() == 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from llava_core.checkpoints.tiny import build_tiny

    return build_tiny("llava", tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.mark.slow
def test_a_checkpoint_answers_without_any_server(checkpoint: Path, picture: Path) -> None:
    question = ("--image", str(picture), "--prompt", "Hi", "--max-tokens", "8")
    ran = run("--local", str(checkpoint), *question)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_ctrl_c_while_a_checkpoint_loads_ends_it_at_once(checkpoint: Path) -> None:
    command = [*CLI, "--local", str(checkpoint), "--prompt", "Hi"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while "libtorch_cpu" not in maps.read_text():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
