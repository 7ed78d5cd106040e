"""Tracks, per video, which pairs are decided, and which videos are finished."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lake.failures import Failure
from lake.tables import DataFile


class End(NamedTuple):
    """The end of a video that was read: how many pairs it has and spans that failed, and a note for `progress`."""

    video_id: str
    sampled: int
    spans_failed: int
    note: str | None = None


@dataclass(frozen=True)
class Report:
    """Report of one write by a worker to the driver: a few hundred bytes per pair, no pixels."""

    files: list[DataFile] = field(default_factory=list)
    accepted: list[tuple[str, str]] = field(default_factory=list)
    """(video_id, triple_id) of the pairs in `files` that were accepted."""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)


@dataclass
class _Video:
    decided_before: int
    accepted: set[str] = field(default_factory=set)
    rejected: set[str] = field(default_factory=set)
    failed: dict[str, Failure] = field(default_factory=dict)
    spans: dict[tuple[Any, ...], Failure] = field(default_factory=dict)
    sampled: int | None = None
    spans_failed: int = 0
    """How many `spans` there are to come, as its end says."""
    note: str | None = None
    lost: bool = False
    """Failed as a whole; kept, because reports of parts that were under way still come in."""

    def counts(self) -> dict[str, int]:
        return {
            "sampled": self.sampled or 0,
            "accepted": len(self.accepted),
            "rejected": len(self.rejected),
            "failed": len(self.failed),
            "decided_before": self.decided_before,
        }

    def balances(self) -> bool:
        """Return whether all of the video is reported: blocks come in any order, its end even before its parts."""
        counts = self.counts()
        is_whole = self.sampled is not None and len(self.spans) >= self.spans_failed
        return not self.lost and is_whole and counts.pop("sampled") == sum(counts.values())

    def add_failure(self, failure: Failure) -> bool:
        """Enter a failure of a part; whether it is news."""
        if failure.triple_id in self.accepted | self.rejected:
            return False
        known: dict[Any, Failure] = self.failed if failure.scope == "pair" else self.spans
        key = failure.triple_id or (failure.stage, failure.start_pts, failure.end_pts)
        is_new = key not in known
        known.setdefault(key, failure)
        return is_new


class Accounts:
    """Open videos, and what is ready to be committed. Repeated reports of the same pair change nothing."""

    def __init__(self) -> None:
        self._open: dict[str, _Video] = {}
        self._files: list[DataFile] = []
        self._failures: list[Failure] = []
        self._finished: list[dict[str, Any]] = []
        self.counts: dict[str, int] = dict.fromkeys(
            (
                "videos_finished",
                "videos_failed",
                "videos_without_pairs",
                "spans_failed",
                "accepted",
                "rejected",
                "failed",
            ),
            0,
        )

    def open(self, video_id: str, decided_before: int) -> None:
        """Start the account of a video."""
        self._open[video_id] = _Video(decided_before)

    @property
    def unfinished(self) -> list[str]:
        """Videos that neither finished nor failed as a whole."""
        return [video_id for video_id, video in self._open.items() if not video.lost]

    @property
    def pending(self) -> int:
        """Number of `unfinished` videos, without a look at each of them."""
        return len(self._open) - self.counts["videos_failed"]

    def decided(self, video_id: str) -> list[str]:
        """Pairs of an unfinished video that were decided in this run."""
        video = self._open[video_id]
        return [*video.accepted, *video.rejected]

    @property
    def uncommitted(self) -> int:
        """Files and rows that wait for a commit."""
        return len(self._files) + len(self._failures) + len(self._finished)

    def add(self, report: Report) -> None:
        """Enter a worker's report; a video whose sum balances with it becomes finished."""
        self._files += report.files
        touched: dict[str, None] = {}
        for verdict, pairs in (("accepted", report.accepted), ("rejected", report.rejected)):
            for video_id, triple_id in pairs:
                self._decide(video_id, triple_id, verdict)
                touched[video_id] = None
        for end in report.ends:
            if video := self._open.get(end.video_id):
                video.sampled, video.spans_failed, video.note = end.sampled, end.spans_failed, end.note
                touched[end.video_id] = None
        for failure in report.failures:
            assert failure.video_id, "only a source that cannot be listed has no video"
            self._fail(failure.video_id, failure)
            touched[failure.video_id] = None
        self._close(touched)

    def take(self) -> tuple[list[DataFile], list[Failure], list[dict[str, Any]]]:
        """Return what is to be committed now, and drop it: files as they were reported, failures, and `progress` rows.

        Of a pair that was reported twice with different verdicts the first one counts, here as in the committer.
        """
        taken = (self._files, self._failures, self._finished)
        self._files, self._failures, self._finished = [], [], []
        return taken

    def _decide(self, video_id: str, triple_id: str, verdict: str) -> None:
        video = self._open.get(video_id)
        if video and triple_id not in video.accepted | video.rejected:
            getattr(video, verdict).add(triple_id)
            video.failed.pop(triple_id, None)
            self.counts[verdict] += 1

    def _fail(self, video_id: str, failure: Failure) -> None:
        video = self._open.get(video_id)
        if not video:
            return
        if failure.scope != "video":
            if video.add_failure(failure) and video.lost:
                self._tell([failure])
        elif not video.lost:
            video.lost = True
            self.counts["videos_failed"] += 1
            self._tell([failure, *video.failed.values(), *video.spans.values()])

    def _close(self, video_ids: Iterable[str]) -> None:
        for video_id in video_ids:
            video = self._open.get(video_id)
            if video and video.balances():
                del self._open[video_id]
                # Failures of a part are told with the end of the whole: alone they would look like a failed video.
                self._tell([*video.failed.values(), *video.spans.values()])
                self._finished.append({"video_id": video_id, **video.counts(), "note": video.note})
                self.counts["videos_finished"] += 1
                self.counts["videos_without_pairs"] += not video.sampled

    def _tell(self, failures: list[Failure]) -> None:
        self._failures += failures
        self.counts["failed"] += sum(failure.scope == "pair" for failure in failures)
        self.counts["spans_failed"] += sum(failure.scope == "span" for failure in failures)
