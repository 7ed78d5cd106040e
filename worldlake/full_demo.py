"""`worldlake demo --full`: from a few labeled pairs to a world model, and what the unlabeled video was worth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.intervals import Figure
from labeling.human_labels import LabeledOptions, ingest_labeled
from lake.catalog import ingest
from lake.tables import Lake
from models.settings import ModelSettings, TokenSampling, WorldSettings
from sample_world.clips import FPS, make_clip, write_folder
from training.builtin.reset_vocabulary import write_dynamics, write_world
from training.settings import DynamicsTraining, Source, TrainingSettings, WorldTraining
from worldlake import console
from worldlake.api import label, train
from worldlake.commands.label import show as show_videos
from worldlake.commands.train import show
from worldlake.evaluation import WorldOptions, evaluate_dynamics, evaluate_world, plain_figures
from worldlake.evaluation_pairs import Choice

# Clips that the builtin models were not trained on and that the short demo does not use either.
FIRST_SEED = 6_000_000

_LABELS = "labels.jsonl"
_MAPPING = """\
name: sample-world
manifest: labels\\.jsonl
video: "{video}"
start_time: "{start_s}"
stop_time: "{stop_s}"
action: "{action}"
split: "{split}"
dataset: "sample-world-{split}"
"""
_HUMAN = "human:sample-world"
_UNLABELED = "sample-world-unlabeled"


@dataclass(frozen=True)
class Amounts:
    """Clips, of about six events each, and steps. With the defaults all of it took ten minutes on two cores."""

    labeled: int = 16
    unlabeled: int = 150
    held_out: int = 24
    dynamics_steps: int = 150
    world_steps: int = 250
    candidates: int = 4


def run_full_demo(folder: Path, seed: int, amounts: Amounts = Amounts()) -> dict[str, Any]:
    """Label, train, verify and compare; returns the figures. Running it again resumes."""
    started = time.monotonic()
    # Another seed has other clips and other models: nothing of one may be taken for the other's.
    folder = folder / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    bases = _bases(folder / "untaught", seed)
    lake = Lake(str(folder / "lake"))
    _say("1. a few clips are labeled by hand, and so are held-out ones to be tested with; most are not labeled")
    _ingest(lake, folder / "videos", FIRST_SEED + seed * 10_000, amounts)
    taught = Source(labelers=(_HUMAN,))
    _say("2. a dynamics model learns what happened from the labeled pairs")
    dynamics = ModelSettings(name=_train(lake, _dynamics_training(bases, taught, amounts)))
    _say("3. it labels the unlabeled clips, and every label is verified before it is written")
    where = f"dataset = '{_UNLABELED}'"
    with console.counter("label", unit="video") as counter:
        labels = label(
            lake, model=dynamics, where=where, progress=lambda done, counts: show_videos(done, counts, counter)
        )
    console.out.print(labels.text(), markup=False)
    found = Source(labelers=(labels.labeler_id,), datasets=(_UNLABELED,), splits=())
    _say("4. world models learn what an action leads to: from the labeled pairs alone, and from the verified ones too")
    worlds = {
        "labeled pairs alone": _train(lake, _world_training(bases, (taught,), amounts)),
        "with verified labels": _train(lake, _world_training(bases, (taught, found), amounts)),
    }
    _say("5. all are asked about held-out clips")
    outcomes = {"dynamics model": evaluate_dynamics(lake, _choice(), dynamics, folder / "dynamics.html")}
    for name, world in worlds.items():
        options = WorldOptions(
            WorldSettings(name=world, sampling=TokenSampling()), dynamics, amounts.candidates, oracle=True
        )
        outcomes[name] = evaluate_world(lake, _choice(), options, folder / f"{name.replace(' ', '-')}.html")
    for name, outcome in outcomes.items():
        _print(name, outcome.figures)
    reports = [str(outcome.report.resolve()) for outcome in outcomes.values() if outcome.report]
    seconds = time.monotonic() - started
    console.out.print(f"\ndone in {seconds:.0f} s; open in a browser: {', '.join(reports)}", markup=False)
    return {
        "figures": {name: plain_figures(outcome.figures) for name, outcome in outcomes.items()},
        "labels": labels.counts,
        "reports": reports,
        "seconds": round(seconds, 1),
    }


@dataclass(frozen=True)
class _Bases:
    dynamics: Path
    world: Path


def _bases(folder: Path, seed: int) -> _Bases:
    bases = _Bases(folder / "dynamics", folder / "world")
    writers: dict[Path, Callable[[Path, int], None]] = {bases.dynamics: write_dynamics, bases.world: write_world}
    for path, write in writers.items():
        if not path.exists():
            half = path.with_name(f"{path.name}.half")
            write(half, seed)
            half.rename(path)
    return bases


def _ingest(lake: Lake, folder: Path, first: int, amounts: Amounts) -> None:
    """Clips of three kinds; those with labels have them in a manifest, as a data set from elsewhere would."""
    labeled, unlabeled = folder / "labeled", folder / "unlabeled"
    known = range(first, first + amounts.labeled + amounts.held_out)
    rest = range(known.stop, known.stop + amounts.unlabeled)
    with console.counter("write sample clips"):
        for place, seeds in ((labeled, known), (unlabeled, rest)):
            if not (place / "ground_truth.json").exists():
                write_folder(place, seeds)
    rows = [row for i, seed in enumerate(known) for row in _rows(seed, "train" if i < amounts.labeled else "test")]
    (labeled / _LABELS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapping = folder / "sample-world.yaml"
    mapping.write_text(_MAPPING)
    ingest_labeled(lake, [str(labeled)], str(mapping), LabeledOptions(image_size=64))
    ingest(lake, [str(unlabeled)], dataset=_UNLABELED, layout="folder")


def _rows(seed: int, split: str) -> list[dict[str, Any]]:
    """Return a person's notes about a clip: each action, and a moment before and after it."""
    clip = make_clip(seed)
    ends = [0, *(event.end_frame for event in clip.events)]
    starts = [*(event.start_frame for event in clip.events), clip.frames - 1]
    middles = [(end + start) // 2 / FPS for end, start in zip(ends, starts, strict=True)]
    return [
        {
            "video": f"sample-{seed:06d}.mp4",
            "start_s": f"{middles[i]:.6f}",
            "stop_s": f"{middles[i + 1]:.6f}",
            "action": event.action,
            "split": split,
        }
        for i, event in enumerate(clip.events)
    ]


def _train(lake: Lake, settings: TrainingSettings) -> str:
    """Train, or find what was trained; the name of the model."""
    with console.counter("train") as counter:
        summary = train(lake, settings, progress=lambda line: show(line, counter))
    console.out.print(summary.text(), markup=False)
    if summary.status == "drained":
        raise KeyboardInterrupt
    return f"hf:{summary.model}"


def _dynamics_training(bases: _Bases, source: Source, amounts: Amounts) -> DynamicsTraining:
    return DynamicsTraining(
        model=f"hf:{bases.dynamics.resolve()}",
        sources=(source,),
        method="full",
        steps=amounts.dynamics_steps,
        batch_size=32,
        micro_batch_size=32,
        peak_lr=5e-4,
        warmup_steps=20,
    )


def _world_training(bases: _Bases, sources: tuple[Source, ...], amounts: Amounts) -> WorldTraining:
    return WorldTraining(
        model=f"hf:{bases.world.resolve()}",
        sources=sources,
        method="full",
        steps=amounts.world_steps,
        batch_size=16,
        micro_batch_size=16,
        peak_lr=5e-4,
        warmup_steps=20,
        floor=0.3,
    )


def _choice() -> Choice:
    return Choice.of("test", ["sample-world-test"], [_HUMAN], None, 1000, 0, 16)


def _say(text: str) -> None:
    console.out.print(f"\n{text}", markup=False)


def _print(title: str, figures: dict[str, dict[str, Figure]]) -> None:
    names = ("exact_match", "oracle_agrees", "changed_psnr_db", "unchanged_psnr_db", "copy_rate")
    rows = [(method, name, str(own[name])) for method, own in figures.items() for name in names if name in own]
    console.print_table(f"\n{title} (95 % interval)", ("", "figure", "value"), rows)
