"""Data sets that people labeled, in their published layouts, read by the real code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from labeling.human_labels import LabeledCounts, LabeledOptions, ingest_labeled
from labeling.images import decode_images
from lake.catalog import ingest
from lake.commits import Committer
from lake.errors import Refused
from lake.forget import forget
from lake.sql import query
from lake.tables import Lake
from tests.conftest import Bucket
from tests.labeling import datasets
from tests.media import read_counter
from tests.worldlake.command import worldlake

TABLES = ("videos", "triples", "failures", "progress")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "data set"
    made.mkdir()
    return made


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def rows(lake: Lake, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lake.dataset(table).to_table().to_pylist()
    return found


def shown(triple: dict[str, Any]) -> tuple[int, int]:
    """The numbers that obs and next_obs show."""
    obs, next_obs = decode_images([triple["obs"], triple["next_obs"]])
    assert obs.shape == next_obs.shape == (256, 256, 3)
    return read_counter(obs), read_counter(next_obs)


def summary(lake: Lake, *columns: str) -> list[tuple[Any, ...]]:
    """Chosen columns of the triples, and what they show, sorted."""
    return sorted((*(row[name] for name in columns), *shown(row)) for row in rows(lake, "triples"))


def versions(lake: Lake) -> list[int]:
    return [lake.table(name).version() for name in ("videos", "triples", "failures", "progress")]


def triples_as_they_are(lake: Lake) -> list[dict[str, Any]]:
    unstable = ("run_id", "labeled_at")
    found = [{name: row[name] for name in row if name not in unstable} for row in rows(lake, "triples")]
    return sorted(found, key=lambda row: row["triple_id"])


def ingest_again(lake: Lake, root: Path, layout: str, counts: LabeledCounts) -> None:
    """A second run adds no row and opens no file."""
    before = [rows(lake, name) for name in TABLES]
    _, again = ingest_labeled(lake, [str(root)], layout)
    assert again == LabeledCounts(listed=counts.listed, known=counts.listed)
    assert [rows(lake, name) for name in TABLES] == before


def test_aurora(place: str, root: Path, request: Any) -> None:
    datasets.aurora(root)
    lake, source = Lake(place), str(root)
    if place.startswith("s3://"):
        bucket: Bucket = request.getfixturevalue("bucket")
        for path in (path for path in root.rglob("*") if path.is_file()):
            bucket.put(f"aurora/{path.relative_to(root)}", path)
        source = f"{bucket.uri}/aurora"
    videos, counts = ingest_labeled(lake, [source], "aurora")
    assert (videos.listed, counts) == (0, LabeledCounts(listed=4, triples=4))
    assert summary(lake, "dataset", "action", "split", "labeler_id", "policy_id", "obs_pts", "next_pts") == [
        ("aurora-ag", "do thing 1", "train", "human:aurora", "human", 0, 1, 10, 11),
        ("aurora-kubric", "do thing 3", "train", "human:aurora", "human", 0, 1, 30, 31),
        ("aurora-magicbrush", "do thing 0", "train", "human:aurora", "human", 0, 1, 0, 1),
        ("aurora-something", "do thing 2", "train", "human:aurora", "human", 0, 1, 20, 21),
    ]
    assert rows(lake, "failures") == rows(lake, "videos") == []
    for row in rows(lake, "triples"):
        assert row["uri"].startswith(f"{source}/data/")
        assert {row[name] for name in ("confidence", "motion", "direction", "copy", "text", "time_base")} == {None}
    _, again = ingest_labeled(lake, [source], "aurora")
    assert again == LabeledCounts(listed=4, known=4)
    assert len(rows(lake, "triples")) == 4


def test_every_row_that_cannot_be_used_is_a_failure(root: Path, lake: Lake) -> None:
    datasets.aurora(root)
    manifest = root / "data/ag/train.json"
    good = json.loads(manifest.read_text())[0]
    cut = datasets.image(root / "data/ag/images/cut.png", 1)
    cut.write_bytes(cut.read_bytes()[:-2000])
    (root / "data/ag/images/noise.jpg").write_bytes(b"\xff\xd8\xff" + bytes(range(256)))
    (root / "data/ag/images/empty.png").touch()
    bad = {
        "no file 'data/ag/images/gone.png'": {**good, "input": "data/ag/images/gone.png"},
        "no file '../": {**good, "output": "../../../etc/hostname"},
        "no action: column 'instruction' is empty": {**good, "instruction": " \n"},
        "column 'instruction' is empty": {**good, "instruction": ["", None]},
        "column 'output' is missing": {name: good[name] for name in ("instruction", "input")},
        "not an object": "row",
        "cut.png is not a whole image": {**good, "output": "data/ag/images/cut.png"},
        "noise.jpg is not a whole image": {**good, "output": "data/ag/images/noise.jpg"},
        "empty.png is not a whole image": {**good, "input": "data/ag/images/empty.png"},
        "already": {**good, "instruction": "something else"},
    }
    manifest.write_text(json.dumps([good, *bad.values(), good]))
    _, counts = ingest_labeled(lake, [str(root)], "aurora")
    assert counts == LabeledCounts(listed=15, triples=4, failed=10, known=1)
    failures = rows(lake, "failures")
    for number, reason in enumerate(bad, 2):
        [row] = [row for row in failures if row["message"].startswith(f"row {number} of train.json: ")]
        assert reason in row["message"]
        assert (row["labeler_id"], row["transient"], row["scope"]) == ("human:aurora", False, "pair")
    ingest_again(lake, root, "aurora", counts)
    retried = ingest_labeled(lake, [str(root)], "aurora", LabeledOptions(retry_failed=True))[1]
    assert (retried.triples, retried.failed, retried.known) == (0, 9, 6)

    datasets.image(root / "data/ag/images/gone.png", 77)
    _, after = ingest_labeled(lake, [str(root)], "aurora")
    assert after == LabeledCounts(listed=15, triples=1, known=14)
    assert len(rows(lake, "triples")) == 5


def test_aurora_bench(root: Path, lake: Lake) -> None:
    datasets.aurora_bench(root)
    _, counts = ingest_labeled(lake, [str(root)], "aurora-bench")
    assert counts == LabeledCounts(listed=8, triples=5, failed=3)
    assert summary(lake, "dataset", "action", "split")[0] == ("aurora-bench-ag", "do task ag", "test", 10, 11)
    assert [row["message"] for row in rows(lake, "failures")] == [
        f"row {number} of test.json: no next_obs: column 'output' is missing" for number in (6, 7, 8)
    ]
    ingest_again(lake, root, "aurora-bench", counts)


@pytest.mark.slow
def test_something(root: Path, lake: Lake) -> None:
    datasets.something(root)
    videos, counts = ingest_labeled(lake, [str(root)], "something")
    assert (videos.new, videos.failed) == (3, 0)
    assert counts == LabeledCounts(listed=3, triples=2, failed=1)
    template = "Holding [something] next to [something]"
    cataloged = sorted((row["split"], row["class_label"]) for row in rows(lake, "videos"))
    assert cataloged == [("test", None), ("train", template), ("validation", template)]
    assert summary(lake, "split", "action", "dataset") == [
        ("train", "holding potato next to cup 0", "something", 0, 11),
        ("validation", "holding potato next to cup 1", "something", 100, 111),
    ]
    known = {row["video_id"]: row for row in rows(lake, "videos")}
    for row in rows(lake, "triples"):
        assert row["uri"] == known[row["video_id"]]["uri"]
        assert row["next_time_s"] == pytest.approx(11 / datasets.FPS, abs=1e-3)
    assert "column 'label' is missing" in rows(lake, "failures")[0]["message"]
    ingest_again(lake, root, "something", counts)


@pytest.mark.slow
def test_epic_kitchens(root: Path, lake: Lake) -> None:
    datasets.epic_kitchens(root)
    videos, counts = ingest_labeled(lake, [str(root)], "epic-kitchens")
    assert (videos.new, counts) == (2, LabeledCounts(listed=3, triples=3))
    # The first frames at or after the times; a stop just after the end is the last frame.
    assert summary(lake, "split", "action", "dataset") == [
        ("train", "open door, slowly", "epic-kitchens", 4, 30),
        ("train", "turn on light", "epic-kitchens", 25, 51),
        ("validation", "take plate", "epic-kitchens", 200, 224),
    ]
    assert {row["split"] for row in rows(lake, "videos")} == {"train", "validation"}
    ingest_again(lake, root, "epic-kitchens", counts)
    [forgotten] = {row["video_id"] for row in rows(lake, "triples") if row["split"] == "train"}
    assert forget(lake, forgotten).rows["triples"] == 2
    stays_away_until_asked_for(lake, root, "epic-kitchens", 2)


def stays_away_until_asked_for(lake: Lake, root: Path, layout: str, triples: int) -> None:
    """A deleted source with N triples comes back with `bring_back` only."""
    before = lake.dataset("triples").count_rows()
    for _ in range(2):
        counts = ingest_labeled(lake, [str(root)], layout)[1]
        assert (counts.triples, counts.failed, counts.listed) == (0, 0, counts.known)
    assert lake.dataset("triples").count_rows() == before
    back = ingest_labeled(lake, [str(root)], layout, LabeledOptions(bring_back=True))[1]
    assert (back.triples, lake.dataset("triples").count_rows()) == (triples, before + triples)
    again = ingest_labeled(lake, [str(root)], layout)[1]
    assert (again.triples, again.known) == (0, again.listed)


@pytest.mark.slow
def test_new_rows_of_a_video_are_added(root: Path, lake: Lake) -> None:
    datasets.epic_kitchens(root)
    ingest_labeled(lake, [str(root)], "epic-kitchens")
    manifest = root / "epic-kitchens-100-annotations/EPIC_100_train.csv"
    lines = manifest.read_text().splitlines()
    more = [
        datasets.epic_row("P01_01", "00:00:02.00", "00:00:03.00", "close door"),
        datasets.epic_row("P01_01", "00:00:02.00", "00:01:00.00", "too long"),
        datasets.epic_row("P01_01", "00:00:03.00", "00:00:02.00", "backwards"),
        datasets.epic_row("P01_01", "00:00:02.001", "00:00:02.002", "too short"),
        datasets.epic_row("P09_01", "00:00:02.00", "00:00:03.00", "not downloaded"),
        datasets.epic_row("P01_01", "at noon", "00:00:03.00", "no time"),
    ]
    added = datasets.write_csv(root / "more.txt", more).read_text().splitlines()[1:]
    manifest.write_text("\n".join([*lines, *added]) + "\n")
    _, counts = ingest_labeled(lake, [str(root)], "epic-kitchens")
    assert counts == LabeledCounts(listed=9, triples=1, failed=5, known=3)
    reasons = " ".join(row["message"] for row in rows(lake, "failures"))
    for reason in (
        "ends after 3.96 s",
        "stop is not after",
        "same one",
        "no file 'P09_01.MP4'",
        "'at noon' is not a time",
    ):
        assert reason in reasons
    assert len(rows(lake, "triples")) == 4
    for row in rows(lake, "progress"):
        assert row["sampled"] == row["accepted"] + row["rejected"] + row["failed"] + row["decided_before"]
    ingest_again(lake, root, "epic-kitchens", counts)


@pytest.mark.parametrize("name", ["kinetics", "ucf101", "moments"])
@pytest.mark.parametrize("layout", ["by name", "auto"])
def test_class_labels_of_paths(name: str, layout: str, root: Path, lake: Lake) -> None:
    getattr(datasets, name)(root)
    assert ingest(lake, [str(root)], layout=name if layout == "by name" else "auto").new == 2
    found = sorted((row["dataset"], row["class_label"], row["split"]) for row in rows(lake, "videos"))
    expected = {
        "kinetics": [("kinetics", "abseiling", "validation"), ("kinetics", "playing harp", "train")],
        "moments": [("moments", "blocking", "train"), ("moments", "dancing", "validation")],
        "ucf101": [("ucf101", "ApplyEyeMakeup", found[0][2])] * 2,
    }
    assert found == expected[name]


def own(tmp_path: Path, **fields: Any) -> str:
    path = tmp_path / "my-data.yaml"
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def test_frame_numbers_of_a_mapping_of_ones_own(root: Path, lake: Lake, tmp_path: Path) -> None:
    datasets.video(root / "clips/a.mp4", range(50))
    lines = [
        {"file": "clips/a.mp4", "from": 1, "to": 11, "what": ["do"], "set": "val"},
        {"file": "clips/a.mp4", "from": 11, "to": 50, "what": "do more", "set": "val"},
        {"file": "clips/a.mp4", "from": 11, "to": 51, "what": "too far", "set": "val"},
        {"file": "clips/a.mp4", "from": 0, "to": 3, "what": "before the first", "set": "val"},
        {"file": "clips/a.mp4", "from": 2, "to": 3, "what": "wrong set", "set": "dev"},
    ]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    mapping = own(
        tmp_path, manifest=r"rows\.jsonl", video="{file}", start_frame="{from}", stop_frame="{to}", first_frame=1,
        action="{what}", split="{set}",
    )  # fmt: skip
    _, counts = ingest_labeled(lake, [str(root)], mapping)
    assert counts == LabeledCounts(listed=5, triples=2, failed=3)
    assert summary(lake, "labeler_id", "dataset", "split", "action") == [
        ("human:my-data", "my-data", "validation", "do", 0, 10),
        ("human:my-data", "my-data", "validation", "do more", 10, 49),
    ]
    assert rows(lake, "videos")[0]["split"] == "validation"


def test_a_folder_of_pairs_is_a_mapping_too(root: Path, lake: Lake, tmp_path: Path) -> None:
    datasets.image(root / "open door/1_before.png", 3)
    datasets.image(root / "open door/1_after.png", 4)
    datasets.image(root / "open door/2_before.png", 5)
    mapping = own(
        tmp_path, paths=r"(?P<act>[^/]+)/(?P<id>\d+)_before\.png", obs="{path}", next_obs="{act}/{id}_after.png",
        action="{act}",
    )  # fmt: skip
    _, counts = ingest_labeled(lake, [str(root)], mapping)
    assert counts == LabeledCounts(listed=2, triples=1, failed=1)
    assert summary(lake, "action") == [("open door", 3, 4)]
    ingest_again(lake, root, mapping, counts)


def test_classes_of_a_manifest(root: Path, lake: Lake, tmp_path: Path) -> None:
    datasets.video(root / "flat/abcdefghijk_000001_000011.mp4", range(5))
    row = {"label": "playing harp", "youtube_id": "abcdefghijk", "time_start": 1, "time_end": 11, "split": "val"}
    datasets.write_csv(root / "annotations/val.csv", [row, {**row, "youtube_id": "deleted_one"}])
    mapping = own(
        tmp_path, manifest=r"annotations/\w+\.csv", video="{youtube_id}_{time_start:0>6}_{time_end:0>6}.mp4",
        class_label="{label}", split="{split}", dataset="kinetics",
    )  # fmt: skip
    _, counts = ingest_labeled(lake, [str(root)], mapping)
    assert counts == LabeledCounts(listed=2, known=1, failed=1)
    [found] = rows(lake, "videos")
    assert (found["dataset"], found["class_label"], found["split"]) == ("kinetics", "playing harp", "validation")
    assert rows(lake, "triples") == []


class Killed(BaseException):
    """Stands for a kill -9: nothing handles it, and nothing more is committed."""


@pytest.mark.slow
@pytest.mark.parametrize("after", range(4))
def test_a_run_that_was_killed_is_resumed(after: int, root: Path, lake: Lake, tmp_path: Path, monkeypatch: Any) -> None:
    """Killed before the commit of triples, of failures, or of progress, and in the second round of commits."""
    datasets.epic_kitchens(root)
    (root / "EPIC-KITCHENS/P01/videos/P01_11.MP4").write_bytes(b"no video")
    whole = Lake(str(tmp_path / "whole"))
    expected = ingest_labeled(whole, [str(root)], "epic-kitchens")[1]
    assert expected == LabeledCounts(listed=3, triples=2, failed=1)

    monkeypatch.setattr("labeling.human_labels._COMMIT_ROWS", 1)
    original, commits = Committer._commit_table, [0]

    def killed(self: Committer, *args: Any) -> None:
        if commits[0] >= after:
            raise Killed
        commits[0] += 1
        original(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Committer, "_commit_table", killed)
        with pytest.raises(Killed):
            ingest_labeled(lake, [str(root)], "epic-kitchens")
    counts = ingest_labeled(lake, [str(root)], "epic-kitchens")[1]
    assert counts.listed == counts.triples + counts.failed + counts.known == 3
    assert triples_as_they_are(lake) == triples_as_they_are(whole)
    assert len(rows(lake, "progress")) == 2
    assert ingest_labeled(lake, [str(root)], "epic-kitchens")[1].known == 3


def test_the_command(root: Path, lake: Lake) -> None:
    datasets.aurora_bench(root)
    datasets.something(root / "20bn")
    code, printed = worldlake("ingest", str(root), "--lake", lake.uri, "--format", "aurora-bench", "--json")
    assert code == 0, printed
    assert json.loads(printed)["rows"] == {"listed": 8, "triples": 5, "failed": 3, "known": 0}
    code, printed = worldlake("ingest", str(root), "--lake", lake.uri, "--format", "aurora-bench", "--strict")
    assert (code, printed.strip()) == (0, "8 rows listed = 0 triples + 8 known + 0 failed")
    code, printed = worldlake("ingest", str(root / "20bn"), "--lake", lake.uri, "--format", "something", "--strict")
    assert code == 3, printed
    assert "3 files listed = 3 new" in printed

    code, printed = worldlake("status", "--lake", lake.uri, "--json")
    assert json.loads(printed)["labeled_by_people"] == {"human:aurora-bench": 5, "human:something": 2}, printed
    assert "human:something: 2 triples" in worldlake("status", "--lake", lake.uri)[1]
    with query(lake, "SELECT count(*) FROM triples_human_aurora_bench") as result:
        assert result.read_all().to_pylist()[0] == {"count_star()": 5}
    with query(lake, "FROM current") as result:
        assert result.read_all().num_rows == 0

    code, printed = worldlake("ingest", str(root), "--lake", lake.uri, "--format", "aurora-bench", "--image-size", "64")
    assert (code, "256 pixels wide" in printed) == (2, True)
    assert forget(lake, "aurora-bench-ag").rows["triples"] == 1
    stays_away_until_asked_for(lake, root, "aurora-bench", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not JSON"),
        ('{"a": 1}', "not a list of rows"),
        (
            '[{"input": "a", "output": "b", "caption": "c"}]',
            "'instruction', 'prompt' .*found input, output, caption",
        ),
        ("[]", "no row for aurora-bench"),
    ],
)
def test_manifests_that_are_refused(content: str, message: str, root: Path, lake: Lake) -> None:
    (root / "test.json").write_text(content)
    with pytest.raises(Refused, match=message):
        ingest_labeled(lake, [str(root)], "aurora-bench")
    code, printed = worldlake("ingest", str(root), "--lake", lake.uri, "--format", "aurora-bench")
    assert code == 2
    assert len(printed.strip().splitlines()) == 1, printed
    with pytest.raises(Refused, match="is a file"):
        ingest_labeled(lake, [str(root / "test.json")], "aurora-bench")
