"""Evaluations over the pairs of a lake: which pairs, which models, what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.dynamics import dynamics_figures, judge_dynamics
from evaluation.features import ImageFeatures
from evaluation.intervals import Figure, plain
from evaluation.judge import Judge
from evaluation.world import Pairs, WorldTest, world_figures
from lake.errors import Refused
from lake.ids import content_id
from lake.runs import Run, new_run_id
from lake.tables import Lake
from models.loading import ResolvedModel, load_dynamics, resolve
from models.settings import ModelSettings, WorldSettings
from models.verification import resized
from models.world_loading import load_world, world_folder
from worldlake import console
from worldlake.evaluation_pairs import Choice, Chosen, Oracles, batches, choose
from worldlake.evaluation_report import Sample, dynamics_sample, world_samples, write_report

# Pictures in a report: enough to see what the figures mean, few enough to look at.
_SHOWN = 24


@dataclass(frozen=True)
class WorldOptions:
    """Options of `worldlake evaluate world` beside the pairs; see `evaluation.world.WorldTest`."""

    world: WorldSettings
    model: ModelSettings
    n: int
    referee: ModelSettings | None = None
    oracle: bool = False
    features: tuple[str, ...] = ()
    judge: str | None = None
    judge_model: str = ""


@dataclass
class Outcome:
    """Result of an evaluation. `figures` by method (of a dynamics model there is one) and name."""

    kind: str
    run_id: str
    figures: dict[str, dict[str, Figure]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    report: Path | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "kind": self.kind,
            "run_id": self.run_id,
            **self.counts,
            "seconds": round(self.seconds, 1),
            "figures": plain_figures(self.figures),
            "report": str(self.report.resolve()) if self.report else None,
        }

    def tables(self) -> Iterator[tuple[str, Sequence[str], list[tuple[str, ...]]]]:
        """Title, columns and rows of the tables to print: methods that have the same figures stand side by side."""
        for methods in side_by_side(self.figures):
            names = list(dict.fromkeys(name for method in methods for name in self.figures[method]))
            rows = [(name, *(str(self.figures[method].get(name, "")) for method in methods)) for name in names]
            yield f"\n{self.kind} model: value (95 % interval) of samples", ("figure", *methods), rows

    def text(self) -> str:
        """Counts and where to look further."""
        unreadable = self.counts["unreadable"]
        lines = [f"{self.counts['pairs']:,} pairs in {self.seconds:.0f} s, run {self.run_id}"]
        if unreadable:
            lines.append(f"{unreadable:,} pairs have images that cannot be read; no figure counts them")
        if self.report:
            lines.append(f"open {self.report.resolve()} in a browser")
        return "\n".join(lines)


def side_by_side(figures: dict[str, dict[str, Figure]]) -> list[list[str]]:
    """The methods in groups that share figures."""
    groups: list[list[str]] = []
    for method, own in figures.items():
        if groups and own.keys() & figures[groups[-1][0]].keys():
            groups[-1].append(method)
        else:
            groups.append([method])
    return groups


def plain_figures(figures: dict[str, dict[str, Figure]]) -> dict[str, dict[str, Any]]:
    """Figures as JSON has them."""
    return {method: {name: plain(figure) for name, figure in own.items()} for method, own in figures.items()}


def evaluate_dynamics(lake: Lake, choice: Choice, settings: ModelSettings, report: Path | None) -> Outcome:
    """Evaluate a dynamics model on the chosen pairs.

    Raises:
        Refused: there is no such pair, an action is empty, or the model cannot be used.
    """
    _check_report(report)
    resolved = resolve(settings)
    chosen = choose(lake, choice)
    model = load_dynamics(resolved.settings)
    rows: list[dict[str, Any]] = []
    samples: list[Sample] = []
    config = {"model": resolved.settings.model_dump(mode="json")}
    with _run(lake, "dynamics", choice, chosen, config, {"model": content_id(resolved.identity)}, report) as outcome:
        for batch in batches(chosen, choice.batch_size, outcome.counts):
            obs, next_obs = (resized(images, model.image_size) for images in (batch.obs, batch.next_obs))
            judged = judge_dynamics(model, obs, next_obs, batch.actions, batch.others)
            rows += [{**row, "action": action} for row, action in zip(judged, batch.actions, strict=True)]
            for i in range(min(len(judged), _SHOWN - len(samples))):
                samples.append(dynamics_sample(batch.rows[i], batch.others[i], obs[i], next_obs[i], judged[i]))
        outcome.figures["dynamics"] = dynamics_figures(rows, [row["action"] for row in rows])
        _write_report(outcome, report, samples, choice, config)
    return outcome


def evaluate_world(lake: Lake, choice: Choice, options: WorldOptions, report: Path | None) -> Outcome:
    """Evaluate a world model on the chosen pairs.

    Raises:
        Refused: there is no such pair, an action is empty, a model or the judge cannot be used, the
            referee is the model that chooses, or the oracle does not know the videos.
    """
    _check_report(report)
    _check_drawing(options)
    _, hashes = world_folder(options.world)
    verifier, referee = _second_models(options)
    chosen = choose(lake, choice)
    oracles = Oracles(lake, chosen) if options.oracle else None
    test = _world_test(options, choice, verifier, referee)
    identities = {"world": content_id(hashes)}
    identities |= {name: content_id(one.identity) for name, one in (("model", verifier), ("referee", referee)) if one}
    config = {
        "world": options.world.model_dump(mode="json"),
        "model": verifier.settings.model_dump(mode="json") if verifier else None,
        "referee": referee.settings.model_dump(mode="json") if referee else None,
        "n": options.n,
        "features": options.features,
        "judge": {"name": options.judge_model, "url": options.judge} if options.judge else None,
    }
    rows: list[dict[str, Any]] = []
    samples: list[Sample] = []
    with _run(lake, "world", choice, chosen, config, identities, report) as outcome:
        for number, batch in enumerate(batches(chosen, choice.batch_size, outcome.counts)):
            shows = [oracles.of(row) for row in batch.rows] if oracles else None
            pairs = Pairs(batch.obs, batch.next_obs, batch.actions, batch.others, shows)
            judged, made = test.judge_pairs(pairs, number)
            rows += judged
            samples += world_samples(batch.rows, made, judged, test.method)[: _SHOWN - len(samples)]
        outcome.figures = world_figures(rows)
        _write_report(outcome, report, samples, choice, config)
    return outcome


def _check_drawing(options: WorldOptions) -> None:
    """Nothing that is asked for may do nothing."""
    drawing = options.world.sampling
    if drawing.temperature == 0 and (drawing.top_k is not None or drawing.top_p < 1):
        raise Refused("--temperature 0 always takes the most likely token: leave --top-k and --top-p out")
    if drawing.temperature == 0 and options.n > 1:
        raise Refused(f"at --temperature 0 all {options.n} candidates are the same: use -n 1, or a temperature above 0")


def _second_models(options: WorldOptions) -> tuple[ResolvedModel | None, ResolvedModel | None]:
    """The model that chooses among candidates, and the one that names what is shown; they must differ."""
    if options.n == 1:
        # Nothing is chosen, so that either may be the referee.
        return None, resolve(options.referee or options.model)
    verifier, referee = resolve(options.model), resolve(options.referee) if options.referee else None
    if referee and _weights(verifier) == _weights(referee):
        raise Refused("the referee is the model that chooses: name another one with --referee, or use -n 1")
    return verifier, referee


def _weights(model: ResolvedModel) -> dict[str, Any]:
    return {name: digest for name, digest in model.identity.items() if name.endswith(".safetensors")}


def _world_test(
    options: WorldOptions, choice: Choice, verifier: ResolvedModel | None, referee: ResolvedModel | None
) -> WorldTest:
    world = load_world(options.world)
    return WorldTest(
        world,
        options.n,
        choice.seed,
        verifier=load_dynamics(verifier.settings) if verifier else None,
        referee=load_dynamics(referee.settings) if referee else None,
        features=[ImageFeatures(name) for name in options.features],
        judge=Judge(options.judge, options.judge_model) if options.judge else None,
    )


@contextmanager
def _run(
    lake: Lake,
    kind: str,
    choice: Choice,
    chosen: Chosen,
    config: dict[str, Any],
    hashes: dict[str, str],
    report: Path | None,
) -> Iterator[Outcome]:
    """A row of `runs` around an evaluation; the figures are in its config, beside what they are the figures of."""
    recorded = {
        "what": kind,
        **config,
        "selection": choice.selection.model_dump(mode="json"),
        "limit": choice.limit,
        "seed": choice.seed,
        "triples_version": chosen.version,
    }
    started = time.monotonic()
    counts = {"pairs": 0, "unreadable": 0}
    with Run(
        lake,
        new_run_id(),
        "evaluate",
        recorded,
        model_hashes=hashes,
        counts=counts,
        on_error=console.log.warning,
    ) as run:
        outcome = Outcome(kind, run.run_id, counts=counts, report=report)
        yield outcome
        outcome.seconds = time.monotonic() - started
        run.timings["seconds"] = round(outcome.seconds, 1)
        run.config["figures"] = plain_figures(outcome.figures)


def _check_report(path: Path | None) -> None:
    """Hours later is too late to learn that a report cannot be written."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise Refused(f"--report {path}: {error.strerror}: name a file that can be written") from None


def _write_report(
    outcome: Outcome, path: Path | None, samples: list[Sample], choice: Choice, config: dict[str, Any]
) -> None:
    if path is not None:
        tables = [{"columns": columns, "rows": rows} for _, columns, rows in outcome.tables()]
        write_report(path, outcome.kind, outcome.run_id, outcome.counts, tables, samples, choice.selection, config)
