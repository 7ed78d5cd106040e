"""Read what the header of a video says, over ranged reads, in a process that can be killed."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import av
from av.container import InputContainer
from pebble import ProcessExpired, ProcessPool

from lake.s3 import PATIENCE_S, is_transient
from lake.storage import Entry, StorageConfig, is_s3

# A header is read in milliseconds; a demuxer that takes half a minute hangs. In S3 an outage may have to be waited out.
TIMEOUT_S = 30.0
# Headers are small reads with waits in between, in S3 above all.
WORKERS = 4


class Header(NamedTuple):
    """What the container claims; None where it says nothing. Width and height are those before display rotation."""

    codec: str
    width: int
    height: int
    fps: float | None
    frames: int | None
    duration_s: float | None


class ProbeError(NamedTuple):
    """Why a header could not be read, and whether another attempt may succeed."""

    error_type: str
    message: str
    transient: bool


def read_header(file: IO[bytes]) -> Header:
    """Return the header of the first video stream.

    Raises ``av.FFmpegError`` when it is not a video file and ``ValueError`` when there is no picture in it.
    """
    # Playlists are formats too: without a whitelist they could make FFmpeg open whatever they name.
    options = {"protocol_whitelist": "none"}
    with av.open(file, "r", metadata_errors="ignore", options=options) as container:
        return _header(container)


def _header(container: InputContainer) -> Header:
    if not container.streams.video:
        raise ValueError("no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    if not context.width or not context.height:
        raise ValueError("the video stream has no picture size")
    duration_s = container.duration / av.time_base if container.duration else None
    if stream.duration is not None and stream.time_base:
        duration_s = float(stream.duration * stream.time_base)
    rate = stream.average_rate
    return Header(
        context.name, context.width, context.height, float(rate) if rate else None, stream.frames or None, duration_s
    )


def _probe(storage: StorageConfig, entry: Entry) -> Header | ProbeError:
    """Runs in the child: errors come back as values, because those of FFmpeg cannot all be pickled."""
    try:
        storage.verify(entry.uri, entry.etag)
        if not entry.bytes:
            return ProbeError("EmptyFile", "the file has 0 bytes", False)
        with storage.open_ranged(entry) as file:
            header = read_header(file)
        storage.verify(entry.uri, entry.etag)
        return header
    except Exception as error:  # whatever a broken file provokes is that file's failure
        message = error.strerror if isinstance(error, av.FFmpegError) else str(error)
        return ProbeError(type(error).__name__, message or repr(error), is_transient(error))


class Prober:
    """A few processes that read headers, started when the first are asked for."""

    def __init__(self, storage: StorageConfig) -> None:
        self._storage = storage
        self._pool: ProcessPool | None = None

    def probe(self, entries: Sequence[Entry]) -> Iterator[Header | ProbeError]:
        """Yield the header or the error of every entry, in order; a hang or a crash costs its own entry only."""
        workers = min(WORKERS, len(entries))
        futures = [self._schedule(entry, workers) for entry in entries]
        for entry, future in zip(entries, futures, strict=True):
            yield self._result(entry, future)

    def _result(self, entry: Entry, future: "Future[Any]") -> Header | ProbeError:
        for again in (True, False):
            try:
                result: Header | ProbeError = future.result()
                return result
            except TimeoutError:
                return ProbeError("TimeoutError", f"no header after {_limit_s(entry):.0f} s", True)
            except (ProcessExpired, BrokenProcessPool):
                # Perhaps it was killed from outside; a file that kills its process does it again.
                if again:
                    future = self._schedule(entry, 1)
        return ProbeError("ProcessExpired", "the process that read the header died twice", True)

    def _schedule(self, entry: Entry, workers: int) -> "Future[Any]":
        if self._pool is None or not self._pool.active:
            # A process that dies before its task has begun breaks the whole pool.
            self.stop()
            self._pool = ProcessPool(max_workers=workers, context=multiprocessing.get_context("spawn"))
        future: Future[Any] = self._pool.schedule(_probe, args=(self._storage, entry), timeout=_limit_s(entry))
        return future

    def stop(self) -> None:
        """End the processes, whatever they are at."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()


@contextmanager
def prober(storage: StorageConfig) -> Iterator[Prober]:
    """A ``Prober`` whose processes are gone at the end."""
    running = Prober(storage)
    try:
        yield running
    finally:
        running.stop()


def _limit_s(entry: Entry) -> float:
    return TIMEOUT_S + (PATIENCE_S if is_s3(entry.uri) else 0)
