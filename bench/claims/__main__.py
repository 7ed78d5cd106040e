"""The claims of Qiu et al. (arXiv 2506.06006) on the sample world, with several seeds and intervals.

    python -m bench.claims run --seeds 0 1 2       train, label, verify, predict; hours, resumable
    python -m bench.claims control --seeds 1       claim (b) with the true names of the same pairs, after `run`
    python -m bench.claims report                  bench/results/claims.json and docs/images/claims.svg

`run` may be started several times at once with other seeds. Every stage leaves a file in --work and is not done again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.claims.data import Sizes, named, pretraining_pairs, test_questions, training_data
from bench.claims.report import CONTROL, write_report
from bench.claims.stages import (
    Labels,
    exact_match,
    fitted_policy,
    foretell,
    label,
    new_dynamics,
    new_world,
    train_dynamics,
    train_world,
)
from sample_world.pairs import Pairs
from training.builtin.data import joined
from training.settings import DynamicsTraining, WorldTraining

PRECISION = 0.9
"""That the thresholds are to reach on the calibration pairs."""

PRETRAINING_STEPS, WORLD_STEPS, DYNAMICS_STEPS = 1500, 600, 600


def world_settings(base: Path, steps: int, peak_lr: float, floor: float | None) -> WorldTraining:
    return WorldTraining(
        model=f"hf:{base}",
        method="full",
        steps=steps,
        batch_size=24,
        micro_batch_size=24,
        peak_lr=peak_lr,
        warmup_steps=50,
        weight_decay=0.05,
        precision="mixed",
        floor=floor,
    )


def dynamics_settings(base: Path) -> DynamicsTraining:
    return DynamicsTraining(
        model=f"hf:{base}",
        method="full",
        steps=DYNAMICS_STEPS,
        batch_size=64,
        micro_batch_size=64,
        peak_lr=1e-3,
        warmup_steps=50,
        weight_decay=0.02,
        precision="mixed",
    )


class Seed:
    """The stages of a seed and where they leave what they make."""

    def __init__(self, number: int, work: Path, sizes: Sizes) -> None:
        self.number, self.work = number, work / f"seed-{number}"
        self.pretrained = work / "pretrained"
        self.work.mkdir(parents=True, exist_ok=True)
        self.sizes = sizes

    def run(self) -> None:
        """Everything that the claims are read off."""
        self.data = training_data(self.number, self.sizes)
        good, weak = self._dynamics("good", self.data.labeled), self._dynamics("weak", self.data.few)
        good_labels, weak_labels = self._labels("good", good), self._labels("weak", weak)
        pools = {
            "labeled": self.data.labeled,
            "labeled + verified": self._pool(self.data.labeled, good_labels["accepted"]),
            "labeled + verified, plain loss": self._pool(self.data.labeled, good_labels["accepted"]),
            "few": self.data.few,
            "few + verified": self._pool(self.data.few, weak_labels["accepted"]),
            "few + unfiltered": self._pool(self.data.few, weak_labels["actions"]),
        }
        worlds = {name: self._world(name, pairs, None if "plain" in name else 0.3) for name, pairs in pools.items()}
        self._names("good", good)
        self._names("weak", weak)
        for name, world in worlds.items():
            self._predictions(name, world, good, 8 if name == "labeled + verified" else 4)

    def control(self) -> None:
        """As "labeled + verified", but under the pairs' true names: how much is the fault of wrong labels?"""
        self.data = training_data(self.number, self.sizes)
        good, truth = self._dynamics("good", self.data.labeled), self.data.unlabeled.actions
        accepted = self._labels("good", good)["accepted"]
        true = [name if action is not None else None for name, action in zip(truth, accepted, strict=True)]
        self._predictions(CONTROL, self._world(CONTROL, self._pool(self.data.labeled, true), 0.3), good, 4)

    def _pool(self, labeled: Pairs, actions: list[str | None]) -> Pairs:
        return joined([labeled, named(self.data.unlabeled, actions)])

    def _dynamics(self, name: str, pairs: Pairs) -> Path:
        base, out = self.work / "untrained dynamics", self.work / f"dynamics {name}"
        once(base, lambda: new_dynamics(base, self.number))
        once(out, lambda: train_dynamics(base, out, pairs, dynamics_settings(base)))
        return out

    def _world(self, name: str, pairs: Pairs, floor: float | None) -> Path:
        pretrain(self.pretrained.parent)
        out = self.work / f"world {name}"
        settings = world_settings(self.pretrained, WORLD_STEPS, 5e-4, floor)
        once(out, lambda: train_world(self.pretrained, out, pairs, settings))
        return out

    def _labels(self, name: str, dynamics: Path) -> dict[str, list[str | None]]:
        path = self.work / f"labels {name}.json"

        def make() -> None:
            calibration = label(dynamics, self.data.calibration)
            policy = fitted_policy(calibration, self.data.calibration.actions, PRECISION)
            made: Labels = label(dynamics, self.data.unlabeled)
            accepted, truth = made.accepted(policy), self.data.unlabeled.actions
            kept = [a == t for a, t in zip(accepted, truth, strict=True) if a is not None]
            content: dict[str, Any] = {
                "policy": {name: bounds.min for name, bounds in policy.default.items()},
                "right": float(np.mean([a == t for a, t in zip(made.actions, truth, strict=True)])),
                "accepted and right": float(np.mean(kept)) if kept else None,
                "accepted share": len(kept) / len(truth),
                "actions": made.actions,
                "accepted": accepted,
            }
            path.write_text(json.dumps(content, indent=1))

        once(path, make)
        found: dict[str, list[str | None]] = json.loads(path.read_text())
        return found

    def _names(self, name: str, dynamics: Path) -> None:
        path = self.work / f"names {name}.json"
        once(path, lambda: path.write_text(json.dumps(exact_match(dynamics, *test_questions(self.number)))))

    def _predictions(self, name: str, world: Path, dynamics: Path, n: int) -> None:
        path = self.work / f"predictions {name}.npz"

        def make() -> None:
            made = foretell(world, dynamics, *test_questions(self.number), n, self.number)
            np.savez(path, **vars(made))

        once(path, make)


def pretrain(work: Path) -> None:
    """The world model that all start from: trained to predict next_obs without an action, so it needs no labels."""
    base, out = work / "untrained world", work / "pretrained"
    once(base, lambda: new_world(base))
    settings = world_settings(base, PRETRAINING_STEPS, 1.5e-3, None)
    once(out, lambda: train_world(base, out, pretraining_pairs(), settings))


def once(path: Path, make: Callable[[], None]) -> None:
    """Make what is not there yet, in one process at a time. What a process that died left half made is made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done(path).exists():
            return
        started = time.monotonic()
        make()
        done(path).touch()
    print(json.dumps({"made": str(path), "seconds": round(time.monotonic() - started)}), flush=True)


def done(path: Path) -> Path:
    """Return the file that marks it as done."""
    return path.with_name(path.name + ".done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--work", type=Path, default=Path("scratch/claims"))
    commands = parser.add_subparsers(required=True, dest="command")
    for name, seeds in (("run", [0, 1, 2]), ("control", [1])):
        commands.add_parser(name, parents=[shared]).add_argument("--seeds", type=int, nargs="+", default=seeds)
    reporting = commands.add_parser("report", parents=[shared])
    reporting.add_argument("--out", type=Path, default=Path("bench/results/claims.json"))
    reporting.add_argument("--plot", type=Path, default=Path("docs/images/claims.svg"))
    arguments = parser.parse_args()
    if arguments.command == "report":
        write_report(arguments.work, arguments.out, arguments.plot)
        return
    torch.set_num_threads(1)
    for number in arguments.seeds:
        seed = Seed(number, arguments.work, Sizes())
        seed.control() if arguments.command == "control" else seed.run()


if __name__ == "__main__":
    main()
