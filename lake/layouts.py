"""What the path of a video says about it: dataset, split and class label."""

import json
import re
from typing import NamedTuple

import pyarrow.fs as pafs

from lake.errors import Refused
from lake.ids import content_id
from lake.storage import StorageConfig, is_s3, join

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
# Of a hundred videos without a split of their own.
TRAIN, VALIDATION = 90, 5

# Relative paths, as the data sets are distributed. `group` marks clips cut from one recording: they share a split.
_LAYOUTS = {
    "kinetics": re.compile(r"(?:(?P<split>train|val|validate|test)/)?(?:(?P<label>[^/]+)/)?[^/]+\Z"),
    "ucf101": re.compile(r"(?:.*/)?v_(?P<label>\w+)_(?P<group>g\d+)_c\d+\.\w+\Z", re.DOTALL),
    "moments": re.compile(r"(?P<split>training|validation|testing)/(?P<label>[^/]+)/[^/]+\Z"),
    "something": re.compile(r"(?:.*/)?(?P<id>\d+)\.webm\Z", re.DOTALL),
}
# What `auto` takes for Kinetics: a YouTube id with the first and last second, as the official downloader names clips.
_KINETICS_NAME = re.compile(r"[\w-]{11}_\d{6}_\d{6}\.\w+\Z")

FORMATS = ("auto", "folder", *_LAYOUTS)


class Place(NamedTuple):
    """What a path says; None where it says nothing."""

    dataset: str
    split: str | None
    class_label: str | None
    #: Videos of one key belong in one split; None: the video stands for itself.
    group: str | None


def place(relative: str, source_name: str, layout: str, labels: dict[str, str]) -> Place:
    """Return what a path relative to its source says under a layout of ``FORMATS``.

    A path that is not of the layout is read as ``folder``: the data set is its first folder that is not a split's name,
    else the source's own name.
    """
    if layout == "auto":
        layout = _recognise(relative)
    match = _LAYOUTS[layout].match(relative) if layout in _LAYOUTS else None
    folders = relative.split("/")[:-1]
    if match is None:
        names = [name for name in folders if name.lower() not in SPLITS]
        split = next((SPLITS[name.lower()] for name in folders if name.lower() in SPLITS), None)
        return Place(names[0] if names else source_name, split, None, None)
    found = match.groupdict()
    label = labels.get(found["id"]) if "id" in found else found["label"]
    group = f"{label}/{found['group']}" if "group" in found else None
    return Place(layout, SPLITS.get(found.get("split") or ""), label, group)


def _recognise(relative: str) -> str:
    for layout in ("ucf101", "moments", "something"):
        if _LAYOUTS[layout].match(relative):
            return layout
    return "kinetics" if _KINETICS_NAME.match(relative.rsplit("/", 1)[-1]) else "folder"


def hashed_split(key: str) -> str:
    """Return a split that depends on nothing but the key: 90 % train, 5 % validation, 5 % test."""
    percent = int(content_id(key), 16) % 100
    return "train" if percent < TRAIN else "validation" if percent < TRAIN + VALIDATION else "test"


def something_labels(storage: StorageConfig, source: str) -> dict[str, str]:
    """Return label by video id from the JSON files that Something-Something ships beside or under its videos.

    Raises ``Refused`` for a JSON file there that is not a list of objects with ``id`` and ``template`` or ``label``.
    """
    labels: dict[str, str] = {}
    for folder in (source, join(source, "labels")):
        filesystem, path = storage.filesystem(folder)
        if filesystem.get_file_info(path).type != pafs.FileType.Directory:
            continue
        for info in filesystem.get_file_info(pafs.FileSelector(path)):
            if info.extension == "json" and info.type == pafs.FileType.File:
                with filesystem.open_input_file(info.path) as file:
                    labels.update(_labels(file.read(), f"s3://{info.path}" if is_s3(source) else info.path))
    return labels


def _labels(content: bytes, uri: str) -> dict[str, str]:
    try:
        return {str(item["id"]): item.get("template") or item["label"] for item in json.loads(content)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(
            f"{uri!r} is not a label file of Something-Something (a list of objects with id and label): move it away"
        ) from error
