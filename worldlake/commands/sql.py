"""`worldlake sql`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from lake.storage import StorageConfig
from worldlake.options import ConfigFile, LakeUri, Storage, open_lake


def sql(
    query: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="One SELECT, or - to read it from standard input. SHOW TABLES lists the tables.",
        ),
    ],
    *,
    lake: LakeUri,
    format: Annotated[
        Literal["table", "csv", "json", "arrow"], Parameter(help="Output format; arrow is an IPC stream.")
    ] = "table",
    storage: Storage = StorageConfig(),
    config: ConfigFile = None,
) -> int:
    """Query the lake: one read-only SELECT over its tables, streamed.

    There is a view triples_<first 8 digits> for every labeler, and `current` is the labeler that finished last. Images
    are read only when a query names obs or next_obs; CSV and JSON show them as base64. Read a query from a file, also
    one that begins with a comment, with: worldlake sql - --lake LAKE < query.sql
    """
    from lake.sql import query as stream
    from lake.sql import write_result

    if query == "-":
        query = sys.stdin.read()
    with stream(open_lake(lake, storage), query) as result:
        try:
            write_result(result, format, sys.stdout.buffer)
        except BrokenPipeError:
            # The reader, `head` perhaps, has seen enough: end as a program does that SIGPIPE ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
    return 0
