"""The errors that worldlake raises on purpose.

    WorldlakeError
    ├── Refused             the input, the settings or the lake must change first
    │   ├── ModelRefused    a model cannot be used as asked
    │   ├── Contradiction   settings exclude each other
    │   ├── WrongSetting    a setting has an impossible value (lake.settings)
    │   ├── BrokenLog       the log of a table is damaged
    │   └── TooMuchMemory   a query needs more memory than there is
    ├── Unavailable         the store or this machine lacks something that may come back
    ├── Stalled             a run made no progress and was ended
    ├── Superseded          another process took over
    │   └── Fenced          a `forget` or a `repair` ended every open writer
    ├── SourceChanged       a source file changed while it was read
    ├── DecodeError         a video or an image cannot be decoded
    └── ChildLost           an isolated process hung, crashed or ran out of memory

The message of each is one line that names the remedy where there is one. `exit_code` is what the command returns.
"""

import re
from typing import ClassVar, Literal

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

Ending = Literal["not open", "hung", "memory", "died"]
"""How a child ends in the middle of a call: before it said `opened`, after it, out of memory, or in any other way."""


class WorldlakeError(Exception):
    """The base of all errors below; the same command may succeed later."""

    exit_code: ClassVar[int] = 1


class Refused(WorldlakeError):
    """The request cannot be served as it stands; running it again does not help."""

    exit_code = 2


class ModelRefused(Refused):
    """The model cannot be used as asked."""


class Contradiction(Refused):
    """Settings exclude each other. The text has the names of fields in backquotes."""


class BrokenLog(Refused):
    """The Delta log of a table is damaged, so nothing may be deleted by it."""


class TooMuchMemory(Refused):
    """A query needs more memory than there is."""


class Unavailable(WorldlakeError):
    """The store does not answer, or this machine or its credentials lack something."""


class Stalled(WorldlakeError):
    """A run made no progress for so long that it was ended; the message is its diagnosis."""


class Superseded(WorldlakeError):
    """Another process took over; this one must not commit anything more."""


class Fenced(Superseded):
    """A `forget` or a `repair` ended every open writer."""


class SourceChanged(WorldlakeError):
    """A source file changed under its uri while it was read."""


class DecodeError(WorldlakeError):
    """A video or an image cannot be decoded at all, or not at the place asked for."""


class ChildLost(WorldlakeError):
    """A call in an isolated process did not come back on any attempt; the message says how each attempt ended."""

    def __init__(self, message: str, ending: Ending) -> None:
        """`ending` is that of the last attempt."""
        super().__init__(message)
        self.ending = ending


def plain(text: str) -> str:
    """Return a text without the colors that libraries put into their errors."""
    return _ESCAPES.sub("", text)


def one_line(error: object, limit: int | None = None) -> str:
    """Return the text of an error as one line without colors, cut to `limit` characters."""
    return " ".join(plain(str(error)).split()).rstrip(".")[:limit]
