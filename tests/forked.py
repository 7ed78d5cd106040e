"""Calls in processes of their own that begin with everything imported, which takes seconds in a new one."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.preloaded"])


def forked(call: Callable[..., object], *arguments: str, timeout_s: float = 120, **environment: str) -> tuple[int, str]:
    """Exit code of a process that makes a call, and everything it printed. `environment` adds to that of this process.

    Raises:
        AssertionError: it did not end in time.
    """
    with tempfile.TemporaryDirectory() as said:
        here = os.getcwd(), {**os.environ, **environment}, said
        process = _FORKS.Process(target=_begin, args=(*here, call, arguments))
        process.start()
        process.join(timeout_s)
        if is_late := process.exitcode is None:
            process.kill()
            process.join()
        printed = "".join(Path(said, name).read_text() for name in ("out", "err") if Path(said, name).exists())
        assert not is_late, f"{arguments} did not end in {timeout_s} s: {printed}"
        return process.exitcode or 0, printed


def _begin(
    folder: str, environment: dict[str, str], said: str, call: Callable[..., object], arguments: tuple[str, ...]
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}/{name}", os.O_CREAT | os.O_WRONLY), number)
    try:
        call(*arguments)
    finally:
        # `multiprocessing` leaves these out.
        atexit._run_exitfuncs()
