"""Output of the command: results on standard output, progress and log lines on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from lake.errors import plain
from lake.text import counted

# File names and actions are shown as they are: `:car:` is not an emoji.
out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
log = logging.getLogger("worldlake")

# Between log lines where there is no terminal: a day of labeling is 2,880 lines.
_LOG_EVERY_S = 30.0


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


class _JsonLines(logging.Formatter):
    """The keys that Ray's own JSON has, and what a line was given as `extra`. Not Ray's class, which takes a second."""

    _GIVEN = frozenset({"message", "asctime", *vars(logging.makeLogRecord({}))})

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "message": plain(record.getMessage()),
        }
        if record.exc_info:
            line["exc_text"] = plain(self.formatException(record.exc_info))
        extra = {name: value for name, value in vars(record).items() if name not in self._GIVEN and name[0] != "_"}
        return json.dumps(line | extra, default=str)


class _OnStderr(logging.StreamHandler[Any]):
    """Writes to what standard error is now: while there is a live line, rich puts a stream there that prints above."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def setup() -> None:
    """Log lines with a time on standard error; as JSON where Ray is told to log so, by the variable that Ray reads."""
    handler = _OnStderr()
    is_json = os.environ.get("RAY_LOGGING_CONFIG_ENCODING") == "JSON"
    handler.setFormatter(_JsonLines() if is_json else _Lines("%(asctime)s %(levelname)s %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    out.print(json.dumps(value, indent=2, default=str, ensure_ascii=False), markup=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on standard output; the ids in a column `run` stay whole, so that they can be copied."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "run")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console(highlight=False, emoji=False, width=None if out.is_terminal else 140).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return f"<{len(value) / 1000:.1f} kB>"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("[", r"\[")


class Counter:
    """Shows counts while a command works: a live line on a terminal, a log line now and then elsewhere."""

    def __init__(self, what: str, total: int | None, bar: Progress | None, unit: str) -> None:
        self._what, self._total, self._bar, self._unit = what, total, bar, unit
        self._task = bar.add_task(what, total=total, detail="") if bar else None
        self._logged = time.monotonic()

    def __call__(self, done: int, counts: dict[str, int], total: int | None = None) -> None:
        """Show that `done` of the total are through; `total` where it was not known before."""
        self._total = total or self._total
        detail = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count)
        if self._total and self._unit:
            far = f"{done:,} of {counted(self._total, self._unit)}"
            detail = f"{far}; {detail}" if detail else far
        elif not self._bar:
            detail = f"{done}{f' of {self._total}' if self._total else ''}; {detail}"
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=self._total, detail=detail)
        elif time.monotonic() - self._logged >= _LOG_EVERY_S:
            self._logged = time.monotonic()
            log.info("%s: %s", self._what, detail)


@contextmanager
def counter(what: str, total: int | None = None, unit: str = "") -> Iterator[Counter]:
    """Progress of one piece of work. With a unit, such as video, it says how many of the total are done."""
    if not err.is_terminal:
        yield Counter(what, total, None, unit)
        return
    # The detail is a field of ours, not an attribute of the task as the description is.
    texts = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[detail]}"))
    with Progress(SpinnerColumn(), *texts, TimeElapsedColumn(), console=err, transient=True) as bar:
        yield Counter(what, total, bar, unit)
