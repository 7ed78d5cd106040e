"""`worldlake doctor`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from lake.storage import StorageConfig
from worldlake import console
from worldlake.options import ConfigFile, Json, Storage


def doctor(
    *,
    lake: Annotated[
        str | None, Parameter(name="--lake", help="Also check that this lake can be read and written.")
    ] = None,
    storage: Storage = StorageConfig(),
    json: Json = False,
    config: ConfigFile = None,
) -> int:
    """Check this machine for problems that would stop a run, and print fixes. Exit code 2 when there is one."""
    from worldlake.doctor import examine

    findings = examine(lake, storage)
    if json:
        console.print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            console.out.print(f"{finding.level:7} {finding.what}: {finding.found}", markup=False)
            if finding.remedy:
                console.out.print(f"        {finding.remedy}", markup=False)
    return 2 if any(finding.level == "stops" for finding in findings) else 0
