"""Keeps the libraries' own bars and advice from standing between our lines."""

from __future__ import annotations

import logging
import warnings


def quieten() -> None:
    from transformers.utils import logging as theirs

    theirs.disable_progress_bar()
    theirs.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
