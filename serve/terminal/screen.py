"""The chat in a terminal: a prompt, streamed answers, slash commands; Ctrl-C stops the answer, not the program."""

from __future__ import annotations

import asyncio
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from prompt_toolkit.formatted_text import FormattedText
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llava_core.errors import BadRequest, LlavaError
from llava_core.types import Message, ModelInfo, Request, Sampling
from serve.terminal.answer import Answer, figures, harmless, stream_answer
from serve.terminal.chat import Chat, read_picture
from serve.terminal.prompt import COMMANDS, Entry, make_session, read_entry
from serve.terminal.save import save
from serve.terminal.source import Source, choose_model


class Terminal:
    """One chat with a person. All methods belong to one event loop."""

    def __init__(self, source: Source, model: ModelInfo, chat: Chat, sampling: Sampling) -> None:
        self._source, self._model, self._chat, self._sampling = source, model, chat, sampling
        # Nobody else's chats share what a worker remembers of this one.
        self._owner = f"cli-{uuid.uuid4().hex}"
        self._console = Console(highlight=False)
        self._names: Sequence[str] = (model.name,)
        self._answering: asyncio.Task[None] | None = None
        self._session = make_session(lambda: self._names)

    async def run(self) -> None:
        """Until the person leaves."""
        self._greet()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupted)
        interrupted = False
        try:
            while True:
                try:
                    # SIGINT is handled here, since during an answer no prompt is there to catch it.
                    line = await self._session.prompt_async(self._prompt(), handle_sigint=False)
                except KeyboardInterrupt:
                    if interrupted:
                        return
                    interrupted = True
                    self._note("Ctrl-C again, or Ctrl-D, leaves")
                    continue
                except EOFError:
                    return
                interrupted = False
                if not await self._enter(line.strip()):
                    return
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def _enter(self, line: str) -> bool:
        """Do what was typed; False to leave."""
        try:
            return await self._obey(read_entry(line))
        except LlavaError as error:
            self._error(error)
            return True

    async def _obey(self, entry: Entry) -> bool:
        match entry.command:
            case "" if entry.text:
                for name in entry.dropped:
                    await self._attach(name)
                await self._answer(self._chat.ask(entry.text))
            case "":
                for name in entry.dropped:
                    await self._attach(name)
            case "/quit" | "/exit":
                return False
            case "/help":
                self._help()
            case "/image":
                await self._attach(entry.text)
            case "/system":
                self._set_system(entry.text)
            case "/model":
                await self._change_model(entry.text)
            case "/retry":
                await self._answer(self._chat.ask_again())
            case "/reset":
                self._chat.reset()
                self._note("new chat")
            case "/save":
                await self._save(entry.text)
            case unknown:
                raise BadRequest(f"there is no command {unknown}; /help lists those there are")
        return True

    async def _answer(self, messages: Sequence[Message]) -> None:
        answer = Answer()
        request = Request(self._model.name, tuple(messages), self._sampling, owner=self._owner)
        self._answering = asyncio.create_task(stream_answer(self._source, request, answer, self._write))
        try:
            await asyncio.wait((self._answering,))
            stopped, error = self._answering.cancelled(), None
            if not stopped:
                error = self._answering.exception()
        finally:
            self._answering.cancel()
            self._answering = None
        if answer.text:
            self._chat.keep_answer(answer.text, self._model.name)
            self._write("" if answer.text.endswith("\n") else "\n")
        if stopped:
            self._note("stopped; /retry asks again")
        elif error is not None:
            raise error
        else:
            self._note(figures(answer))

    def _interrupted(self) -> None:
        """Ctrl-C: in an answer it ends the answer, at the prompt it counts as typed."""
        if self._answering is not None:
            self._answering.cancel()
        elif self._session.app.is_running:
            self._session.app.exit(exception=KeyboardInterrupt())

    async def _attach(self, argument: str) -> None:
        if not argument:
            raise BadRequest("name the picture: /image FILE")
        picture = await asyncio.to_thread(read_picture, argument)
        self._chat.attached.append(picture)
        count = len(self._chat.attached)
        self._note(f"{picture.name} goes with the next question" + (f", {count} pictures in all" if count > 1 else ""))

    def _set_system(self, argument: str) -> None:
        if argument:
            self._chat.system = "" if argument in ('""', "''") else argument
        self._note(f"system prompt: {self._chat.system}" if self._chat.system else "no system prompt")

    async def _change_model(self, argument: str) -> None:
        if argument:
            self._model, models = await choose_model(self._source, argument)
            self._names = [model.name for model in models]
            self._note(f"now asking {self._model.name}")
            return
        models = await self._source.models()
        self._names = [model.name for model in models]
        for model in models:
            mark = "›" if model.name == self._model.name else " "
            self._console.print(Text.assemble(f"{mark} {model.name}", (f"  {model.note}", "dim")))

    async def _save(self, argument: str) -> None:
        if not argument:
            raise BadRequest("name the file: /save FILE.json or /save FILE.md")
        await asyncio.to_thread(save, self._chat, self._model.name, Path(argument))
        self._note(f"saved to {argument}")

    def _greet(self) -> None:
        model = self._model
        self._console.print(Text.assemble((model.name, "bold"), (f"  {model.note}" if model.note else "", "yellow")))
        self._note("Enter sends, Alt-Enter starts a new line, /help lists the commands")
        for picture in self._chat.attached:
            self._note(f"{picture.name} goes with the next question")

    def _help(self) -> None:
        table = Table.grid(padding=(0, 2))
        for command in COMMANDS:
            table.add_row(Text(f"{command.name} {command.argument}"), Text(command.meaning, style="dim"))
        self._console.print(table)

    def _prompt(self) -> FormattedText:
        pictures = f"[{len(self._chat.attached)} picture{'s' * (len(self._chat.attached) > 1)}] "
        return FormattedText([("ansicyan", pictures if self._chat.attached else ""), ("bold", "› ")])

    def _write(self, text: str) -> None:
        sys.stdout.write(harmless(text))
        sys.stdout.flush()

    def _note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))

    def _error(self, error: LlavaError) -> None:
        retry = " (/retry asks again)" if error.retryable else ""
        self._console.print(Text(f"error: {error.message}{retry}", style="red"))
