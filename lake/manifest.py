"""The rows of labeled data sets, read as a mapping says.

Rows come from manifests (JSON, JSON lines, CSV) or from the paths of files. Nothing is decoded here: a row that can be
used names files of the listing, one that cannot says why.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any
from unicodedata import normalize

from lake.errors import Refused
from lake.mapping import Mapping, Place, Unusable, columns_of, fill
from lake.storage import Entry, StorageConfig

# A video that two manifests put into different splits is held out: nothing that is tested may be trained on.
_HELD_OUT = ("train", "validation", "test")
# One request for most manifests.
_READ_BYTES = 1 << 24
_NAMED_COLUMNS = 12
NOT_TEXT = "the file's name is not UTF-8: rename it"
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)")


Moment = Fraction | int | None
"""A frame of a video: the first at or after a number of seconds from the first one; a frame's number, counted from 0;
None: the last frame."""


@dataclass(frozen=True)
class Origin:
    """Where a row stands: a manifest of one state and the row's number in it, counted from 1."""

    manifest: Entry
    number: int

    def __str__(self) -> str:
        return f"row {self.number} of {self.manifest.uri.rsplit('/', 1)[-1]}"


@dataclass(frozen=True)
class Labeled:
    """A row that can be used: a video and two moments of it, or two images (obs, next_obs); `action` is one line."""

    origin: Origin
    files: tuple[Entry, ...]
    moments: tuple[Moment, Moment]
    action: str
    place: Place


@dataclass
class Manifest:
    """The rows of one source. `places` holds what they say about videos, by path from the source's root."""

    rows: list[Labeled] = field(default_factory=list)
    unusable: list[tuple[Origin, Unusable]] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    #: Rows that give a class and no pair.
    classes: int = 0


def read_manifest(storage: StorageConfig, source: str, mapping: Mapping) -> Manifest:
    """Read every row under a source (normalized); the files themselves are not opened.

    Raises:
        Refused: nothing there matches the mapping, a manifest cannot be read or is of another format, or a column that
            the mapping names is in no row.
    """
    files = _Files(storage, source)
    found = Manifest()
    rows = list(_rows(storage, files, mapping))
    if not rows:
        wanted = (mapping.manifest or mapping.paths or re.compile("")).pattern
        raise Refused(f"no row for {mapping.name} under {source!r}: looked in files that match {wanted!r}")
    _refuse_missing_columns(source, mapping, [columns for _, columns in rows if columns is not None])
    for origin, columns in rows:
        try:
            _add(found, files, mapping, origin, columns)
        except Unusable as reason:
            found.unusable.append((origin, reason))
    return found


def _add(found: Manifest, files: _Files, mapping: Mapping, origin: Origin, columns: dict[str, str] | None) -> None:
    if columns is None:
        raise Unusable("NotARow", "it is not an object with columns")
    place = mapping.place(columns)
    if mapping.video:
        video = files.find("video", mapping, columns)
        relative = files.relative(video)
        found.places[relative] = _merged(found.places.get(relative), place)
        entries: tuple[Entry, ...] = (video,)
    else:
        entries = tuple(files.find(name, mapping, columns) for name in ("obs", "next_obs"))
    if not mapping.action:
        found.classes += 1
        return
    action = " ".join(mapping.required("action", columns).split())
    found.rows.append(Labeled(origin, entries, _moments(mapping, columns), action, place))


def _merged(before: Place | None, place: Place) -> Place:
    if before is None or before.split is None or place.split is None:
        return before or place
    return before._replace(split=max(before.split, place.split, key=_HELD_OUT.index))


def _moments(mapping: Mapping, columns: dict[str, str]) -> tuple[Moment, Moment]:
    if mapping.start_time:
        start: Fraction | int = _seconds(mapping.required("start_time", columns))
        stop: Fraction | int = _seconds(mapping.required("stop_time", columns))
    elif mapping.start_frame:
        start = _number(mapping.required("start_frame", columns), mapping.first_frame)
        stop = _number(mapping.required("stop_frame", columns), mapping.first_frame)
    else:
        return 0, None
    if stop <= start:
        raise Unusable("EmptySpan", "its stop is not after its start")
    return start, stop


def _seconds(text: str) -> Fraction:
    match = _CLOCK.fullmatch(text)
    if not match:
        raise Unusable("NotATime", f"{text!r} is not a time: seconds or hours:minutes:seconds")
    hours, minutes, seconds = (Fraction(part or 0) for part in match.groups())
    return (hours * 60 + minutes) * 60 + seconds


def _number(text: str, first: int) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < first:
        raise Unusable("NotAFrame", f"{text!r} is not the number of a frame, counted from {first}")
    return int(text) - first


class _Files:
    """The listing of a source. It holds every file that a row may name, so no path leads out of the source."""

    def __init__(self, storage: StorageConfig, source: str) -> None:
        self._source = source
        try:
            entries = [entry for page in storage.pages(source) for entry in page]
        except OSError as error:
            raise Refused(f"cannot list {source!r}: {error}; fix it and run the command again") from None
        if [entry.uri for entry in entries] == [source]:
            raise Refused(f"{source!r} is a file: name the folder from which the paths of its rows start")
        self.by_path = {self.relative(entry): entry for entry in entries}
        # One letter may be written as one character or as two, and programs that copy files choose.
        self._by_form: dict[str, list[Entry]] = {}
        self._by_name: dict[str, list[Entry]] = {}
        for path, entry in self.by_path.items():
            self._by_form.setdefault(normalize("NFC", path), []).append(entry)
            self._by_name.setdefault(normalize("NFC", path.rsplit("/", 1)[-1]), []).append(entry)

    def relative(self, entry: Entry) -> str:
        """Return the path of a file from the source's root."""
        return entry.uri.removeprefix(self._source).lstrip("/")

    def find(self, name: str, mapping: Mapping, columns: dict[str, str]) -> Entry:
        """Return the file that a field names: a path from the root or a uri; a name without a slash may be anywhere.

        Raises Unusable where there is none, or where a name is not unique.
        """
        if not is_text(mapping.required(name, columns)):
            raise Unusable("ValueError", NOT_TEXT)
        wanted = [text for template in getattr(mapping, name) if (text := fill(template, columns))]
        for text in wanted:
            path = posixpath.normpath(text.removeprefix(f"{self._source}/"))
            if path in self.by_path:
                return self.by_path[path]
            form = normalize("NFC", path)
            same_name = self._by_form.get(form) or self._by_name.get(form, [])
            if len(same_name) > 1:
                raise Unusable("AmbiguousFile", f"{len(same_name)} files are called {text!r}")
            if same_name:
                return same_name[0]
        raise Unusable("MissingFile", f"no file {' or '.join(map(repr, wanted))} under {self._source}")


def _rows(storage: StorageConfig, files: _Files, mapping: Mapping) -> Iterator[tuple[Origin, dict[str, str] | None]]:
    pattern = mapping.manifest or mapping.paths
    assert pattern is not None
    for path, entry in files.by_path.items():
        match = pattern.fullmatch(path)
        if match is None:
            continue
        groups = {name: value or "" for name, value in match.groupdict().items()}
        records: Iterable[dict[str, str] | None] = _records(storage, entry) if mapping.manifest else [{"path": path}]
        for number, record in enumerate(records, 1):
            columns = None if record is None else mapping.with_parts({**record, **groups})
            yield Origin(entry, number), columns


def _records(storage: StorageConfig, manifest: Entry) -> Iterator[dict[str, str] | None]:
    """The rows of a manifest as columns of text; None where a row is not an object or has fields without a name."""
    extension = manifest.uri.rsplit(".", 1)[-1].lower()
    try:
        with storage.open_ranged(manifest, _READ_BYTES) as file:
            content = file.read().decode("utf-8-sig")
        if extension in ("csv", "tsv"):
            reader = csv.DictReader(io.StringIO(content, newline=""), delimiter="\t" if extension == "tsv" else ",")
            items: list[Any] = list(reader)
        elif extension in ("jsonl", "ndjson"):
            items = [json.loads(line) for line in content.split("\n") if line.strip()]
        else:
            items = json.loads(content)
    except (ValueError, RecursionError, csv.Error) as error:
        raise Refused(f"{manifest.uri!r} is not {_format(extension)}: {error}") from None
    except OSError as error:
        raise Refused(f"cannot read {manifest.uri!r}: {error}") from None
    if not isinstance(items, list):
        raise Refused(f"{manifest.uri!r} is not a list of rows: it holds one {type(items).__name__}")
    for item in items:
        if not isinstance(item, dict) or None in item:
            yield None
        else:
            yield {str(name): _as_text(value) for name, value in item.items()}


def _format(extension: str) -> str:
    names = {"csv": "CSV in UTF-8", "tsv": "TSV in UTF-8", "jsonl": "JSON lines", "ndjson": "JSON lines"}
    return names.get(extension, "JSON")


def _as_text(value: Any) -> str:
    """Return a value as a column: of a list the first item that is not empty, as its own loader does with AURORA's."""
    if isinstance(value, list):
        return next((text for item in value if (text := _as_text(item))), "")
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _refuse_missing_columns(source: str, mapping: Mapping, rows: list[dict[str, str]]) -> None:
    """A column that some rows lack is those rows' failure; one that no row has is a wrong manifest or mapping."""
    seen = dict.fromkeys(name for columns in rows for name in columns)
    for name, templates in mapping.templates().items():
        if not any(columns_of(template) <= seen.keys() for template in templates):
            missing = ", ".join(
                sorted(repr(one) for template in templates for one in columns_of(template) - seen.keys())
            )
            found = ", ".join(list(seen)[:_NAMED_COLUMNS]) + (", ..." if len(seen) > _NAMED_COLUMNS else "")
            raise Refused(
                f"no row under {source!r} has the column {missing} that {mapping.name} needs for {name}; found {found}"
            )


def is_text(name: str) -> bool:
    """Return whether a file name is UTF-8; Linux takes any bytes, a table does not."""
    return name.isprintable() or not any("\ud800" <= letter <= "\udfff" for letter in name)
