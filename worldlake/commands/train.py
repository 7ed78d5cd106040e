"""`worldlake train dynamics|world`: an option for every field of `training.settings`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Group, Parameter

from cluster.signals import draining
from lake.storage import StorageConfig
from training.settings import DynamicsTraining, TrainingSettings, WorldTraining
from worldlake import console
from worldlake.api import train
from worldlake.options import ConfigFile, Json, LakeUri, Storage, filled, number, open_lake, renamed

_TRAINING = Group("Training", sort_key=3)
_RUN = Group("Run", sort_key=4)

Run = Annotated[
    str | None,
    Parameter(group=_RUN, validator=filled, help="Name of the run. Default: one that the same settings always have."),
]
Out = Annotated[
    str | None,
    Parameter(group=_RUN, validator=filled, help="Where checkpoints and the model go. Default: LAKE/models."),
]
MaxHours = Annotated[
    float | None, Parameter(group=_RUN, validator=number(0), help="Stop with a checkpoint after N hours.")
]


if TYPE_CHECKING:
    DynamicsOptions: TypeAlias = DynamicsTraining
    WorldOptions: TypeAlias = WorldTraining
else:
    # One --source for each of the sources.
    _ONE = Parameter(name="--source", show_default=False)
    DynamicsOptions, WorldOptions = (renamed(one, sources=_ONE) for one in (DynamicsTraining, WorldTraining))


def dynamics(
    *,
    lake: LakeUri,
    settings: Annotated[DynamicsOptions | None, Parameter(name="*", group=_TRAINING)] = None,
    run: Run = None,
    out: Out = None,
    max_hours: MaxHours = None,
    storage: Storage = StorageConfig(),
    json: Json = False,
    config: ConfigFile = None,
) -> int:
    """Fine-tune a vision-language model to name the action between two frames.

    Start with a few hundred labeled pairs (`worldlake ingest --format aurora ...`). Label with the result:
    `worldlake label --model hf:BASE --adapter RUN/model`, or --model hf:RUN/model after --method full. The same
    command resumes.

    Example: worldlake train dynamics --lake LAKE --model hf:Qwen/Qwen2.5-VL-3B-Instruct --epochs 3
    """
    return _train(lake, storage, settings or DynamicsOptions(), run, out, max_hours, json)


def world(
    *,
    lake: LakeUri,
    settings: Annotated[WorldOptions | None, Parameter(name="*", group=_TRAINING)] = None,
    run: Run = None,
    out: Out = None,
    max_hours: MaxHours = None,
    storage: Storage = StorageConfig(),
    json: Json = False,
    config: ConfigFile = None,
) -> int:
    """Train an Emu3 model to draw what an action leads to, on every verified triple.

    Images become tokens once, in the table tokens. --floor 0.3 weights tokens by how much their place changes. The same
    command resumes.

    Example: worldlake train world --lake LAKE --epochs 40 --floor 0.3 --source '{datasets: [magicbrush], factor: 15}'
    --source '{datasets: [kubric]}'
    """
    return _train(lake, storage, settings or WorldOptions(), run, out, max_hours, json)


def _train(
    lake: str,
    storage: StorageConfig,
    settings: TrainingSettings,
    run: str | None,
    out: str | None,
    max_hours: float | None,
    json: bool,
) -> int:
    target = open_lake(lake, storage)
    with draining(max_hours) as stop, console.counter("train") as counter:
        summary = train(target, settings, run=run, out=out, stop=stop, progress=lambda line: show(line, counter))
    if json:
        console.print_json(vars(summary))
    else:
        console.out.print(summary.text(), markup=False)
    return 0


def show(line: dict[str, Any], counter: console.Counter) -> None:
    """Show a line of the log as progress: how many steps of how many, and the other figures to three digits."""
    figures = {name: value for name, value in line.items() if name != "steps"}
    rounded: dict[str, Any] = {
        name: value if isinstance(value, int) else float(f"{value:.3g}") for name, value in figures.items()
    }
    counter(line.get("step", 0), rounded, line.get("steps"))
