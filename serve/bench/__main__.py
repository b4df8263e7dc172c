"""Measure servers and engines: tables, JSON and plots.
python -m serve.bench load http://127.0.0.1:21001
"""

from __future__ import annotations

import os
import sys

from llava_core.errors import BadRequest, LlavaError, MissingDependency
from serve.bench.commands import app


def main() -> None:
    try:
        app()
    except LlavaError as error:
        print(f"error: {error.message}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, BadRequest | MissingDependency) else 1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read the table has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
