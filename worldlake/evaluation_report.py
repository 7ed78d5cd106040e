"""The report of an evaluation: one HTML file with figures and samples as pictures; it needs nothing but a browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from evaluation.judge import data_url
from evaluation.probes import PROBES, Alternative
from evaluation.world import Predictions
from training.selection import SelectionSettings

_Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An image as a data URL, with what is written below it."""

    url: str
    caption: str
    chosen: bool = False


@dataclass
class Sample:
    """One pair in the report. `notes` are (text, whether that is good, None: neither)."""

    action: str
    source: str
    pictures: list[Picture]
    candidates: list[Picture] = field(default_factory=list)
    notes: list[tuple[str, bool | None]] = field(default_factory=list)


def dynamics_sample(
    row: dict[str, Any], other: Alternative, obs: _Image, next_obs: _Image, judged: dict[str, Any]
) -> Sample:
    """The pair, what it was named, and by how much each of the four others is less likely."""
    named = f"named: {judged['named'] or '(nothing)'}"
    sample = Sample(row["action"], _source(row), [_picture(obs, "obs"), _picture(next_obs, "next_obs")])
    sample.notes.append((named, judged["exact"]))
    texts = {"random": other.random, "counterfactual": other.counterfactual}
    for probe in PROBES:
        margin = judged["probes"][probe]
        what = f"{probe} ({texts[probe]})" if texts.get(probe) else probe
        shown = "no answer" if margin is None else f"{margin:+.3f}"
        sample.notes.append((f"over {what}: {shown}", None if margin is None else margin > 0))
    return sample


def world_samples(
    rows: list[dict[str, Any]], made: Predictions, judged: list[dict[str, Any]], method: str
) -> list[Sample]:
    """Obs, the true next_obs, the prediction and how far it is off, and the candidates with their scores."""
    samples = []
    for i, row in enumerate(rows):
        own = judged[i]["methods"][method]
        difference = np.abs(made.next_obs[i].astype(np.int16) - made.predicted[i]).astype(np.uint8)
        pictures = [
            _picture(made.obs[i], "obs"),
            _picture(made.next_obs[i], "true next_obs"),
            _picture(made.predicted[i], "prediction"),
            _picture(difference, "difference"),
        ]
        sample = Sample(row["action"], _source(row), pictures)
        if made.candidates is not None and made.scores is not None and made.chosen is not None:
            for place, (image, score) in enumerate(zip(made.candidates[i], made.scores[i], strict=True)):
                sample.candidates.append(_picture(image, f"{score:.3f}", place == made.chosen[i]))
        sample.notes = [*_opinions(own), (_measured(own), None)]
        samples.append(sample)
    return samples


def _opinions(own: dict[str, Any]) -> list[tuple[str, bool | None]]:
    notes: list[tuple[str, bool | None]] = []
    for who in ("oracle", "referee"):
        if who in own:
            notes.append((f"{who} sees: {own[who]}", own[f"{who}_agrees"]))
    if own["copied"]:
        notes.append(("a copy of obs", False))
    if "judge" in own:
        opinion = own["judge"]
        score = opinion["state"] if opinion["score"] is None else f"{opinion['score']:g} of 10"
        notes.append((f"judge: {score}; {opinion['reason']}", None))
    return notes


def _measured(own: dict[str, Any]) -> str:
    names = {"changed_psnr_db": "PSNR dB, changed", "unchanged_psnr_db": "unchanged", "changed_ssim": "SSIM, changed"}
    shown = [f"{title} {own[name]:.3g}" for name, title in names.items() if own[name] is not None]
    return ", ".join([*shown, f"L1 {own['l1']:.3g}"])


def write_report(
    path: Path,
    kind: str,
    run_id: str,
    counts: dict[str, int],
    tables: list[dict[str, Any]],
    samples: list[Sample],
    selection: SelectionSettings,
    config: dict[str, Any],
) -> None:
    """Write the page to `path`."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("worldlake"), autoescape=True, trim_blocks=True)
    page = environment.get_template("evaluation.html").render(
        kind=kind,
        run_id=run_id,
        counts=counts,
        tables=tables,
        samples=samples,
        selection=selection.model_dump(mode="json"),
        config=config,
    )
    path.write_text(page)


def _picture(image: _Image, caption: str, chosen: bool = False) -> Picture:
    return Picture(data_url(image), caption, chosen)


def _source(row: dict[str, Any]) -> str:
    name = Path(row["uri"] or "").name
    return f"{row['dataset']}, {name}" + (f", {row['obs_time_s']:.2f} s" if row["obs_time_s"] is not None else "")
