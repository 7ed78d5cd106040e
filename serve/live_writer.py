"""Live labels into the lake: one writer for a service, which gathers what many requests decided into one commit.

It goes beside labeling runs of the same labeler without ever racing one: uploads are videos of their own, and its
commits carry an application id of their own. A second writer, or a `forget`, fences it; it then starts again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow.compute as pc
from ray import serve

from labeling.labeler import Labeler
from labeling.policy import Policy
from labeling.run import refuse_other_policy
from labeling.stream import VERIFIED, block
from labeling.write import Write
from lake import tombstones
from lake.commits import Committer
from lake.errors import Refused, Superseded
from lake.ids import UPLOADS
from lake.retry import Schedule, retry
from lake.runs import Run, new_run_id
from lake.scores import NAMES
from lake.store_errors import AWAY
from lake.tables import Lake, Rows

_ROWS = 1024
_WAIT_S = 0.2
"""A commit takes some ten milliseconds on a disk and a few hundred in S3; a batch gathers in that time."""

log = logging.getLogger("serve.live_writer")


class WriteFailed(Exception):
    """The lake cannot be written now; the same request may succeed in a while."""


class LiveWriter:
    """Writes labeled and verified rows (`stream.VERIFIED`): accepted ones to `triples`, others to `rejections`.

    A deployment of one replica. If it dies, Ray starts another, which reads what was written and resumes.
    """

    def __init__(self, lake: Lake, labeler: Labeler, policy: Policy) -> None:
        self._lake, self._labeler, self._policy = lake, labeler, policy
        self._run: Run | None = None

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=_ROWS, batch_wait_timeout_s=_WAIT_S, batch_size_fn=lambda requests: sum(map(len, requests))
    )
    async def write(self, requests: list[Rows]) -> list[Rows]:
        """Write the rows of several requests; returns, for each, the rows that are in the lake.

        A pair that is in the lake already keeps its row. Deleted videos are left out.

        Raises:
            Refused: the labeler has decided under another policy here.
            WriteFailed: the lake cannot be written now, or a `forget` is running.
        """
        found = await asyncio.to_thread(self.write_now, [row for rows in requests for row in rows])
        return [[found[row["triple_id"]] for row in rows if row["triple_id"] in found] for rows in requests]

    def write_now(self, rows: Rows) -> dict[str, dict[str, Any]]:
        """Write the rows of one request; returns the rows in the lake by id."""

        def is_superseded(error: Exception) -> bool:
            # The committer takes for decided what it was about to commit; the next one reads what is in the lake.
            self.close()
            return isinstance(error, Superseded)

        try:
            # Another writer took over, or a forget came by: once more, from the beginning.
            return retry(lambda: self._write(rows), Schedule((0,)), is_superseded)
        except Superseded:
            raise WriteFailed("another writer of this labeler is running: run one service on a lake") from None
        except AWAY as error:
            log.warning("live labels were not written: %s", error)
            raise WriteFailed(f"the lake cannot be written ({type(error).__name__})") from None

    def _write(self, rows: Rows) -> dict[str, dict[str, Any]]:
        if self._run is None:
            self._open()
        wanted = {row["triple_id"]: row for row in rows if tombstones.key(row["uri"]) not in self._forgotten}
        fresh = {id_: row for id_, row in wanted.items() if not self._committer.is_decided(id_)}
        self._commit(list(fresh.values()))
        return {**fresh, **(self._in_the_lake(wanted.keys() - fresh.keys()) if len(wanted) > len(fresh) else {})}

    def _commit(self, rows: Rows) -> None:
        assert self._run is not None
        if not rows:
            return
        write = Write(self._lake, self._run.run_id, self._labeler.id, self._policy.id, self._labeler.decoder, "live")
        report = write.report(block(rows, VERIFIED))
        self._committer.commit(report.files)
        self._run.counts["accepted"] += len(report.accepted)
        self._run.counts["rejected"] += len(report.rejected)
        videos = sorted({row["video_id"] for row in rows})
        log.info("live labels written", extra={"run_id": self._run.run_id, "video_ids": videos, "pairs": len(rows)})

    def _in_the_lake(self, ids: Sequence[str] | set[str]) -> dict[str, dict[str, Any]]:
        mine = pc.field("triple_id").isin(list(ids))
        columns = ["triple_id", "action", *NAMES]
        accepted = self._lake.read("triples", columns, mine).to_pylist()
        rejected = self._lake.read("rejections", [*columns, "reasons"], mine).to_pylist()
        return {row["triple_id"]: {"reasons": [], "error_type": None, **row} for row in [*accepted, *rejected]}

    def _open(self) -> None:
        refuse_other_policy(self._lake, self._labeler.id, self._policy.id)
        config = {"labeler": self._labeler.identity, "policy": self._policy.model_dump(mode="json")}
        run_id = new_run_id()
        warn = partial(log.warning, extra={"run_id": run_id})
        run = Run(
            self._lake,
            run_id,
            "serve",
            config,
            self._labeler.id,
            self._policy.id,
            model_hashes=self._labeler.identity["model"],
            counts={"accepted": 0, "rejected": 0},
            on_error=warn,
        )
        self._committer = Committer(self._lake, self._labeler.id, run_id, warn, source="live")
        # Fence, then look for a forget: one that is recorded later fences in its turn.
        self._committer.fence()
        try:
            run.__enter__()
        except Refused as refused:
            raise WriteFailed(str(refused)) from None
        self._run = run
        # A range, so that files of videos alone are left unread.
        self._committer.remember((pc.field("uri") >= UPLOADS) & (pc.field("uri") < "upload;"))
        self._forgotten = tombstones.keys(self._lake)

    def close(self) -> None:
        """End the recorded run, if any."""
        run, self._run = self._run, None
        if run is not None:
            try:
                run.__exit__(None, None, None)
            except AWAY as error:
                log.warning("the end of run %s could not be recorded: %s", run.run_id, error)

    def __del__(self) -> None:
        """Ray Serve calls it when a replica is stopped."""
        self.close()
