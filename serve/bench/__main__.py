"""Measure servers and engines: tables, JSON and plots.
python -m serve.bench load http://127.0.0.1:21001
"""

from __future__ import annotations

from llava_core.run_command import run_command
from serve.bench.commands import app


def main() -> None:
    run_command(app)


if __name__ == "__main__":
    main()
