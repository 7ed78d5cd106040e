"""Mappings and manifests, without opening what rows name."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.errors import Refused
from lake.layouts import PRESETS, find_mapping
from lake.manifest import Manifest, read_manifest
from lake.mapping import Mapping
from lake.storage import StorageConfig

Write = Callable[[list[dict[str, str]]], str]


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


FORMATS: dict[str, Write] = {
    "json": json.dumps,
    "jsonl": lambda rows: "\n".join(map(json.dumps, rows)),
    "csv": as_csv,
    "tsv": lambda rows: as_csv(rows, "\t"),
}
MAPPING: dict[str, Any] = {
    "name": "mine", "manifest": r"rows\.\w+", "video": "{video}", "start_time": "{start}", "stop_time": "{stop}",
    "action": "{act} the {object}", "split": "{split}", "group": "{group}",
}  # fmt: skip


def read(folder: Path, mapping: dict[str, Any]) -> Manifest:
    return read_manifest(StorageConfig(), str(folder), Mapping.model_validate(mapping))


def told(found: Manifest) -> list[Any]:
    """Return what was read, without the manifest's own name."""
    usable = [(row.origin.number, row.files, row.moments, row.action, row.place) for row in found.rows]
    return [usable, [(origin.number, str(reason)) for origin, reason in found.unusable], found.places]


_cell = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=8)
_row = st.fixed_dictionaries(
    {
        "video": st.sampled_from(["a.mp4", "b/c.mp4", "c.mp4", "gone.mp4", "", "/b/c.mp4", "../a.mp4"]),
        "start": st.sampled_from(["0", "1.5", "00:00:01.25", "x", ""]),
        "stop": st.sampled_from(["2", "00:01:00", "1", ""]),
        "act": _cell,
        "object": _cell,
        "split": st.sampled_from(["train", "val", "TEST", "", "dev"]),
        "group": _cell,
    }
)


@given(st.lists(_row, min_size=1, max_size=8))
def test_every_row_is_usable_or_says_why_in_every_format(rows: list[dict[str, str]]) -> None:
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "b").mkdir()
        for path in ("a.mp4", "b/c.mp4"):
            (folder / path).touch()
        for extension, write in FORMATS.items():
            manifest = folder / f"rows.{extension}"
            manifest.write_text(write(rows), encoding="utf-8-sig", newline="")
            results.append(told(read(folder, MAPPING)))
            manifest.unlink()
    assert all(result == results[0] for result in results)
    usable, unusable, places = results[0]
    assert sorted([number for number, *_ in usable] + [number for number, _ in unusable]) == [*range(1, len(rows) + 1)]
    for number, (video,), (start, stop), action, place in usable:
        row = rows[number - 1]
        assert video.uri.endswith(f"/{row['video']}")
        assert start < stop
        assert action == " ".join(f"{row['act'].strip()} the {row['object'].strip()}".split())
        assert place.split in (None, "train", "validation", "test")
        assert places[video.uri.removeprefix(f"{name}/")].group == (row["group"].strip() or None) or len(rows) > 1


def test_times_are_exact(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    row = {"video": "a.mp4", "act": "a", "object": "b", "split": "", "group": ""}
    (tmp_path / "rows.csv").write_text(as_csv([{**row, "start": "00:00:00.14", "stop": "01:02:03.37"}]))
    [found] = read(tmp_path, MAPPING).rows
    assert found.moments == (Fraction(14, 100), Fraction(372337, 100))


def test_a_video_of_two_splits_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    row = {"video": "a.mp4", "start": "0", "stop": "1", "act": "a", "object": "b", "group": ""}
    (tmp_path / "rows.csv").write_text(as_csv([{**row, "split": split} for split in ("train", "val", "train", "")]))
    assert read(tmp_path, MAPPING).places["a.mp4"].split == "validation"


def test_a_name_without_a_folder_is_looked_for_everywhere(tmp_path: Path) -> None:
    for folder in ("x", "y/z"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "twice.mp4").touch()
    (tmp_path / "y/z/once.mp4").touch()
    (tmp_path / "rows.jsonl").write_text('{"v": "once.mp4"}\n{"v": "twice.mp4"}\n{"v": "z/once.mp4"}\n')
    mapping = {"name": "mine", "manifest": r"rows\.jsonl", "video": "{v}", "action": "{v}"}
    found = read(tmp_path, mapping)
    assert [row.files[0].uri for row in found.rows] == [str(tmp_path / "y/z/once.mp4")]
    assert [str(reason).split(" under ")[0] for _, reason in found.unusable] == [
        "2 files are called 'twice.mp4'",
        "no file 'z/once.mp4'",
    ]


def test_a_name_is_found_in_either_form_of_its_letters(tmp_path: Path) -> None:
    one, two = "\u00e9t\u00e9", "e\u0301te\u0301"
    for folder, name in ((one, two), (two, one)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.mp4").touch()
    rows = [f"{one}/{one}.mp4", f"{two}/{one}.mp4", f"{two}/{two}.mp4", f"{one}.mp4"]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"v": row}) for row in rows))
    found = read(tmp_path, {"name": "mine", "manifest": r"rows\.jsonl", "video": "{v}", "action": "{v}"})
    # As it stands, and where that is not there, in the other form; what may be either is not guessed.
    assert [row.files[0].uri for row in found.rows] == [str(tmp_path / two / f"{one}.mp4")]
    assert len(found.unusable) == 3
    (tmp_path / two / f"{one}.mp4").unlink()
    found = read(tmp_path, {"name": "mine", "manifest": r"rows\.jsonl", "video": "{v}", "action": "{v}"})
    assert {row.files[0].uri for row in found.rows} == {str(tmp_path / one / f"{two}.mp4")}
    assert len(found.rows) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", b"[1", "is not JSON"),
        ("rows.json", b"[" * 100_000, "is not JSON"),
        ("rows.jsonl", b'{"a": 1}\n{', "is not JSON lines"),
        ("rows.csv", b"video,start\n\xff\xfe,1\n", "is not CSV in UTF-8"),
        ("rows.json", b'{"data": []}', "not a list of rows: it holds one dict"),
        ("rows.csv", b"video;start\na;b\n", "has the column 'video' that mine needs for video; found video;start"),
        (
            "rows.csv",
            b"video,start,stop,act,split,group\na,0,1,b,train,c\n",
            "column 'object' that mine needs for action",
        ),
        ("rows.csv", b"video,start\n", "no row for mine"),
        ("other.csv", b"video,start\na,b\n", "no row for mine"),
    ],
)
def test_bad_manifests_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=message):
        read(tmp_path, MAPPING)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video: '{a}'", "either manifest"),
        ("manifest: '('\nvideo: '{a}'", "at manifest"),
        ("manifest: x\nvideo: '{a'", "wrong"),
        ("manifest: x\nvideo: '{a:q}'\naction: b", "wrong"),
        ("manifest: x\nobs: '{a}'\naction: b", "go together"),
        ("manifest: x\nobs: '{a}'\nnext_obs: '{b}'", "a pair needs an action"),
        ("manifest: x\nvideo: '{a}'\nobs: '{a}'\nnext_obs: b\naction: c", "either video or obs"),
        (
            "manifest: x\nvideo: '{a}'\naction: c\nstart_time: a\nstop_time: b\nstart_frame: a\nstop_frame: b",
            "times or",
        ),
        ("manifest: x\nvideo: '{a}'\ncolor: b", "at color"),
        ("name: a'b\nmanifest: x\nvideo: '{a}'", "at name"),
        ("- a", "wrong"),
        ("a: [", "not YAML"),
    ],
)
def test_bad_mappings_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(Refused, match=message):
        find_mapping(str(path))


def test_formats_by_name() -> None:
    assert find_mapping("auto") is find_mapping("folder") is None
    assert {name for name, mapping in PRESETS.items() if mapping.is_labeled} == {
        "aurora", "aurora-bench", "something", "epic-kitchens",
    }  # fmt: skip
    for name in ("imagenet", "nowhere.yaml"):
        with pytest.raises(Refused):
            find_mapping(name)
