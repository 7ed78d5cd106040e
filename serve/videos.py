"""Videos in requests: checked by their header, then sampled live as in a labeling run."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from botocore.exceptions import BotoCoreError, ClientError

from labeling.labeler import Labeler
from labeling.sample import SampleVideos
from labeling.stream import WORK
from lake.errors import Refused, SourceChanged
from lake.ids import upload_columns
from lake.schemas import DECISIONS, TABLES
from lake.storage import Entry, is_s3, local_etag, normalize
from lake.store_errors import AWAY
from lake.tables import Lake, Rows
from lake.video_headers import Header, ProbeError, prober
from serve.limits import Limits
from serve.problems import Problem, bad_request, busy

Result = TypeVar("Result")

SEGMENT_TIMEOUT_S = 120.0
"""For a minute of video."""


@dataclass(frozen=True)
class _Stopped:
    event: threading.Event

    def requested(self) -> bool:
        return self.event.is_set()


class Videos:
    """Samples a few videos at once, each in a process of its own that can be killed."""

    def __init__(self, lake: Lake, labeler: Labeler, limits: Limits, sources: tuple[str, ...]) -> None:
        """`sources` are `s3://` prefixes; requests may name objects under one of them only."""
        self._lake, self._labeler, self._limits = lake, labeler, limits
        self._sources = tuple(normalize(source) for source in sources)
        self._free = limits.videos
        self._held: Counter[str] = Counter()
        # Reads of the lake have other threads, so that a slow store or header holds none of them up.
        self._threads = ThreadPoolExecutor(limits.videos, thread_name_prefix="videos")

    @contextmanager
    def place(self, who: str) -> Iterator[Path]:
        """Yield a folder for one video, from before it is received until its last pair. Raises Problem if none is free.

        The last one is reserved for a key that has none, so that two slow uploads of one key do not block all others.
        All videos together take at most `videos` times `video_bytes` of disk, and briefly twice that while a form is
        saved.
        """
        if not self._free or (self._free == 1 and self._held[who]):
            raise busy(f"{self._limits.videos - self._free} videos are being received or sampled", 5)
        self._free -= 1
        self._held[who] += 1
        try:
            with tempfile.TemporaryDirectory(prefix="worldlake-video-", ignore_cleanup_errors=True) as folder:
                yield Path(folder)
        finally:
            self._free += 1
            self._held[who] -= 1
            if not self._held[who]:
                del self._held[who]

    async def run(self, function: Callable[..., Result], *args: object) -> Result:
        """Call a function that may block on a thread for videos."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def find(self, uri: str) -> Entry:
        """Return the object that a request names. Raises Problem if it is not allowed or does not exist."""
        if not is_s3(uri) or not any(uri == root or uri.startswith(f"{root}/") for root in self._sources):
            # One answer for all, so that nobody learns what else the service could read.
            where = ", ".join(self._sources) or "none, until the service is started with --allow s3://bucket/folder"
            raise bad_request("uri", f"this service reads videos under these places only: {where}")
        try:
            # An object is the first of those that its name begins; a folder is not listed to its end to find none.
            first = next(self._lake.storage.pages(uri), [])
            entry = next((entry for entry in first if entry.uri == uri), None)
        except (Refused, *AWAY):
            raise busy("the store of this video does not answer", 5) from None
        if entry is None:
            raise Problem(HTTPStatus.NOT_FOUND, "not-found", f"there is no object {uri!r}")
        if entry.bytes > self._limits.video_bytes:
            raise bad_request("too-large", f"a video has at most {self._limits.video_bytes:,} bytes")
        return entry

    def fetch(self, entry: Entry, path: Path) -> Path:
        """Download an object. Raises Problem if it was deleted or changed."""
        try:
            return self._lake.storage.fetch(entry.uri, entry.etag, path)
        except SourceChanged as error:
            raise bad_request("uri", str(error)) from None
        except (ClientError, BotoCoreError):
            raise busy("the store of this video does not answer", 5) from None

    def cataloged(self, entry: Entry) -> str | None:
        """Return the id of the video in the catalog; None if this state of it is not there."""
        mine = (pc.field("uri") == entry.uri) & (pc.field("etag") == entry.etag)
        found = self._lake.read("videos", ["video_id"], mine)["video_id"].to_pylist()
        return found[0] if found else None

    def decided(self, video_id: str) -> Rows | None:
        """Return the decided rows of a cataloged video; None if the labeler has not finished it."""
        mine = (pc.field("video_id") == video_id) & (pc.field("labeler_id") == self._labeler.id)
        if not self._lake.read("progress", ["video_id"], mine).num_rows:
            return None
        rows = [row for name in DECISIONS for row in self._lake.read(name, TABLES[name].names, mine).to_pylist()]
        missing: dict[str, Any] = {"reasons": [], "obs": None, "next_obs": None, "error_type": None}
        return sorted(({**missing, **row} for row in rows), key=lambda row: row["obs_pts"])

    def check(self, path: Path) -> None:
        """Check the header. Raises Problem if it is not a video, or is too large or too long."""
        entry = Entry(str(path), path.stat().st_size, local_etag(path))
        with prober(self._lake.storage) as probing:
            header = next(iter(probing.probe([entry])))
        if isinstance(header, ProbeError):
            raise bad_request("video", f"this is not a video that can be read: {header.message}")
        self._refuse(header)

    def _refuse(self, header: Header) -> None:
        if header.width * header.height > self._limits.pixels:
            raise bad_request("too-many-pixels", f"{header.width} x {header.height}: send a smaller video")
        if header.duration_s is not None and header.duration_s > self._limits.video_seconds:
            raise self._too_long()

    def _too_long(self) -> Problem:
        return bad_request("too-long", f"a video has at most {self._limits.video_seconds:g} seconds: cut it")

    async def sample(self, path: Path) -> AsyncGenerator[Rows, None]:
        """Yield rows of `stream.SAMPLES`, one segment at a time, under the id of the video's content."""
        upload = await self.run(_upload, path)
        stopped = threading.Event()
        sampler = SampleVideos(self._labeler, self._lake.storage, _Stopped(stopped), SEGMENT_TIMEOUT_S)
        work = pa.Table.from_pylist([{**upload, "uri": str(path), "etag": local_etag(path), "decided": []}], WORK)
        blocks = sampler(work)
        try:
            # A header may be silent about the length, or wrong; a still picture has segments without a pair.
            most = 2 + self._limits.video_seconds / self._labeler.settings.sampling.segment_seconds
            segments = 0
            while (block := await self.run(next, blocks, None)) is not None:
                if (segments := segments + 1) > most:
                    raise self._too_long()
                yield [{**row, **upload} for row in block.to_pylist()]
        finally:
            stopped.set()
            sampler.close()


def save(file: IO[bytes], path: Path) -> Path:
    """Write an upload to a file."""
    file.seek(0)
    with path.open("wb") as out:
        while chunk := file.read(1 << 20):
            out.write(chunk)
    return path


def _upload(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return upload_columns(hashlib.file_digest(file, "sha256").digest())
