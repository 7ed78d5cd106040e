"""The command as its user calls it."""

from __future__ import annotations

import atexit
import errno
import fcntl
import multiprocessing
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

PROGRAM = str(Path(sys.executable).with_name("worldlake"))

# A command is forked from a process that has imported all that commands need, which takes seconds. What it does after
# that is the same as in a process of its own.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.worldlake.preloaded"])


def worldlake(*arguments: str, timeout_s: float = 120) -> tuple[int, str]:
    """Exit code and everything printed."""
    with tempfile.TemporaryDirectory() as said:
        process = _FORKS.Process(target=_run, args=(arguments, dict(os.environ), os.getcwd(), said))
        process.start()
        process.join(timeout_s)
        printed = "".join(Path(said, name).read_text() for name in ("out", "err") if Path(said, name).exists())
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"{arguments} has no end after {timeout_s} s: {printed}")
        return process.exitcode, printed


def _run(arguments: tuple[str, ...], environment: dict[str, str], folder: str, said: str) -> None:
    from worldlake import cli

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}/{name}", os.O_CREAT | os.O_WRONLY), number)
    sys.argv = ["worldlake", *arguments]
    try:
        cli.main()
    finally:
        # A child of `multiprocessing` leaves these out.
        atexit._run_exitfuncs()


def on_terminal(*arguments: str, columns: int = 80) -> tuple[int, str]:
    """Exit code and everything printed, with escape sequences, where all three streams are a terminal."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**environment, "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(follower)
    output = b""
    try:
        while chunk := os.read(leader, 1 << 16):
            output += chunk
    except OSError as error:
        if error.errno != errno.EIO:  # how Linux says that nobody holds the other end any more
            raise
    finally:
        os.close(leader)
    return process.wait(timeout=30), output.decode(errors="replace")
