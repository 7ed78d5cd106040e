"""Signals and the time limit end a command gracefully; only a second signal ends it at once."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from cluster.signals import draining, interrupt

PROGRAM = """
import os, signal, sys
from cluster.signals import draining

hours, signals = float(sys.argv[1]) or None, int(sys.argv[2])
with draining(hours) as stop:
    if hours:
        assert stop.wait(10)
    for _ in range(signals):
        os.kill(os.getpid(), signal.SIGTERM)
    print("stopping" if stop.is_set() else "continuing")
"""


def twice() -> None:
    with draining(at_second=interrupt) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGTERM)


def test_in_a_process_that_is_not_its_own_the_second_signal_interrupts() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        twice()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("hours", [0, 1e-6])
@pytest.mark.parametrize("signals", [0, 1, 2])
def test_the_first_signal_drains_and_the_second_ends_at_once(hours: float, signals: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(hours), str(signals)], capture_output=True, text=True, check=False
    )
    assert done.returncode == (0 if signals < 2 else 128 + signal.SIGTERM), done.stderr
    assert ("ended at once" in done.stderr) == (signals == 2)
    assert done.stdout.strip() == ("" if signals == 2 else "stopping" if hours or signals else "continuing")
