"""`worldlake train dynamics|world`: an option for every setting of `training.settings`, said once, there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
import yaml

from lake.errors import Refused
from training.settings import DynamicsTraining, Source, TrainingSettings, WorldTraining
from worldlake import console
from worldlake.options import Config, Endpoint, Json, LakeUri, Profile, Region, finite, open_lake, storage

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train a model on the triples of a lake. The same command goes on where the last one stopped.",
)

_SOURCE = (
    "As `key: value` pairs in braces; repeat it to mix sources. Keys: "
    + ", ".join(Source.model_fields)
    + ". Example: '{datasets: [magicbrush], factor: 15}'."
)
_WORKERS = "Processes, one a GPU; 2-8: as many of these as the cluster has, growing and shrinking with it."


def train_command(settings: type[TrainingSettings], options: dict[str, Any]) -> int:
    """Train with options as typed: those of `settings` by field, and those that every command has."""
    lake = open_lake(
        options.pop("lake"), storage(options.pop("endpoint_url"), options.pop("region"), options.pop("profile"))
    )
    as_json, run, out, hours = (options.pop(name) for name in ("json", "run", "out", "max_hours"))
    options.pop("config")
    wanted = _settings(settings, options)
    # Seconds of imports, which who mistyped an option does without.
    from training.run import train
    from worldlake.label import draining

    with draining(hours) as (stop, start_cluster), console.counter("train") as counter:
        summary = train(
            lake,
            wanted,
            run=run,
            out=out,
            stop=stop,
            start_cluster=start_cluster,
            progress=lambda line: show(line, counter),
            warn=console.log.warning,
        )
    if as_json:
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


def _settings(settings: type[TrainingSettings], options: dict[str, Any]) -> TrainingSettings:
    sources = options.pop("source")
    # What was not said is left to the settings: some of them mean something only beside others.
    given = {name: value for name, value in options.items() if value != settings.model_fields[name].default}
    if sources:
        given["sources"] = [_mapping(source) for source in sources]
    if "workers" in given:
        given["workers"] = _workers(given["workers"])
    return settings.checked(given)


def _mapping(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Refused(f"--source {text!r} is not YAML ({str(error).splitlines()[0]}): {_SOURCE}") from None


def _workers(text: str) -> int | tuple[int, int]:
    least, dash, most = text.partition("-")
    if not least.isdecimal() or (dash and not most.isdecimal()):
        raise Refused(f"--workers {text!r}: give a number, or two with a dash, such as 2-8")
    return (int(least), int(most)) if dash else int(least)


def _option(name: str, settings: type[TrainingSettings]) -> inspect.Parameter:
    """The option of a setting: its type, its default and its description."""
    field = settings.model_fields[name]
    text = _sentence(field.description)
    kind, default, option = field.annotation, field.default, typer.Option(help=text)
    if name == "sources":
        name, kind, default, option = "source", list[str] | None, None, typer.Option(help=f"{text} {_SOURCE}")
    elif name == "workers":
        kind, default, option = str, str(default), typer.Option(help=_WORKERS)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _sentence(description: str | None) -> str:
    return f"{description[0].upper()}{description[1:]}." if description else ""


_COMMON: dict[str, tuple[Any, Any]] = {
    "run": (
        Annotated[str | None, typer.Option(help="Name of the run; default: one that the same settings always have.")],
        None,
    ),
    "out": (
        Annotated[str | None, typer.Option(help="Where checkpoints and the model go; default: LAKE/models.")],
        None,
    ),
    "max_hours": (
        Annotated[
            float | None,
            typer.Option(min=0, callback=finite, help="Stop with a checkpoint after so many hours."),
        ],
        None,
    ),
    "endpoint_url": (Endpoint, None),
    "region": (Region, None),
    "profile": (Profile, None),
    "json": (Json, False),
    "config": (Config, None),
}


def _register(settings: type[TrainingSettings], text: str) -> None:
    def command(**options: Any) -> int:
        return train_command(settings, options)

    lake = inspect.Parameter("lake", inspect.Parameter.KEYWORD_ONLY, annotation=LakeUri)
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _COMMON.items()
    ]
    parameters = [lake, *(_option(name, settings) for name in settings.model_fields), *common]
    # What typer makes options from.
    typed: Callable[..., int] = command
    typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    typed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(settings.task, help=text)(typed)


_register(
    DynamicsTraining,
    "Fine-tune a vision-language model to name the action between two frames.\n\n"
    "Start with a few hundred labeled pairs (`worldlake ingest --format aurora ...`); label with the result: "
    "`worldlake label --model hf:BASE --adapter RUN/model`, or --model hf:RUN/model after --method full.\n\n"
    "  worldlake train dynamics --lake LAKE --model hf:Qwen/Qwen2.5-VL-3B-Instruct --epochs 3",
)
_register(
    WorldTraining,
    "Train an Emu3 model to draw what an action leads to, on every verified triple.\n\n"
    "Images become tokens once, in the table tokens; --floor 0.3 weighs tokens by how much their place changes.\n\n"
    "  worldlake train world --lake LAKE --epochs 40 --floor 0.3 "
    "--source '{datasets: [magicbrush], factor: 15}' --source '{datasets: [kubric]}'",
)
