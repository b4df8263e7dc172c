"""The baseline of `bench page`: a chat page as most are written, whose handler yields the whole history at every token.

python -m serve.bench.naive_page --controller http://127.0.0.1:21001
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import typer

from llava_core.types import ImagePart, Message, Request, Sampling, TextPart, assistant
from serve.client import Client

History = list[dict[str, Any]]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    controller: Annotated[str, typer.Option(help="Where the controller is.")],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Which port to listen on.")] = 7861,
    model: Annotated[str, typer.Option(help="The model that answers.")] = "echo",
    chats: Annotated[int, typer.Option(help="Answers that stream at once.")] = 20,
) -> None:
    """Serve the naive page until it is ended."""
    import gradio as gr

    source = Client(controller)

    async def respond(message: dict[str, Any], history: History) -> AsyncIterator[History]:
        files = [{"role": "user", "content": {"path": str(path)}} for path in message["files"]]
        history = [*history, *files, {"role": "user", "content": message["text"]}]
        request = Request(model, tuple(_messages(history)), Sampling(temperature=0.0))
        text = ""
        async with aclosing(source.stream(request)) as chunks:
            async for chunk in chunks:
                text += chunk.text
                yield [*history, {"role": "assistant", "content": text}]

    with gr.Blocks(analytics_enabled=False) as blocks:
        chatbot = gr.Chatbot()
        box = gr.MultimodalTextbox(file_count="multiple")
        box.submit(respond, [box, chatbot], chatbot, api_name="respond", concurrency_limit=chats)
    blocks.queue(default_concurrency_limit=chats)
    blocks.launch(server_name=host, server_port=port, ssr_mode=False, quiet=True)


def _messages(history: History) -> list[Message]:
    """The turns of a Chatbot's value, pictures with the question that follows them."""
    found: list[Message] = []
    parts: list[TextPart | ImagePart] = []
    for turn in history:
        for content in _contents(turn["content"]):
            if isinstance(content, str):
                parts.append(TextPart(content))
            else:
                parts.append(_picture(Path(content["path"])))
        if turn["role"] == "assistant":
            found.append(assistant(*parts))
            parts = []
        elif any(isinstance(part, TextPart) for part in parts):
            found.append(Message("user", tuple(parts)))
            parts = []
    return found


def _contents(content: Any) -> list[Any]:
    """Text as strings and files as mappings with a path, however Gradio wrote them."""
    if isinstance(content, list):
        return [one for part in content for one in _contents(part)]
    if isinstance(content, dict):
        if content.get("type") == "text":
            return [str(content["text"])]
        file = content.get("file", content)
        return [file] if isinstance(file, dict) and "path" in file else []
    return [str(content)]


def _picture(path: Path) -> ImagePart:
    mime = mimetypes.guess_type(path.name)[0] or "image/png"
    return ImagePart(f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}")


if __name__ == "__main__":
    app()
