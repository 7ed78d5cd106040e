"""The command as its user calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def worldlake(*arguments: str, timeout_s: float = 120) -> tuple[int, str]:
    """Exit code and everything printed."""
    program = str(Path(sys.executable).with_name("worldlake"))
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
    return done.returncode, done.stdout + done.stderr
