"""The command line's chat without its terminal: turns, typed lines, figures, saved files."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from llava_core.chat_protocol import read_call
from llava_core.engines.echo import EchoEngine
from llava_core.errors import BadImage, BadRequest, LlavaError, UnknownModel, WorkerLost
from llava_core.types import Chunk, ImagePart, Request, Usage, assistant, system, user
from serve.terminal.answer import Answer, figures, harmless, stream_answer
from serve.terminal.chat import Chat, Picture, read_picture
from serve.terminal.prompt import Entry, read_entry
from serve.terminal.save import save, to_json
from serve.terminal.source import LocalSource, choose_model

CAT = Picture("cat.png", ImagePart("data:image/png;base64,Y2F0"))
DOG = Picture("dog.png", ImagePart("data:image/png;base64,ZG9n"))


def test_attached_pictures_go_with_the_next_question_only() -> None:
    chat = Chat(system="Be brief.", attached=[CAT, DOG])
    assert chat.ask("Which is older?") == [system("Be brief."), user(CAT.part, DOG.part, "Which is older?")]
    chat.keep_answer("The dog.", "m")
    assert chat.ask("Why?")[2:] == [assistant("The dog."), user("Why?")]


def test_a_question_that_failed_is_not_sent_with_the_next_one() -> None:
    chat = Chat(attached=[CAT])
    chat.ask("lost")
    assert chat.ask("next") == [user("next")]


def test_asking_again_sends_the_last_question_with_its_pictures_and_without_its_answer() -> None:
    chat = Chat(attached=[CAT])
    asked = chat.ask("What is it?")
    chat.keep_answer("A fish.", "m")
    assert chat.ask_again() == asked
    with pytest.raises(BadRequest, match="nothing to ask again"):
        Chat().ask_again()


def test_a_new_chat_forgets_turns_and_pictures_but_not_the_system_prompt() -> None:
    chat = Chat(system="Be brief.")
    chat.ask("one")
    chat.keep_answer("1", "m")
    chat.attached.append(CAT)
    chat.reset()
    assert chat.ask("two") == [system("Be brief."), user("two")]


def test_a_saved_chat_can_be_posted_again_and_its_markdown_holds_the_pictures(tmp_path: Path) -> None:
    chat = Chat(system="Be brief.", attached=[CAT])
    chat.ask("What is it?")
    chat.keep_answer("A cat.", "llava")
    chat.ask("Sure?")
    read = read_call(to_json(chat, "llava").encode())
    assert (read.request.model, list(read.request.messages)) == ("llava", chat.messages())
    save(chat, "llava", tmp_path / "chat.md")
    text = (tmp_path / "chat.md").read_text()
    assert text.index("What is it?") < text.index("## llava") < text.index("A cat.") < text.index(CAT.part.url)
    assert "![cat.png][picture-1]" in text
    save(chat, "llava", tmp_path / "chat.json")
    assert json.loads((tmp_path / "chat.json").read_text())["model"] == "llava"


@pytest.mark.parametrize("name", ["chat", "chat.txt", "no-such-folder/chat.md"])
def test_a_chat_that_cannot_be_saved_says_why(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadRequest, match=r"\.json or \.md|cannot write"):
        save(Chat(), "m", tmp_path / name)


def test_typed_lines_are_commands_questions_or_dropped_files(tmp_path: Path) -> None:
    file = tmp_path / "my cat.png"
    file.write_bytes(b"")
    assert read_entry("/image  my cat.png ") == Entry("my cat.png", "/image")
    assert read_entry(f"/image '{file}'") == Entry(str(file), "/image")
    assert read_entry('/system ""') == Entry('""', "/system")
    assert read_entry('/system It\'s you, "sir".') == Entry('It\'s you, "sir".', "/system")
    assert read_entry("/quit") == Entry("", "/quit")
    assert read_entry("/qiut now") == Entry("", "/qiut")
    assert read_entry(f"'{file}' What is this?") == Entry("What is this?", dropped=(str(file),))
    assert read_entry(str(file).replace(" ", "\\ ")) == Entry("", dropped=(str(file),))
    for question in ("What is /etc?", "'tis what?", '"Hello" means?', "~ or -?", "/a/b is what?", "1/2?"):
        assert read_entry(question) == Entry(question)


def test_a_picture_is_read_and_typed_by_what_it_is(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "photo.dat", "JPEG")
    picture = read_picture(str(tmp_path / "photo.dat"))
    assert (picture.name, picture.part.url[:23]) == ("photo.dat", "data:image/jpeg;base64,")
    assert read_picture("https://example.org/a.png").part.url == "https://example.org/a.png"
    with pytest.raises(BadImage, match=r"nowhere\.png"):
        read_picture(str(tmp_path / "nowhere.png"))


def test_figures_tell_speed_and_counts() -> None:
    answer = Answer("…", "stop", Usage(600, 11, 576, 20), first_token_s=0.5, took_s=2.5)
    assert figures(answer) == "first token 0.50 s · 5.0 tokens/s · 11 tokens · prompt 600 (576 of images, 20 cached)"
    cut = figures(Answer("a", "length", Usage(3, 1), 0.1, 0.1))
    assert cut == "first token 0.10 s · 1 token · prompt 3 · cut off at the token limit"
    assert figures(Answer()) == ""


def test_text_cannot_command_the_terminal() -> None:
    assert harmless("a\x1b]0;title\x07b\x9b2J\r\tc\n\x00é€") == "a]0;titleb2J\tc\né€"


async def test_an_answer_keeps_what_came_before_it_broke_off() -> None:
    answer, written = Answer(), list[str]()
    engine = LocalSource(EchoEngine("echo", delay_s=0, fail_after=3))
    with pytest.raises(LlavaError):
        await stream_answer(engine, Request("echo", (user("Hello there"),)), answer, written.append)
    assert answer.text == "".join(written) == "I received 1 "
    await engine.aclose()


async def test_a_stream_without_a_finish_is_an_error() -> None:
    class Cut(LocalSource):
        async def _chunks(self) -> AsyncIterator[Chunk]:
            yield Chunk("half")

        def stream(self, request: Request) -> AsyncIterator[Chunk]:
            return self._chunks()

    source = Cut(EchoEngine("echo"))
    with pytest.raises(WorkerLost, match="broke off"):
        await stream_answer(source, Request("echo", (user("Hello"),)), Answer(), lambda text: None)
    await source.aclose()


async def test_an_unknown_model_is_answered_with_those_there_are() -> None:
    source = LocalSource(EchoEngine("echo"))
    with pytest.raises(UnknownModel, match="'gpt'; running: echo"):
        await choose_model(source, "gpt")
    chosen, _ = await choose_model(source, None)
    assert chosen.name == "echo"
    await source.aclose()
