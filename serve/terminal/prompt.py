"""The line a person types: slash commands, dropped files, keys and completion."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent


@dataclass(frozen=True)
class Command:
    name: str
    argument: str
    meaning: str


COMMANDS = (
    Command("/image", "FILE", "attach a picture to the next question; again for more"),
    Command("/system", "[TEXT]", 'set the system prompt; "" removes it, nothing shows it'),
    Command("/model", "[NAME]", "change the model, or list those there are"),
    Command("/retry", "", "ask the last question again"),
    Command("/reset", "", "start a new chat; the system prompt stays"),
    Command("/save", "FILE", "write the chat to FILE.json or FILE.md"),
    Command("/help", "", "show this"),
    Command("/quit", "", "leave; so do Ctrl-D and Ctrl-C twice"),
)


@dataclass(frozen=True)
class Entry:
    """What was typed: a command with its argument, or a question with files dropped in front of it."""

    text: str
    command: str = ""
    dropped: tuple[str, ...] = ()


def read_entry(line: str) -> Entry:
    """A terminal into which a file is dragged types its path, quoted; such paths count as pictures to attach."""
    line = line.strip()
    first, _, rest = line.partition(" ")
    if first.startswith("/") and first in {command.name for command in COMMANDS} | {"/exit"}:
        argument = rest.strip()
        return Entry(_unquoted(argument) if first in ("/image", "/save") else argument, first)
    if not line.startswith(("/", "~", "'", '"')):
        return Entry(line)
    path, text = _leading_file(line)
    if path:
        return Entry(text, dropped=(path,))
    return Entry("", first) if first.startswith("/") and "/" not in first[1:] else Entry(line)


def make_session(model_names: Callable[[], Sequence[str]]) -> PromptSession[str]:
    """A prompt of one or several lines with the commands completed by Tab."""
    return PromptSession(
        multiline=True,
        key_bindings=_keys(),
        completer=_CommandCompleter(model_names),
        complete_while_typing=False,
        prompt_continuation="  ",
    )


def _leading_file(line: str) -> tuple[str, str]:
    """The file named at the beginning and what follows it; empty strings where there is none."""
    stream = io.StringIO(line)
    lexer = shlex.shlex(stream, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        path = lexer.get_token() or ""
    except ValueError:
        return "", ""
    rest = stream.read()
    return (path, rest.strip()) if path and Path(path).expanduser().is_file() else ("", "")


def _unquoted(argument: str) -> str:
    """A file name as it is on disk: quoted or with escaped spaces as shells write it, or just as it is."""
    if Path(argument).expanduser().exists():
        return argument
    try:
        words = shlex.split(argument)
    except ValueError:
        return argument
    return words[0] if len(words) == 1 else argument


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class _CommandCompleter(Completer):
    """Commands at the beginning of the line, then what their argument is: a file or a model."""

    def __init__(self, model_names: Callable[[], Sequence[str]]) -> None:
        self._model_names = model_names
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        command, space, argument = text.partition(" ")
        if not space:
            for known in COMMANDS:
                if text.startswith("/") and known.name.startswith(text):
                    yield Completion(known.name, -len(text), display_meta=known.meaning)
        elif command == "/model":
            for name in self._model_names():
                if name.startswith(argument):
                    yield Completion(name, -len(argument))
        elif command in ("/image", "/save"):
            yield from self._paths.get_completions(Document(argument), complete_event)
