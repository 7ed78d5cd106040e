"""Ray on this machine, started from wherever a program happens to be."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import threading
import psutil
import ray
from cluster.connect import start_ray

thread = threading.Thread(target=start_ray)
thread.start()
thread.join()
print(ray.get(ray.remote(lambda: 42).remote(), timeout=60))
words = " ".join(word for child in psutil.Process().children() for word in child.cmdline())
print([name for name in ("/monitor.py", "/log_monitor.py", "/dashboard.py") if name in words])
"""


@pytest.mark.slow
@pytest.mark.ray
def test_ray_outlives_the_thread_that_started_it_and_brings_no_process_that_is_idle() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stdout) == (0, "42\n[]\n"), done.stderr
