"""The service as an application that a Ray cluster imports, for Kubernetes: `worldlake.serving:application`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cyclopts import App

from lake.errors import WorldlakeError
from lake.retry import Schedule, retry
from lake.tables import Lake
from serve.run import bound, plan, session
from worldlake import console
from worldlake.commands.serve import serve
from worldlake.config import read_config
from worldlake.options import open_lake
from worldlake.service import service_settings

_ANYWHERE = "0.0.0.0"  # noqa: S104 - Ray's configuration says where it listens
_FOREVER = Schedule((10,), patience_s=math.inf)
"""Between checks for a lake and a key that do not exist yet."""


def application(args: dict[str, str]) -> Any:
    """Build the Ray Serve application of `import_path: worldlake.serving:application`, as in a Kubernetes RayService.

    `args` are options of `worldlake serve`, such as `config`, and `device`: cpu or cuda, for a cluster whose GPUs are
    yet to come. Where it listens is said in the `http_options` of Serve's own configuration, so it is taken as open to
    other machines. Waits for its lake and for a key, as Serve starts what failed again only when its configuration
    changes. Raises Refused for the rest, as the command does.
    """
    device = args.get("device")
    app = App(default_command=serve, config=read_config)
    given = [f"--{name}={value}" for name, value in args.items() if name != "device"]
    _, bound_arguments, _ = app.parse_args(given, exit_on_error=False, print_error=False)
    bound_arguments.apply_defaults()
    options = bound_arguments.arguments
    names = ("model", "policy", "world", "replicas", "allow")
    settings = service_settings(*(options[name] for name in names))
    lake = _lake_with_a_key(lambda: open_lake(options["lake"], options["storage"]))
    return bound(plan(lake, settings.model_copy(update={"device": device}), None))


def _lake_with_a_key(opened: Callable[[], Lake]) -> Lake:
    """Wait until the lake exists and has a key."""

    def check() -> Lake:
        lake = opened()
        session(lake, _ANYWHERE)
        return lake

    return retry(
        check,
        _FOREVER,
        lambda error: isinstance(error, WorldlakeError),
        lambda error, wait_s: console.log.warning("the service waits: %s", error),
    )
