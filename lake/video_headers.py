"""Read what the header of a video says, over ranged reads, in a process that can be killed."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import IO, NamedTuple

import av
from av.container import InputContainer

from lake.errors import ChildLost
from lake.isolation import Isolated, IsolatedPool
from lake.storage import Entry, StorageConfig
from lake.store_errors import is_transient, outage
from lake.video import open_container

# A header is read in milliseconds; a demuxer that takes half a minute hangs.
TIMEOUT_S = 30.0
# Headers are small reads with waits in between, in S3 above all.
WORKERS = 4


class Header(NamedTuple):
    """The header of a container; None where it says nothing. Width and height are those before display rotation."""

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

    Raises ``av.FFmpegError`` when it is damaged and ``ValueError`` when it is not a video or has no picture.
    """
    with open_container(file) as container:
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
    """Runs in the child: errors come back as values, because those of FFmpeg cannot all be pickled.

    Raises Unavailable for what affects every other video as well.
    """
    try:
        storage.verify(entry.uri, entry.etag)
        if not entry.bytes:
            return ProbeError("EmptyFile", "the file has 0 bytes", False)
        with storage.open_ranged(entry) as file:
            header = read_header(file)
        storage.verify(entry.uri, entry.etag)
        return header
    except Exception as error:  # whatever a broken file provokes is that file's failure
        if everywhere := outage(error):
            raise everywhere from None
        message = error.strerror if isinstance(error, av.FFmpegError) else str(error)
        return ProbeError(type(error).__name__, message or repr(error), is_transient(error))


class Prober:
    """Read headers in a few processes."""

    def __init__(self, storage: StorageConfig, pool: IsolatedPool) -> None:
        self._storage, self._pool = storage, pool

    def probe(self, entries: Sequence[Entry]) -> Iterator[Header | ProbeError]:
        """Yield the header or the error of every entry, in order; a hang or a crash costs its own entry only.

        Raises Unavailable for what affects every other entry as well.
        """
        return self._pool.map(self._probe, entries)

    def _probe(self, child: Isolated, entry: Entry) -> Header | ProbeError:
        try:
            return child.call(_probe, self._storage, entry)
        except ChildLost as error:
            return ProbeError("ChildLost", str(error), True)


@contextmanager
def prober(storage: StorageConfig, timeout_s: float = TIMEOUT_S) -> Iterator[Prober]:
    """Yield a ``Prober`` whose processes are gone at the end; `timeout_s` is for one header."""
    with closing(IsolatedPool(WORKERS, timeout_s)) as pool:
        yield Prober(storage, pool)
