"""Calling something after a while, unless what it limits ends before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def after(seconds: float | None, call: Callable[[], object]) -> Iterator[None]:
    """Call a function, on a thread, when the block takes longer than so many seconds; None: however long it takes."""
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
