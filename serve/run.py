"""The Ray Serve application: an ingress and a deployment for each model, started and kept up."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.types import ASGIApp

from labeling.labeler import Labeler, resolve_labeler
from labeling.policy import Policy, load_policy
from lake.errors import Refused
from lake.tables import Lake
from models.loading import best_device
from models.world_loading import asked_size, load_image_tokenizer, world_folder
from serve.app import build_app
from serve.auth import Guard, session_key
from serve.idempotency import Answers
from serve.keys import Key, Keys
from serve.limits import QUEUE, Limits
from serve.live_writer import LiveWriter
from serve.load_shedding import INGRESS, NAME, with_others
from serve.middleware import audit_to_output
from serve.replicas import Dynamics, World
from serve.services import Remote, Services
from serve.settings import ServeSettings
from serve.uploads import Uploads
from serve.videos import Videos

_DRAIN_S = 60.0
"""How long a stopped replica has to finish accepted requests."""
LOCAL = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine for itself."""
_BATCH_WAIT_S = 0.01
"""How long a batch waits for more requests."""
_NEVER_FULL = 4096
"""Requests of an ingress. Its proxies count them, each for itself; health and metrics must find room beside those."""


@dataclass(frozen=True)
class Plan:
    """The resolved and checked settings of a service."""

    lake: Lake
    settings: ServeSettings
    labeler: Labeler
    policy: Policy
    world_size: int | None
    device: str
    session: Key | None
    """The only valid key while the lake has none. None if other machines can reach the service."""


def plan(lake: Lake, settings: ServeSettings, session: Key | None) -> Plan:
    """Check everything before a model is loaded: for the cluster that Ray is connected to, else for this machine.

    Raises:
        Refused: a model, the policy or the lake cannot be used.
    """
    device = settings.device or _best_device()
    labeler = resolve_labeler(settings.labeler, device)
    policy = load_policy(settings.policy)
    size = None
    if settings.world is not None:
        folder, _ = world_folder(settings.world)
        size = load_image_tokenizer(folder, asked_size(settings.world, folder), "cpu").image_size
    return Plan(lake, settings, labeler, policy, size, device, session)


def _best_device() -> str:
    if not ray.is_initialized():
        return best_device()
    return "cuda" if ray.cluster_resources().get("GPU") else "cpu"


def session(lake: Lake, host: str) -> tuple[Key, str] | None:
    """Return a key for this run of a service, and its token; None if the lake has keys.

    Raises Refused if it has none and other machines can reach this address.
    """
    if Keys(lake).read():
        return None
    if host not in LOCAL and f"[{host}]" not in LOCAL:
        raise Refused(
            f"--host {host} lets other machines in, and there is no key: worldlake keys create NAME --scope label "
            f"--lake {lake.uri}"
        )
    return session_key()


@serve.ingress()
class Ingress:
    """Reads requests, decodes uploads, asks the models, answers."""

    def __init__(self, plan: Plan, dynamics: Any, world: Any | None, writer: Any) -> None:
        audit_to_output()
        settings, limits = plan.settings, Limits()
        quality = settings.labeler.sampling.jpeg_quality
        self._services = Services(
            lake=plan.lake,
            models=(remote := Remote(dynamics, world, writer)),
            writer=remote,
            answers=Answers(plan.lake),
            guard=Guard(Keys(plan.lake), plan.session),
            uploads=Uploads(plan.labeler.image_size, quality, limits.pixels),
            videos=Videos(plan.lake, plan.labeler, limits, settings.sources),
            policy=plan.policy,
            labeler_id=plan.labeler.id,
            dynamics_size=plan.labeler.image_size,
            world_size=plan.world_size,
            limits=limits,
            write_here=LiveWriter(plan.lake, plan.labeler, plan.policy).write_now,
        )

    async def keys(self) -> list[Key]:
        """Return the valid keys, for proxies."""
        return await self._services.guard.keys()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application that Ray Serve calls."""
        return build_app(self._services)


def start(plan: Plan, host: str, port: int) -> None:
    """Start the application and return once its models are warm. `stop` ends it."""
    # `run` finds what `start` has started, and says that as if an option had been lost.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options=HTTPOptions(host=host, port=port))
    serve.run(bound(plan), name=NAME, route_prefix="/", logging_config={"enable_access_log": False})


def stop(*, cluster_stays: bool) -> None:
    """Finish accepted requests and stop the application; if the cluster stays, also Ray Serve."""
    serve.delete(NAME)
    if cluster_stays:
        serve.shutdown()


def bound(plan: Plan) -> Any:
    """Return the deployments, bound to each other, for Ray Serve."""
    settings = plan.settings
    shared: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": 0, "num_gpus": 1 if plan.device == "cuda" else 0},
        # All that waits waits at a replica: a handle whose replicas are full asks them again ever more seldom, and
        # they idle meanwhile.
        "max_ongoing_requests": with_others(QUEUE),
        "max_queued_requests": with_others(QUEUE),
        "graceful_shutdown_timeout_s": _DRAIN_S,
        "health_check_timeout_s": 60,
    }
    # A request is never split, so that a batch takes the largest.
    limits = Limits()
    pairs = max(settings.labeler.model.batch_size, limits.pairs, limits.candidates)
    model = plan.labeler.settings.model
    scaling = _scaling(settings, settings.labeler.model.batch_size)
    dynamics = serve.deployment(Dynamics).options(**shared, **scaling).bind(model, plan.device, pairs, _BATCH_WAIT_S)
    world = None
    if settings.world is not None:
        scaling = _scaling(settings, settings.world.batch_size)
        world = serve.deployment(World).options(**shared, **scaling).bind(settings.world, plan.device, _BATCH_WAIT_S)
    # One: it alone decides about live pairs. A commit may have to wait for a lake that is away for minutes.
    writer = serve.deployment(LiveWriter).options(
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=with_others(QUEUE),
        max_queued_requests=with_others(QUEUE),
        graceful_shutdown_timeout_s=_DRAIN_S,
    )
    ingress = serve.deployment(Ingress).options(
        name=INGRESS,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_NEVER_FULL,
        graceful_shutdown_timeout_s=_DRAIN_S,
    )
    return ingress.bind(plan, dynamics, world, writer.bind(plan.lake, plan.labeler, plan.policy))


def _scaling(settings: ServeSettings, target: int) -> dict[str, Any]:
    """Return the replicas of a model; where they may vary, `target` is how many requests each is to work on."""
    least, most = settings.replicas
    if least == most:
        return {"num_replicas": least}
    return {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": target}}
