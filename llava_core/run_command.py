"""A command line from its first word to its exit code: 0 done, 1 failed, 2 asked wrongly, 130 stopped with Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from llava_core.errors import BadRequest, LlavaError, MissingDependency


def run_command(app: Callable[[], object]) -> NoReturn:
    """Run a typer app and end the process. An error is one sentence; a reader who leaves early is none."""
    # Forked loaders would otherwise make the tokenizers library warn at every turn.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        try:
            app()
        except SystemExit as end:
            # Typer ends with 1 when a pipe broke, as if the command had failed.
            if isinstance(end.__context__, BrokenPipeError):
                raise end.__context__ from None
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except LlavaError as error:
        print(f"error: {error.message}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, BadRequest | MissingDependency) else 1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read our words has seen enough. Python would complain once more when it flushes at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
    raise SystemExit(0)
