"""Keys that are made and revoked at the same time; in a module that imports little, as processes import it too."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

from lake.tables import Lake
from serve.keys import Keys


def raced(make: Callable[[], Keys], rounds: int, pool: Callable[[int], Executor]) -> tuple[list[str], list[str]]:
    """Revoke one key while another is made, again and again; the names that came back, and those that are lost."""
    back, lost = [], []
    with pool(2) as workers:
        for number in range(rounds):
            make().create(f"old {number}", ("admin",))
            ended = [workers.submit(_revoke, make, f"old {number}"), workers.submit(_create, make, f"new {number}")]
            for one in ended:
                one.result()
            names = {key.name for key in make().read()}
            back += [f"old {number}"] * (f"old {number}" in names)
            lost += [f"new {number}"] * (f"new {number}" not in names)
            for name in names:
                make().revoke(name)
    return back, lost


def _revoke(make: Callable[[], Keys], name: str) -> None:
    make().revoke(name)


def _create(make: Callable[[], Keys], name: str) -> None:
    make().create(name, ("read",))


def keys_of(uri: str) -> Keys:
    return Keys(Lake(uri))
