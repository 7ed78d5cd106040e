"""A time limit on a block of code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def after(seconds: float | None, call: Callable[[], object]) -> Iterator[None]:
    """Call a function on a thread if the block takes longer than `seconds`; None: never."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), call)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
