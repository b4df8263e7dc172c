"""Train a LLaVA: build it from parts, check data, align its projector, tune it, watch, merge.

python -m llava_core.train build --tower PATH --llm PATH --out OUT
"""

from __future__ import annotations

from llava_core.run_command import run_command
from llava_core.train.commands import app

if __name__ == "__main__":
    run_command(app)
