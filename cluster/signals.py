"""Stopping gracefully: Ctrl-C, SIGTERM and a time limit."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lake.timer import after

log = logging.getLogger("worldlake")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ENDED = b"\nworldlake: ended at once; committed work is kept. Run the same command to resume.\n"

_terminal = 2
"""The descriptor of standard error itself; another one while 2 is diverted."""


@contextmanager
def diverted(file: int) -> Iterator[None]:
    """Let the descriptor `file` take what is written to standard error, but for the line of `end_process`."""
    global _terminal
    _terminal = terminal = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        # Before it is closed: a signal may come at any time.
        _terminal = 2
        os.close(terminal)


def end_process(number: int) -> None:
    """End this process at once: what a command does at a second signal."""
    os.write(_terminal, _ENDED)
    os._exit(128 + number)


def interrupt(number: int) -> None:
    """Raise KeyboardInterrupt: what a function does at a second signal, in a process that is not its own."""
    raise KeyboardInterrupt


@contextmanager
def draining(hours: float | None = None, at_second: Callable[[int], None] = end_process) -> Iterator[threading.Event]:
    """Yield an event that SIGINT, SIGTERM and the time limit set. `at_second` is called with a second signal's number.

    Outside the main thread, where Python has no signals, only the time limit sets it.
    """
    stop, asked = threading.Event(), threading.Event()

    def on_signal(number: int, frame: object) -> None:
        # Not `stop`, which the time limit sets as well.
        if asked.is_set():
            at_second(number)
        asked.set()
        stop.set()
        log.info("%s: draining; a second signal ends it at once", signal.Signals(number).name)

    with after(None if hours is None else hours * 3600, stop.set):
        if threading.current_thread() is not threading.main_thread():
            yield stop
            return
        before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
