"""The data sets whose layout is known, as mappings, and what a path alone says about a video."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lake.errors import Refused
from lake.mapping import SPLITS, Mapping, Place

# As the data sets are distributed; docs/how-to/sources.md shows the folders.
_PRESETS: dict[str, dict[str, Any]] = {
    "aurora": {
        "manifest": r"(?:.*/)?train\.json",
        "obs": "{input}",
        "next_obs": "{output}",
        "action": "{instruction}",
        "parts": {"input": r"data/(?P<subset>[^/]+)/.*"},
        "dataset": ["aurora-{subset}", "aurora"],
        "split": "train",
    },
    "aurora-bench": {
        "manifest": r"test\.json",
        "obs": "{input}",
        "next_obs": "{output}",
        "action": ["{prompt}", "{instruction}"],
        "dataset": "aurora-bench-{task}",
        "split": "test",
    },
    "something": {
        "manifest": r"(?:.*/)?(?:something-something-v2-)?(?P<split>train|validation|test)\.json",
        "video": ["{id}.webm", "{id}.mp4"],
        "action": "{label}",
        "class_label": "{template}",
        "split": "{split}",
    },
    "epic-kitchens": {
        "manifest": r"(?:.*/)?EPIC_100_(?P<split>train|validation)\.csv",
        "video": ["{video_id}.MP4", "{video_id}.mp4"],
        "start_time": "{start_timestamp}",
        "stop_time": "{stop_timestamp}",
        "action": "{narration}",
        "split": "{split}",
    },
    "kinetics": {
        "paths": r"(?:(?P<split>train|val|validate|test)/)?(?:(?P<label>[^/]+)/)?[^/]+",
        "video": "{path}",
        "class_label": "{label}",
        "split": "{split}",
    },
    # Clips of one group are cut from one recording: they share a split.
    "ucf101": {
        "paths": r"(?:(?s:.)*/)?v_(?P<label>\w+)_(?P<take>g\d+)_c\d+\.\w+",
        "video": "{path}",
        "class_label": "{label}",
        "group": "{label}/{take}",
    },
    "moments": {
        "paths": r"(?P<split>training|validation|testing)/(?P<label>[^/]+)/[^/]+",
        "video": "{path}",
        "class_label": "{label}",
        "split": "{split}",
    },
}
PRESETS = {name: Mapping.model_validate({"name": name, **fields}) for name, fields in _PRESETS.items()}
FORMATS = ("auto", "folder", *PRESETS)

# What `auto` takes for Kinetics: a YouTube id with the first and last second, as the official downloader names clips.
_KINETICS_NAME = re.compile(r"[\w-]{11}_\d{6}_\d{6}\.\w+")


def find_mapping(layout: str) -> Mapping | None:
    """The mapping of a preset, or of a YAML file; None for `auto` and `folder`, which look at each path by itself.

    Raises Refused for another name, and for a file that is not a mapping.
    """
    if layout in FORMATS:
        return PRESETS.get(layout)
    path = Path(layout)
    if path.suffix not in (".yaml", ".yml"):
        raise Refused(f"unknown format {layout!r}: use one of {', '.join(FORMATS)}, or a mapping in a .yaml file")
    try:
        fields = yaml.safe_load(path.read_text())
        return Mapping.model_validate({"name": path.stem, **fields} if isinstance(fields, dict) else fields)
    except OSError as error:
        raise Refused(f"cannot read the mapping {layout!r}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Refused(f"the mapping {layout!r} is wrong{' at ' + where if where else ''}: {first['msg']}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"the mapping {layout!r} is not YAML: {error}") from None


def place(relative: str, source_name: str, layout: str, mapping: Mapping | None) -> Place:
    """Return what a path relative to its source says under a layout, whose mapping is given where it has one.

    A path that is not of the layout is read as ``folder``: the data set is its first folder that is not a split's name,
    else the source's own name.
    """
    if layout == "auto":
        mapping = _recognize(relative)
    if mapping is not None and mapping.paths is None:
        # A video that no manifest names.
        return Place(mapping.name, None, None, None)
    match = mapping.paths.fullmatch(relative) if mapping and mapping.paths else None
    if mapping is None or match is None:
        folders = relative.split("/")[:-1]
        names = [name for name in folders if name.lower() not in SPLITS]
        split = next((SPLITS[name.lower()] for name in folders if name.lower() in SPLITS), None)
        return Place(names[0] if names else source_name, split, None, None)
    groups = {name: value or "" for name, value in match.groupdict().items()}
    return mapping.place(mapping.with_parts({**groups, "path": relative}))


def _recognize(relative: str) -> Mapping | None:
    for name in ("ucf101", "moments"):
        pattern = PRESETS[name].paths
        if pattern and pattern.fullmatch(relative):
            return PRESETS[name]
    return PRESETS["kinetics"] if _KINETICS_NAME.fullmatch(relative.rsplit("/", 1)[-1]) else None
