"""How a labeled data set is read: which column, or which part of a path, is the video, the frames, the action."""

from __future__ import annotations

import re
from string import Formatter
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lake.errors import Refused
from lake.ids import hashed_split

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


class Place(NamedTuple):
    """The attributes of a video from a path or a row; None if unknown."""

    dataset: str
    split: str | None
    class_label: str | None
    #: Videos of one key belong in one split; None: the video stands for itself.
    group: str | None

    def split_of(self, uri: str) -> str:
        """Return the split: the one said, else one that depends on nothing but the group or the uri."""
        return self.split or hashed_split(self.group or uri)


def check_split(split: str | None) -> None:
    """Raise Refused for a split of another name than the three."""
    if split is not None and split not in SPLITS.values():
        raise Refused(f"unknown split {split!r}: use train, validation or test")


Templates = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""Texts with `{column}` in them; the first that can be filled counts, of files the first that exists."""


class Mapping(BaseModel):
    """How to read a data set: where its rows are, and what their columns mean.

    `manifest` matches the whole path, from the source's root, of the files that list rows; `paths` that of files which
    are rows themselves, with a column `path`. Named groups of the pattern are columns too; `parts` takes more of them
    out of other columns. A row is a video with an action (its first and last frame, or those of a span), two images
    with an action, or a video with no more than a class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    manifest: re.Pattern[str] | None = None
    paths: re.Pattern[str] | None = None
    parts: dict[str, re.Pattern[str]] = {}
    video: Templates = ()
    # Seconds or hours:minutes:seconds from the first frame; the frame is the first one at or after that time.
    start_time: Templates = ()
    stop_time: Templates = ()
    start_frame: Templates = ()
    stop_frame: Templates = ()
    # The number that the first frame of a video has.
    first_frame: int = 0
    obs: Templates = ()
    next_obs: Templates = ()
    action: Templates = ()
    class_label: Templates = ()
    dataset: Templates = ()
    split: Templates = ()
    group: Templates = ()

    @model_validator(mode="after")
    def _consistent(self) -> Mapping:
        if (self.manifest is None) == (self.paths is None):
            raise ValueError("give either manifest (files that list rows) or paths (files that are rows)")
        if bool(self.video) == bool(self.obs):
            raise ValueError("give either video or obs and next_obs")
        for one, other in (("obs", "next_obs"), ("start_time", "stop_time"), ("start_frame", "stop_frame")):
            if bool(getattr(self, one)) != bool(getattr(self, other)):
                raise ValueError(f"{one} and {other} go together")
        if self.start_time and self.start_frame:
            raise ValueError("give either times or frame numbers")
        if (self.start_time or self.start_frame) and not self.video:
            raise ValueError("times and frame numbers are those of a video")
        if (self.obs or self.start_time or self.start_frame) and not self.action:
            raise ValueError("a pair needs an action")
        for templates in self.templates().values():
            for template in templates:
                fill(template, dict.fromkeys(columns_of(template), "0"))
        return self

    def templates(self) -> dict[str, tuple[str, ...]]:
        """Return the templates of every field that is given."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in given.items() if isinstance(value, tuple) and value}

    @property
    def is_labeled(self) -> bool:
        """True if rows must be read one by one; otherwise paths say everything."""
        return self.manifest is not None or bool(self.action)

    def place(self, columns: dict[str, str]) -> Place:
        """Return what the columns of a row say about its video. Raises Unusable for a split of another name."""
        split = self._text("split", columns)
        if split and split.lower() not in SPLITS:
            raise Unusable("UnknownSplit", f"split {split!r} is none of {', '.join(SPLITS)}")
        return Place(
            self._text("dataset", columns) or self.name,
            SPLITS[split.lower()] if split else None,
            self._text("class_label", columns) or None,
            self._text("group", columns) or None,
        )

    def _text(self, name: str, columns: dict[str, str]) -> str:
        return next((text for template in getattr(self, name) if (text := fill(template, columns))), "")

    def required(self, name: str, columns: dict[str, str]) -> str:
        """Return the text of a field. Raises Unusable, naming the column, where there is none."""
        if text := self._text(name, columns):
            return text
        missing = [one for template in getattr(self, name) for one in columns_of(template) if not columns.get(one)]
        reasons = [f"column {one!r} is {'empty' if one in columns else 'missing'}" for one in missing]
        raise Unusable("NoValue", f"no {name}: {', '.join(reasons) or 'its template is empty'}")

    def with_parts(self, columns: dict[str, str]) -> dict[str, str]:
        """Return the columns, and what `parts` takes out of them."""
        found = dict(columns)
        for column, pattern in self.parts.items():
            if match := pattern.fullmatch(columns.get(column, "")):
                found |= {name: value or "" for name, value in match.groupdict().items()}
        return found


class Unusable(Exception):
    """Why a row cannot be used."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


def columns_of(template: str) -> set[str]:
    """Return the columns that a template names. Raises ValueError where it is malformed."""
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def fill(template: str, columns: dict[str, str]) -> str:
    """Return the template with its columns filled in; empty where one of them is missing or empty."""
    filled = []
    for literal, name, form, _ in Formatter().parse(template):
        filled.append(literal)
        if name is not None:
            if not columns.get(name):
                return ""
            filled.append(format(columns[name], form or ""))
    return "".join(filled)
