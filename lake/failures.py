"""A failure: one row of the table `failures`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from lake.errors import one_line
from lake.tables import now

Scope = Literal["listing", "video", "span", "pair"]

MESSAGE_LENGTH = 500


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An attempt that failed; the fields are the columns of `failures`.

    Use `dataclasses.replace` to add where it happened to what a lower layer knows.
    """

    scope: Scope
    stage: str
    error_type: str
    message: str
    transient: bool = False
    video_id: str | None = None
    uri: str | None = None
    labeler_id: str | None = None
    run_id: str | None = None
    triple_id: str | None = None
    start_pts: int | None = None
    end_pts: int | None = None
    attempt: int | None = None
    decoder: str | None = None
    failed_at: datetime = field(default_factory=now)

    @classmethod
    def of(cls, error: Exception, *, scope: Scope, stage: str, **columns: Any) -> Failure:
        """Describe an error: its class, and what it says, on one line of bounded length."""
        message = one_line(error, MESSAGE_LENGTH)
        return cls(scope=scope, stage=stage, error_type=type(error).__name__, message=message, **columns)

    def to_row(self) -> dict[str, Any]:
        """Return the columns that are known; the others are null."""
        return {name: value for name, value in vars(self).items() if value is not None}
