"""Where a lake, in whatever file and version, still holds something: for tests of what must be gone."""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import suppress

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lake.tables import Lake


def traces(lake: Lake, needles: Iterable[str]) -> list[str]:
    """Files under a lake that hold one of the texts: in their bytes, or in a column of a Parquet file."""
    wanted = [needle.encode() for needle in needles]
    filesystem, root = lake.storage.filesystem(lake.uri)
    infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    paths = [info.path for info in infos if info.type == pafs.FileType.File]
    return [path for path in sorted(paths) if _holds(_read(filesystem, path), wanted)]


def _read(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as file:
        return bytes(file.read())


def _holds(content: bytes, wanted: list[bytes]) -> bool:
    seen = [content]
    if content.startswith(b"PAR1"):
        # Its pages are compressed.
        with suppress(pa.ArrowInvalid, OSError):
            seen.append(repr(pq.read_table(io.BytesIO(content)).to_pylist()).encode())
    return any(needle in one for one in seen for needle in wanted)
