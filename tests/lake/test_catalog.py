"""The catalog over real files in a folder and in S3."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.catalog import IngestCounts, ingest
from lake.errors import Refused
from lake.ids import hashed_split
from lake.layouts import FORMATS, find_mapping, place
from lake.s3 import RangedObject
from lake.storage import StorageConfig
from lake.tables import Lake
from lake.video_headers import read_header
from tests.conftest import Bucket
from tests.media import FFMPEG, MISSING, ffmpeg, real_clips

pytestmark = pytest.mark.skipif(FFMPEG is None, reason=MISSING)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    _encode(path, seconds=2)
    return path


def _encode(path: Path, seconds: int, size: str = "64x48", *options: str) -> None:
    source = f"testsrc=size={size}:rate=10:duration={seconds}"
    ffmpeg("-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", *options, str(path))


def rows(lake: Lake, table: str) -> list[dict[str, Any]]:
    return lake.dataset(table).to_table().to_pylist()


def bad_files(folder: Path, clip: Path) -> dict[str, str]:
    """Files that cannot be cataloged, each with a word of its reason."""
    content = clip.read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(os.urandom(100_000))
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    (folder / "playlist.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n")
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", str(folder / "audio.mp4"))
    return {"empty.mp4": "0 bytes", "noise.mp4": "", "cut.mp4": "", "playlist.mp4": "", "audio.mp4": "no video stream"}


def test_good_and_bad_files_of_a_folder_and_of_s3(place: str, clip: Path, tmp_path: Path, request: Any) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    reasons = bad_files(source, clip)
    good = ["a b.mp4", "ü 日本.mp4", "new\nline.mp4", "UPPER.MP4"]
    for name in good:
        shutil.copy(clip, source / name)
    (source / "notes.txt").write_text("no video")
    lake, where = Lake(place), str(source)
    if lake.uri.startswith("s3://"):
        bucket: Bucket = request.getfixturevalue("bucket")
        for path in source.iterdir():
            bucket.put(f"videos/{path.name}", path)
        where = f"{bucket.uri}/videos"

    assert ingest(lake, [where]) == IngestCounts(listed=9, new=4, known=0, failed=5, skipped=1)
    videos = rows(lake, "videos")
    assert {row["uri"] for row in videos} == {f"{where}/{name}" for name in good}
    header = {"codec": "h264", "width": 64, "height": 48, "fps": 10.0, "frames": 20, "duration_s": 2.0}
    for row in videos:
        assert {name: row[name] for name in header} == header
        assert (row["dataset"], row["bytes"]) == ("videos", clip.stat().st_size)
        assert row["split"] in ("train", "validation", "test")
    for row in rows(lake, "failures"):
        assert (row["scope"], row["stage"], row["transient"]) == ("video", "probe", False)
        assert reasons[row["uri"].rsplit("/", 1)[-1]] in row["message"]
    assert {row["uri"] for row in rows(lake, "failures")} == {f"{where}/{name}" for name in reasons}

    version = lake.table("videos").version()
    assert ingest(lake, [where]) == IngestCounts(listed=9, known=9, skipped=1, known_failed=5)
    assert lake.table("videos").version() == version
    assert ingest(lake, [where], retry_failed=True).failed == 5


def test_only_what_is_new_is_read_and_a_changed_file_is_a_new_video(tmp_path: Path, clip: Path) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    # Longer than the 64 characters at which statistics of a file are cut.
    name = "x" * 100
    shutil.copy(clip, source / f"{name}1.mp4")
    lake = Lake(str(tmp_path / "lake"))
    assert ingest(lake, [str(source)]).new == 1
    shutil.copy(clip, source / f"{name}2.mp4")
    assert ingest(lake, [str(source), str(source / f"{name}2.mp4")]) == IngestCounts(listed=3, new=1, known=2)
    os.utime(source / f"{name}1.mp4", ns=(1, 1))
    assert ingest(lake, [str(source)]) == IngestCounts(listed=2, new=1, known=1)
    states = [row for row in rows(lake, "videos") if row["uri"].endswith("1.mp4")]
    assert len({row["video_id"] for row in states}) == 2
    assert len({row["split"] for row in states}) == 1


def test_a_file_that_is_back_in_an_earlier_state_is_the_newest_again(tmp_path: Path, clip: Path) -> None:
    source, lake = tmp_path / "videos", Lake(str(tmp_path / "lake"))
    source.mkdir()
    shutil.copy(clip, source / "other.mp4")
    first = shutil.copy2(clip, source / "a.mp4")
    assert ingest(lake, [str(source)]).new == 2
    (before,) = (row for row in rows(lake, "videos") if row["uri"] == str(first))
    os.utime(first, ns=(1, 1))
    assert ingest(lake, [str(source)]).new == 1
    shutil.copy2(clip, first)
    assert ingest(lake, [str(source)]).new == 1
    assert ingest(lake, [str(source)]).new == 0
    states = sorted((row for row in rows(lake, "videos") if row["uri"] == str(first)), key=lambda row: row["added_at"])
    assert [row["etag"] == before["etag"] for row in states] == [False, True]
    assert {**states[1], "added_at": None} == {**before, "added_at": None}
    assert len(rows(lake, "videos")) == 3


@pytest.mark.slow
def test_only_files_that_may_hold_a_page_are_asked_and_none_that_does_is_left_out(tmp_path: Path, clip: Path) -> None:
    source, lake = tmp_path / "videos", Lake(str(tmp_path / "lake"))
    # Statistics keep the beginning of long names only; quotes and names beyond ASCII are what SQL may stumble over.
    names = [
        "a.mp4",
        "it's.mp4",
        "'.mp4",
        "back\\slash.mp4",
        "\\'.mp4",
        "\U0010ffff.mp4",
        *(f"{'long' * 40}{end}.mp4" for end in "abc"),
    ]
    source.mkdir()
    for name in names:
        shutil.copy(clip, source / name)
        assert ingest(lake, [str(source)]).new == 1
    assert ingest(lake, [str(source)]).known == len(names)
    for name in names:
        assert ingest(lake, [str(source / name)]).known == 1, name
    assert len(lake.dataset("videos").files) == len(names)
    pruned = lake.dataset("videos", prune=f"uri = '{source}/a.mp4'")
    assert pruned.to_table()["uri"].to_pylist() == [f"{source}/a.mp4"]


def test_two_ingests_at_once_add_every_video_once(place: str, clip: Path, tmp_path: Path) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    for number in range(4):
        shutil.copy(clip, source / f"{number}.mp4")
    lake = Lake(place)
    lake.create()
    with ThreadPoolExecutor(2) as threads:
        counts = list(threads.map(lambda _: ingest(lake, [str(source)]), range(2)))
    assert sum(count.new for count in counts) == 4
    assert len(rows(lake, "videos")) == 4


@pytest.mark.slow
def test_headers_cost_a_fraction_of_a_file(bucket: Bucket, tmp_path: Path) -> None:
    clips = {
        "front.mp4": ["-movflags", "faststart"],
        "back.mp4": [],
        "a.mkv": [],
        "a.avi": ["-c:v", "mpeg4", "-q:v", "2"],
    }
    read: dict[str, list[int]] = {}
    storage = StorageConfig()
    for name, options in clips.items():
        _encode(tmp_path / name, 6, "480x320", "-vf", "noise=alls=80:allf=t", "-preset", "ultrafast", *options)
        bucket.put(name, tmp_path / name)
        [[entry]] = list(storage.pages(f"{bucket.uri}/{name}"))
        with counting(read.setdefault(name, [])), storage.open_ranged(entry) as file:
            assert read_header(file).codec in ("h264", "mpeg4")
        assert sum(read[name]) < 0.2 * entry.bytes, (name, read[name], entry.bytes)


class counting:
    """Records how many bytes every ranged request brought."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.original: Callable[[RangedObject, Any], int] = RangedObject.readinto

    def __enter__(self) -> None:
        def readinto(file: RangedObject, buffer: Any) -> int:
            self.sizes.append(self.original(file, buffer))
            return self.sizes[-1]

        RangedObject.readinto = readinto  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        RangedObject.readinto = self.original  # type: ignore[method-assign]


def test_real_clips(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    counts = ingest(lake, list(map(str, real_clips())), dataset="real", split="test")
    assert (counts.new, counts.failed) == (3, 0)
    assert {(row["dataset"], row["split"]) for row in rows(lake, "videos")} == {("real", "test")}


def test_a_listing_that_breaks_off_is_recorded_and_refused(
    bucket: Bucket, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lake.storage.LIST_PAGE", 1)
    bucket.put("videos/1.mp4", clip)
    bucket.put("videos/2.mp4", clip)
    lake = Lake(str(tmp_path / "lake"))

    def lose_access(_: IngestCounts) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")

    with pytest.raises(Refused, match="rejects the credentials"):
        ingest(lake, [f"{bucket.uri}/videos"], on_progress=lose_access)
    [failure] = rows(lake, "failures")
    assert (failure["video_id"], failure["scope"], failure["stage"]) == (None, "listing", "list")
    assert [row["uri"] for row in rows(lake, "videos")] == [f"{bucket.uri}/videos/1.mp4"]


def test_a_name_that_is_not_utf8_and_a_dangling_link_are_failures(tmp_path: Path, clip: Path) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    shutil.copy(clip, os.fsencode(source) + b"/\xff.mp4")
    (source / "gone.mp4").symlink_to(source / "nowhere")
    lake = Lake(str(tmp_path / "lake"))
    assert ingest(lake, [str(source)]).failed == 2
    assert ingest(lake, [str(source)]).known == 2
    assert {row["uri"] for row in rows(lake, "failures")} == {f"{source}/\\udcff.mp4", f"{source}/gone.mp4"}


@pytest.mark.parametrize("options", [{"layout": "imagenet"}, {"split": "dev"}])
def test_wrong_options_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Refused, match="use"):
        ingest(Lake(str(tmp_path / "lake")), [str(tmp_path)], **options)


def test_sources_without_videos_are_refused(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    (tmp_path / "empty").mkdir()
    for sources in ([], [str(tmp_path / "none")], [str(tmp_path / "empty")], ["gs://bucket/x"]):
        with pytest.raises(Refused):
            ingest(lake, sources)


@pytest.mark.parametrize(
    ("layout", "path", "expected"),
    [
        ("kinetics", "train/playing harp/a.mp4", ("kinetics", "train", "playing harp", None)),
        ("kinetics", "playing harp/a.mp4", ("kinetics", None, "playing harp", None)),
        ("auto", "val/yoga/abcdefghijk_000001_000011.mp4", ("kinetics", "validation", "yoga", None)),
        ("auto", "UCF-101/Archery/v_Archery_g07_c02.avi", ("ucf101", None, "Archery", "Archery/g07")),
        ("auto", "training/baking/x.mp4", ("moments", "train", "baking", None)),
        ("something", "20bn/78687.webm", ("something", None, None, None)),
        ("auto", "cooking/deep/x.mp4", ("cooking", None, None, None)),
        ("folder", "train/x.mp4", ("source", "train", None, None)),
        ("ucf101", "x.mp4", ("source", None, None, None)),
    ],
)
def test_paths_say_dataset_split_and_label(layout: str, path: str, expected: tuple[str | None, ...]) -> None:
    assert tuple(place(path, "source", layout, find_mapping(layout))) == expected


@given(st.sampled_from(FORMATS), st.lists(st.text(st.characters(exclude_characters="/"), min_size=1), min_size=1))
def test_every_path_has_a_dataset(layout: str, parts: list[str]) -> None:
    assert place("/".join(parts), "source", layout, find_mapping(layout)).dataset


def test_hashed_splits_have_their_shares() -> None:
    found = [hashed_split(f"s3://bucket/{number}.mp4") for number in range(4000)]
    shares = [found.count(name) / len(found) for name in ("train", "validation", "test")]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.02)


def test_a_manifest_says_what_it_knows_of_videos(tmp_path: Path, clip: Path) -> None:
    source = tmp_path / "20bn"
    (source / "labels").mkdir(parents=True)
    for number in range(7, 9):
        _encode(source / f"{number}.webm", 1, "64x48", "-c:v", "libvpx-vp9")
    row = '{"id": "7", "label": "holding a cup", "template": "Holding [something]"}'
    (source / "labels" / "validation.json").write_text(f"[{row}]")
    lake = Lake(str(tmp_path / "lake"))
    assert ingest(lake, [str(source)], layout="something").new == 2
    found = {row["uri"][-6:]: row for row in rows(lake, "videos")}
    assert (found["7.webm"]["class_label"], found["7.webm"]["split"]) == ("Holding [something]", "validation")
    assert (found["8.webm"]["class_label"], found["8.webm"]["dataset"]) == (None, "something")
    (source / "labels" / "train.json").write_text('{"7": 1}')
    with pytest.raises(Refused, match="not a list of rows"):
        ingest(lake, [str(source)], layout="something")


def test_a_split_of_an_unknown_name_is_a_failure(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "videos" / "dev").mkdir(parents=True)
    shutil.copy(clip, tmp_path / "videos" / "dev" / "a.mp4")
    mapping = tmp_path / "mine.yaml"
    mapping.write_text("paths: '(?P<set>\\w+)/.*'\nvideo: '{path}'\nsplit: '{set}'\n")
    lake = Lake(str(tmp_path / "lake"))
    assert ingest(lake, [str(tmp_path / "videos")], layout=str(mapping)).failed == 1
    assert "split 'dev' is none of train" in rows(lake, "failures")[0]["message"]
