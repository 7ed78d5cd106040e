"""The optional parts of an installation, and the line that says which one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lake.errors import Refused

EXTRAS = {"serve": "serve", "keys": "serve", "train": "train", "evaluate": "eval"}
"""The extra that a command needs; those that are not listed need none."""


@contextmanager
def needed_by(command: str) -> Iterator[None]:
    """Import inside what a command needs.

    Raises:
        Refused: a package is missing; the message names the `pip install` to run.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing(error, command) from error


def missing(error: ModuleNotFoundError, command: str) -> Refused:
    """Return what to raise for a package that is not installed."""
    extra = EXTRAS.get(command, "all")
    return Refused(
        f"{command} needs a package that is not installed ({error.name or error}): pip install 'worldlake[{extra}]'"
    )
