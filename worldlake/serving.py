"""The service as an application that a Ray cluster imports, for Kubernetes: `worldlake.serving:application`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import typer

from lake.errors import Refused
from lake.s3 import Unavailable
from lake.tables import Lake
from serve.run import bound, plan, session
from worldlake import console
from worldlake.options import open_lake, storage
from worldlake.serve import serve
from worldlake.service import Options

_ANYWHERE = "0.0.0.0"  # noqa: S104 - Ray's configuration says where it listens
_POLL_S = 10.0
"""Seconds between checks for a lake and a key that do not exist yet."""


def application(args: dict[str, str]) -> Any:
    """Build the Ray Serve application of `import_path: worldlake.serving:application`, as in a Kubernetes RayService.

    `args` are options of `worldlake serve`, such as `config`, and `device`: cpu or cuda, for a cluster whose GPUs are
    yet to come. Where it listens is said in the `http_options` of Serve's own configuration, so it is taken as open to
    other machines. Waits for its lake and for a key, as Serve starts what failed again only when its configuration
    changes. Raises Refused, ModelRefused for the rest, as the command does.
    """
    device = args.get("device")
    command = typer.Typer()
    command.command()(serve)
    given = [f"--{name}={value}" for name, value in args.items() if name != "device"]
    values = typer.main.get_command(command).make_context("worldlake serve", given).params
    settings = Options(**{name: values[name] for name in Options.__dataclass_fields__}).settings()
    store = storage(values["endpoint_url"], values["region"], values["profile"])
    lake = _lake_with_a_key(lambda: open_lake(values["lake"], store))
    return bound(plan(lake, settings.model_copy(update={"device": device}), None))


def _lake_with_a_key(opened: Callable[[], Lake]) -> Lake:
    """Wait until the lake exists and has a key."""
    while True:
        try:
            lake = opened()
            session(lake, _ANYWHERE)
        except (Refused, Unavailable) as error:
            console.log.warning("the service waits: %s", error)
            time.sleep(_POLL_S)
        else:
            return lake
