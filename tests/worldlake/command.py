"""The command as its user calls it."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

from tests.forked import forked
from worldlake.cli import main

PROGRAM = str(Path(sys.executable).with_name("worldlake"))


def worldlake(*arguments: str, timeout_s: float = 120, **environment: str) -> tuple[int, str]:
    """Exit code and everything printed."""
    return forked(_command, *arguments, timeout_s=timeout_s, **environment)


def _command(*arguments: str) -> None:
    sys.argv = ["worldlake", *arguments]
    main()


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
