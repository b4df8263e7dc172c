"""The commands of `python -m serve.bench`."""

from __future__ import annotations

import typer

from serve.bench import command_engine, command_faults, command_load, command_page

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Measure servers and engines. Every table says above it what was measured on what; figures are medians.",
)
for _command in (
    command_load.load,
    command_load.compare,
    command_engine.engine,
    command_engine.overhead,
    command_engine.baseline,
    command_engine.checkpoint,
    command_faults.overload,
    command_page.page,
    command_faults.soak,
):
    app.command()(_command)
