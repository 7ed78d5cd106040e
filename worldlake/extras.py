"""The optional parts of an installation, and the line that says which one is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version

from lake.errors import Refused

EXTRAS = {"serve": "serve", "keys": "serve", "train": "train", "evaluate": "eval"}
"""The extra that a command needs; those that are not listed need none."""

# In the metadata: `httpx>=1; extra == "serve"`.
_AFTER_NAME = re.compile(r"[^\w.-]")
_EXTRA = re.compile(r"""extra == ['"]([\w-]+)['"]""")


@contextmanager
def needed_by(command: str) -> Iterator[None]:
    """Import inside what a command needs.

    Raises:
        Refused: a package is missing; the message names the `pip install` to run.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing(error, command) from None


def missing(error: ModuleNotFoundError, command: str) -> Refused:
    """Return what to raise for a package that is not installed."""
    extra = EXTRAS.get(command, "all")
    return Refused(f"{command} needs a package that is not installed ({error.name or error}): {install(extra)}")


def install(*extras: str) -> str:
    """Return the command that installs extras."""
    return f"pip install 'worldlake[{','.join(extras)}]'"


def absent() -> list[str]:
    """Return the extras that the commands need and of which a package is not installed."""
    return [extra for extra in dict.fromkeys(EXTRAS.values()) if any(map(_is_absent, _packages(extra)))]


def _packages(extra: str) -> list[str]:
    return [
        _AFTER_NAME.split(line, maxsplit=1)[0] for line in requires("worldlake") or () if extra in _EXTRA.findall(line)
    ]


def _is_absent(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return True
    return False
