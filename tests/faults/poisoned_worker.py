"""A worker process whose device fails for good as soon as somebody asks for that.

python -m tests.faults.poisoned_worker PORT CONTROLLER [fails]
"""

from __future__ import annotations

import sys

from llava_core.errors import DevicePoisoned
from llava_core.types import Request
from serve.credentials import make_token
from serve.model_worker import serve_worker
from serve.server import run, start_logging
from tests.faults.fake_engine import FakeEngine

POISON = "poison"


class Poisoned(FakeEngine):
    """From `fails` on, every answer ends with the device's failure; with `may_fail`, a question that begins with POISON
    is when that is."""

    may_fail = False
    fails = False

    async def _answer(self, request: Request):
        count = 0
        async for chunk in super()._answer(request):
            count += 1
            if self.may_fail and count > 5 and request.messages[-1].text.startswith(POISON):
                self.fails = True
            if self.fails:
                raise DevicePoisoned("the device failed")
            yield chunk


def main(port: int, controller: str, may_fail: bool) -> int:
    start_logging()
    engine = Poisoned(delay_s=0.02)
    engine.may_fail = may_fail
    worker = serve_worker(
        lambda: engine, host="127.0.0.1", port=port, worker_address=None, controller=controller, token=make_token()
    )
    return run(worker)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["fails"]))
