"""`worldlake status`."""

from __future__ import annotations

from lake.storage import StorageConfig
from worldlake import console
from worldlake.options import ConfigFile, Json, LakeUri, Storage, open_lake


def status(*, lake: LakeUri, storage: Storage = StorageConfig(), json: Json = False, config: ConfigFile = None) -> int:
    """Show what the lake holds, what is pending under each labeler, and whether the sums balance."""
    from worldlake.status import lake_status, print_status

    found = lake_status(open_lake(lake, storage))
    if json:
        console.print_json(found)
    else:
        print_status(found)
    return 0
