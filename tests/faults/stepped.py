"""A real `worldlake` command that is killed, paused or kept waiting at one of its changes to the store.

Usage: stepped.py WHEN NUMBER COMMAND...: WHEN is `kill-before`, `kill-after`, `stop-before`, `wait-before` (its heart
beats while it says `waiting` and reads a line from standard input), `plain`, or `count`, which prints how many changes
there were. Hearts beat fast, so that a paused process is soon taken for dead.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from itertools import count
from typing import Any

from lake import runs
from tests.faults.changes import CHANGES

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
HEARTBEAT_S, LIVE_FOR = 0.2, timedelta(seconds=1)


def step(when: str, number: int) -> None:
    """Run the command of `sys.argv` and end or pause this process around one change to the store; hearts count not."""
    numbers = count(1)
    how, _, side = when.partition("-")

    def wrapped(real: Any) -> Any:
        def change(*args: Any, **options: Any) -> Any:
            if any("_heartbeats" in str(arg) for arg in args):
                return real(*args, **options)
            is_it = next(numbers) == number
            if is_it and side == "before":
                _disturb(how)
            result = real(*args, **options)
            if is_it and side == "after":
                _disturb(how)
            return result

        return change

    for owner, name in CHANGES:
        setattr(owner, name, wrapped(getattr(owner, name)))
    runs.HEARTBEAT_S, runs.LIVE_FOR, runs._LOOK_EVERY_S = HEARTBEAT_S, LIVE_FOR, HEARTBEAT_S
    from worldlake.cli import main

    try:
        main()
    finally:
        if how == "count":
            print(f"changes: {next(numbers) - 1}", file=sys.stderr)


def _disturb(how: str) -> None:
    if how == "wait":
        print("waiting", flush=True)
        sys.stdin.readline()
    else:
        os.kill(os.getpid(), _SIGNALS[how])


if __name__ == "__main__":
    when, number = sys.argv[1:3]
    sys.argv = ["worldlake", *sys.argv[3:]]
    step(when, int(number))
