"""The Ray Serve application: an ingress and a deployment for each model, started and kept up."""

from __future__ import annotations

import logging
import sys
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
from serve.admission import at_once
from serve.answers import Answers
from serve.app import build_app
from serve.guard import LOCAL, Guard
from serve.keys import Keys
from serve.middleware import audit
from serve.replicas import Dynamics, World
from serve.services import Remote, Services
from serve.settings import ServeSettings
from serve.uploads import Uploads
from serve.videos import Videos
from serve.writing import Writer

NAME = "worldlake"
_DRAIN_S = 60.0
"""A replica that is stopped finishes what it has accepted, so long."""
_READERS = 64
"""Requests of an ingress that its proxies do not count: health, metrics, pages."""


@dataclass(frozen=True)
class Plan:
    """Settings, resolved and checked: what a service will be."""

    lake: Lake
    settings: ServeSettings
    labeler: Labeler
    policy: Policy
    world_size: int | None
    device: str
    is_local: bool
    """Only this machine can reach it."""


def plan(lake: Lake, settings: ServeSettings, host: str) -> Plan:
    """Check everything before a model is loaded: for the cluster that Ray is connected to, else for this machine.

    Raises:
        Refused, ModelRefused: a model, the policy or the lake cannot be used, or other machines could reach the
            service and there are no keys.
    """
    device = settings.device or _best_device()
    labeler = resolve_labeler(settings.labeler, device)
    policy = load_policy(settings.policy)
    size = None
    if settings.world is not None:
        folder, _ = world_folder(settings.world)
        size = load_image_tokenizer(folder, asked_size(settings.world, folder), "cpu").image_size
    return Plan(lake, settings, labeler, policy, size, device, is_local=not refuse_open(lake, host))


def _best_device() -> str:
    if not ray.is_initialized():
        return best_device()
    return "cuda" if ray.cluster_resources().get("GPU") else "cpu"


def refuse_open(lake: Lake, host: str) -> bool:
    """Whether other machines can reach a service at this address. Raises Refused where they could without a key."""
    is_open = host not in LOCAL and f"[{host}]" not in LOCAL
    if is_open and not Keys(lake).read():
        raise Refused(
            f"--host {host} lets other machines in, and there is no key: worldlake keys create NAME --scope label "
            f"--lake {lake.uri}"
        )
    return is_open


@serve.ingress()
class Ingress:
    """Reads requests, decodes uploads, asks the models, answers."""

    def __init__(self, plan: Plan, dynamics: Any, world: Any | None, writer: Any) -> None:
        # To this process's output, which Ray keeps.
        audit.setLevel(logging.INFO)
        audit.addHandler(logging.StreamHandler(sys.stdout))
        # Its lines are JSON already: once is enough.
        audit.propagate = False
        settings = plan.settings
        quality = settings.labeler.sampling.jpeg_quality
        self._services = Services(
            lake=plan.lake,
            models=(remote := Remote(dynamics, world, writer)),
            writer=remote,
            answers=Answers(plan.lake),
            guard=Guard(Keys(plan.lake), open_as=LOCAL if plan.is_local else ()),
            uploads=Uploads(plan.labeler.image_size, quality, settings.limits.pixels),
            videos=Videos(plan.lake, plan.labeler, settings.limits, settings.sources),
            policy=plan.policy,
            labeler_id=plan.labeler.id,
            dynamics_size=plan.labeler.image_size,
            world_size=plan.world_size,
            limits=settings.limits,
            write_here=Writer(plan.lake, plan.labeler, plan.policy).write_now,
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray Serve hands requests to."""
        return build_app(self._services)


def start(plan: Plan, host: str, port: int) -> None:
    """Start the application and return once its models are warm. `stop` ends it."""
    # `run` finds what `start` has started, and says that as if an option had been lost.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options=HTTPOptions(host=host, port=port))
    serve.run(bound(plan), name=NAME, route_prefix="/", logging_config={"enable_access_log": False})


def stop(*, cluster_stays: bool) -> None:
    """Finish what was accepted, and end the application; where the cluster goes on without it, all of Serve."""
    serve.delete(NAME)
    if cluster_stays:
        serve.shutdown()


def bound(plan: Plan) -> Any:
    """The deployments, bound to each other: what Ray Serve runs."""
    settings = plan.settings
    shared: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": 0, "num_gpus": 1 if plan.device == "cuda" else 0},
        # All that waits waits at a replica: a handle whose replicas are full asks them again ever more seldom, and
        # they idle meanwhile.
        "max_ongoing_requests": settings.queue,
        "max_queued_requests": settings.queue,
        "graceful_shutdown_timeout_s": _DRAIN_S,
        "health_check_timeout_s": 60,
    } | _scaling(settings)
    # A request is never split, so that a batch takes the largest.
    limits, wait_s = settings.limits, settings.batch_wait_s
    pairs = max(settings.batch_pairs, limits.pairs, limits.candidates)
    dynamics = (
        serve.deployment(Dynamics).options(**shared).bind(plan.labeler.settings.model, plan.device, pairs, wait_s)
    )
    world = None
    if settings.world is not None:
        drawn = max(settings.batch_pairs, limits.candidates)
        world = serve.deployment(World).options(**shared).bind(settings.world, plan.device, drawn, wait_s)
    # One: it alone decides about live pairs. A commit may have to wait for a lake that is away for minutes.
    writer = serve.deployment(Writer).options(
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=settings.queue,
        max_queued_requests=settings.queue,
        graceful_shutdown_timeout_s=_DRAIN_S,
    )
    ingress = serve.deployment(Ingress).options(
        ray_actor_options={"num_cpus": 0},
        # As many as a proxy lets in; those beside them only read.
        max_ongoing_requests=at_once(settings) + _READERS,
        graceful_shutdown_timeout_s=_DRAIN_S,
    )
    return ingress.bind(plan, dynamics, world, writer.bind(plan.lake, plan.labeler, plan.policy))


def _scaling(settings: ServeSettings) -> dict[str, Any]:
    least, most = settings.replicas
    if least == most:
        return {"num_replicas": least}
    wanted = settings.batch_pairs
    return {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": wanted}}
