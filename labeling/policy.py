"""A policy: the thresholds that turn scores into a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lake.errors import Refused, one_line
from lake.ids import content_id
from lake.scores import NAMES, SCORES

_FOLDER = Path(__file__).parent / "policies"
_EXAMPLE = "`default: {confidence: {min: -0.5}}`"


class Bounds(BaseModel):
    """The closed range of a score that is accepted; an open side is unbounded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: float = -math.inf
    max: float = math.inf

    @model_validator(mode="after")
    def _ordered(self) -> Bounds:
        if math.isnan(self.min) or math.isnan(self.max):
            raise ValueError("nan is not a bound: leave it out, or give a number")
        if not self.min <= self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Policy(BaseModel):
    """Bounds per score, for all datasets and, where a dataset needs others, for it alone (score by score)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default: dict[str, Bounds]
    datasets: dict[str, dict[str, Bounds]] = {}

    @model_validator(mode="after")
    def _known_scores(self) -> Policy:
        for bounds in (self.default, *self.datasets.values()):
            for score in bounds:
                if score not in NAMES:
                    raise ValueError(f"{score!r} is not a score: use {', '.join(NAMES)}")
        return self

    @model_validator(mode="after")
    def _bounds_outside_noise(self) -> Policy:
        for name, bounds in {**self.datasets, "default": self.default}.items():
            for score in SCORES:
                for side, bound in bounds.get(score.name, Bounds()):
                    if abs(bound) < score.noise:
                        raise ValueError(
                            f"{name}.{score.name}.{side} is {bound:g}, but frames in which nothing changes score 0 "
                            f"within {score.noise:g}, so rounding would decide: use a bound farther from 0"
                        )
        return self

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits that identify the thresholds."""
        return content_id(self.model_dump(mode="json"))

    def reasons(self, scores: Mapping[str, float | None], dataset: str | None) -> list[str]:
        """Names of the verifiers that reject a pair with these scores, in the order of the scores; none means accepted.

        A bounded score that is null or NaN rejects: a label is only accepted on evidence.
        """
        bounds = {**self.default, **self.datasets.get(dataset or "", {})}
        rejecting = []
        for name in NAMES:
            if name in bounds:
                score = scores.get(name)
                if score is None or not bounds[name].min <= score <= bounds[name].max:
                    rejecting.append(name)
        return rejecting


def load_policy(name: str) -> Policy:
    """A policy from a YAML file, or one that ships, by its name (`builtin`, `default`).

    Raises:
        Refused: there is no such file, or it is not a policy.
    """
    shipped = _FOLDER / f"{name}.yaml"
    path = shipped if shipped.exists() else Path(name)
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        ships = ", ".join(sorted(file.stem for file in _FOLDER.glob("*.yaml")))
        raise Refused(
            f"policy {name}: {getattr(error, 'strerror', None) or error}; give a YAML file or one of {ships}"
        ) from None
    except yaml.YAMLError as error:
        raise Refused(f"policy {name} is not YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds {type(content).__name__}, not `key: value` lines"
        raise Refused(f"policy {name} {found}: write bounds, such as {_EXAMPLE}")
    try:
        return Policy.model_validate(content)
    except ValidationError as error:
        raise Refused(f"policy {name}: {_in_words(error)}") from None


def _in_words(error: ValidationError) -> str:
    first = error.errors()[0]
    *above, last = path = [str(part) for part in first["loc"]] or ["the file"]
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = "default and datasets" if not above else "min and max"
        return f"{'.'.join(above) or 'the file'} has {last!r}; there are {known}"
    if first["type"] == "missing":
        return f"it lacks {last!r}: write bounds for all data sets, such as {_EXAMPLE}"
    if first["type"] in ("model_type", "dict_type"):
        return f"{where} is {first['input']!r}: give bounds, such as {{min: -0.5, max: 1}}"
    if first["type"].startswith("float") or first["type"] == "finite_number":
        return f"{where} is {first['input']!r}: give a number"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
