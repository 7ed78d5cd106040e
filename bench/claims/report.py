"""Results of the claims: a figure for every seed, means with intervals over the seeds, and a plot of each claim."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

from evaluation.intervals import Mean, mean, plain

matplotlib.use("svg")
from matplotlib import pyplot

CANDIDATES = (1, 2, 4, 8)
MAIN = "labeled + verified"
CONTROL = f"{MAIN}, true names"


@dataclass(frozen=True)
class Found:
    """Files that `run` left for a seed."""

    seed: int
    folder: Path

    def has(self, world: str) -> bool:
        """Return whether there are predictions of this world model."""
        return (self.folder / f"predictions {world}.npz.done").exists()

    def predictions(self, world: str) -> dict[str, npt.NDArray[Any]]:
        """The arrays of `stages.Predictions`."""
        with np.load(self.folder / f"predictions {world}.npz") as arrays:
            return dict(arrays)

    def shows(self, world: str) -> float:
        """Share of single samples that show the asked action."""
        return float(self.predictions(world)["hits"].mean())

    def psnr(self, world: str, where: str) -> float:
        """In dB, over all changed or all unchanged pixels of single samples."""
        found = self.predictions(world)
        pixels = found["pixels"][:, ("changed", "unchanged").index(where)].sum() * found[where].shape[1]
        return float(-10 * np.log10(found[where].sum() / pixels))

    def best_of(self, n: int) -> float:
        """Share of verified predictions that show the action: n candidates at a time, over all disjoint groups."""
        found = self.predictions(MAIN)
        groups = (len(found["hits"]), -1, n)
        # A candidate that could not be scored is none to be chosen.
        scores = np.nan_to_num(found["scores"].reshape(groups), nan=-np.inf)
        chosen = scores.argmax(-1)
        return float(np.take_along_axis(found["hits"].reshape(groups), chosen[..., None], -1).mean())

    def any_of(self, n: int) -> float:
        """The most that a verifier could reach: some of n candidates shows the action."""
        hits = self.predictions(MAIN)["hits"]
        return float(hits.reshape(len(hits), -1, n).any(-1).mean())

    def names(self, dynamics: str) -> float:
        """Share of events that the dynamics model names exactly."""
        return float(np.mean(json.loads((self.folder / f"names {dynamics}.json").read_text())))

    def labels(self, dynamics: str) -> dict[str, Any]:
        """How the unlabeled pairs were labeled."""
        content = json.loads((self.folder / f"labels {dynamics}.json").read_text())
        return {name: content[name] for name in ("right", "accepted and right", "accepted share", "policy")}


@dataclass(frozen=True)
class Claim:
    """A claim, and the figures, by name, that show it: the last is to be above the one at `against`."""

    claim: str
    unit: str
    figures: Mapping[str, Callable[[Found], float]]
    against: int = 0


CLAIMS = {
    "a": Claim(
        "with equal labels, what happened is learned better than what will happen",
        "of held-out events, share",
        {
            "world model shows it": lambda seed: seed.shows("labeled"),
            "dynamics model names it": lambda seed: seed.names("good"),
        },
    ),
    "b": Claim(
        "verified pseudo-labels improve the world model",
        "shows the action, share",
        {"labels alone": lambda seed: seed.shows("labeled"), "with verified": lambda seed: seed.shows(MAIN)},
    ),
    "c": Claim(
        "with a worse labeler, verified labels beat all labels",
        "shows the action, share",
        {
            "few labels": lambda seed: seed.shows("few"),
            "with all pseudo-labels": lambda seed: seed.shows("few + unfiltered"),
            "with verified ones": lambda seed: seed.shows("few + verified"),
        },
        against=1,
    ),
    "d": Claim(
        "the best of n by the dynamics model improves with n",
        "shows the action, share",
        {f"n = {n}": lambda seed, n=n: seed.best_of(n) for n in CANDIDATES},
    ),
    "e": Claim(
        "the weighted loss improves what changes",
        "PSNR of changed pixels, dB",
        {
            "plain loss": lambda seed: seed.psnr(f"{MAIN}, plain loss", "changed"),
            "weighted loss": lambda seed: seed.psnr(MAIN, "changed"),
        },
    ),
}

BESIDE: dict[str, Callable[[Found], float]] = {
    "plain loss shows the action": lambda seed: seed.shows(f"{MAIN}, plain loss"),
    "weighted loss shows the action": lambda seed: seed.shows(MAIN),
    "plain loss, PSNR of unchanged pixels, dB": lambda seed: seed.psnr(f"{MAIN}, plain loss", "unchanged"),
    "weighted loss, PSNR of unchanged pixels, dB": lambda seed: seed.psnr(MAIN, "unchanged"),
    "labels alone, PSNR of changed pixels, dB": lambda seed: seed.psnr("labeled", "changed"),
    "weak dynamics model names it": lambda seed: seed.names("weak"),
    **{f"some of {n} candidates shows the action": lambda seed, n=n: seed.any_of(n) for n in CANDIDATES},
}


def write_report(work: Path, out: Path, plot: Path) -> None:
    """Write the figures of all finished seeds and their plot; print them."""
    last = "predictions few + unfiltered.npz.done"
    seeds = [Found(int(path.parent.name.split("-")[1]), path.parent) for path in sorted(work.glob(f"seed-*/{last}"))]
    if len(seeds) < 2:
        raise SystemExit(f"{len(seeds)} seeds are finished in {work}: python -m bench.claims run --seeds 0 1 2")
    figures = {
        letter: {name: [of(seed) for seed in seeds] for name, of in claim.figures.items()}
        for letter, claim in CLAIMS.items()
    }
    content = {
        "seeds": [seed.seed for seed in seeds],
        "machine": platform.machine(),
        "claims": {letter: _summary(CLAIMS[letter], values) for letter, values in figures.items()},
        "beside": {name: _over_seeds([of(seed) for seed in seeds]) for name, of in BESIDE.items()},
        "control": {
            f"seed {seed.seed}": {name: round(seed.shows(name), 4) for name in ("labeled", MAIN, CONTROL)}
            for seed in seeds
            if seed.has(CONTROL)
        },
        "labels": {name: [seed.labels(name) for seed in seeds] for name in ("good", "weak")},
    }
    out.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    plot.parent.mkdir(parents=True, exist_ok=True)
    _plot(figures, plot)
    for letter, summary in content["claims"].items():
        print(letter, summary["claim"])
        for name, figure in {**summary["figures"], "difference": summary["difference"]}.items():
            print(f"    {name:26} {figure['value']:7.3f}  ({figure['low']:.3f} to {figure['high']:.3f})")


def _summary(claim: Claim, values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    before, after = ([*values.values()][place] for place in (claim.against, -1))
    differences = [b - a for a, b in zip(before, after, strict=True)]
    return {
        "claim": claim.claim,
        "unit": claim.unit,
        "figures": {name: _over_seeds(each) for name, each in values.items()},
        "difference": _over_seeds(differences),
    }


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Student's t interval over seeds, which differ in their clips, labels and first weights."""
    found: Mean = mean(values)
    return {**plain(found), "seeds": [round(value, 4) for value in values]}


def _plot(figures: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    pyplot.rcParams.update({"svg.hashsalt": "claims", "svg.fonttype": "none", "font.size": 9})
    figure, axes = pyplot.subplots(1, len(CLAIMS), figsize=(17, 3.6), layout="constrained")
    for axis, (letter, claim) in zip(axes, CLAIMS.items(), strict=True):
        values = np.array(list(figures[letter].values()))
        middles = [mean(each) for each in values]
        places = np.arange(len(values))
        axis.plot(places, values, color="0.75", marker=".", linewidth=0.8)
        error = [(m.value - m.interval[0], m.interval[1] - m.value) for m in middles]
        axis.errorbar(places, [m.value for m in middles], np.array(error).T, fmt="o", color="C0", capsize=4)
        axis.set_xticks(places, [fill(name, 13) for name in figures[letter]])
        axis.set_xlim(-0.5, len(values) - 0.5)
        axis.set_ylabel(claim.unit)
        axis.set_title(f"({letter}) {claim.claim}", fontsize=8, wrap=True)
    figure.savefig(path, metadata={"Date": None})
