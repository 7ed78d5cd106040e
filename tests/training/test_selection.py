from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from lake.errors import Refused
from lake.schemas import TABLES
from lake.tables import Lake, to_table
from lake.writer import Writer
from tests.lake.filled import LABELERS, fill
from training.selection import SelectionSettings, choose, select_triples

VIDEOS = {"v0": "jump", "v1": "run", "v2": "jump", "v3": "swim", "v4": None, "v5": None}
VIDEO_ROWS = to_table("videos", [{"video_id": id_, "class_label": label} for id_, label in VIDEOS.items()])


def row(number: int, **columns: Any) -> dict[str, Any]:
    return {"triple_id": f"{number:04d}", "labeler_id": "one", "dataset": "a", "split": "train", **columns}


@st.composite
def triples(draw: st.DrawFn) -> list[dict[str, Any]]:
    some = st.fixed_dictionaries(
        {
            "dataset": st.sampled_from(["a", "b"]),
            "video_id": st.sampled_from([*VIDEOS, "unknown"]),
            "action": st.sampled_from(["It moves.", "it  moves", "the door opens", "a door opens", "Öffnet die Tür"]),
            "confidence": st.none() | st.sampled_from([-1.0, -0.5, 0.0, float("nan")]) | st.floats(-9, 0),
            "split": st.sampled_from(["train", "train", "test"]),
            "labeler_id": st.sampled_from(["one", "two"]),
        }
    )
    return [row(number, **columns) for number, columns in enumerate(draw(st.lists(some, max_size=40)))]


def likelihood(one: dict[str, Any]) -> tuple[float, str]:
    value = one["confidence"]
    return (-value if value is not None and value == value else float("inf"), one["triple_id"])


# On a busy core a statement takes a second.
@hypothesis(max_examples=25, deadline=None)
@given(triples(), st.integers(1, 12), st.sampled_from(["auto", "phrase"]), st.randoms(use_true_random=False))
def test_the_likeliest_of_every_class_in_turns(
    rows: list[dict[str, Any]], most: int, classes: Any, shuffle: random.Random
) -> None:
    settings = SelectionSettings(per_dataset=most, classes=classes)
    chosen = choose(to_table("triples", rows), VIDEO_ROWS, settings).to_pylist()
    by_id = {one["triple_id"]: one for one in rows}
    candidates = [one for one in rows if one["split"] == "train"]
    every = choose(
        to_table("triples", candidates), VIDEO_ROWS, settings.model_copy(update={"per_dataset": None})
    ).to_pylist()
    class_of = {one["triple_id"]: one["class"] for one in every}
    assert len(class_of) == len(every) == len(candidates)
    for dataset in ("a", "b"):
        mine = [one for one in chosen if one["dataset"] == dataset]
        available = [one for one in candidates if one["dataset"] == dataset]
        assert len(mine) == min(most, len(available))
        assert [one["rank"] for one in mine] == list(range(1, len(mine) + 1))
        counts = Counter(one["class"] for one in mine)
        sizes = Counter(class_of[one["triple_id"]] for one in available)
        unfinished = [counts[name] for name in sizes if counts[name] < sizes[name]]
        # Nobody has more than one above those that could still give, nor do those differ by more.
        assert not unfinished or max(counts.values()) - min(unfinished) <= 1
        for name, size in sizes.items():
            members = sorted((one for one in available if class_of[one["triple_id"]] == name), key=likelihood)
            taken = [by_id[one["triple_id"]] for one in mine if one["class"] == name]
            assert taken == members[: len(taken)]
            assert len(taken) <= size
    shuffled = shuffle.sample(rows, len(rows))
    assert choose(to_table("triples", shuffled), VIDEO_ROWS, settings).to_pylist() == chosen


def test_classes_are_labels_where_a_whole_data_set_has_them() -> None:
    rows = [row(number, video_id=f"v{number % 3}", action="it moves") for number in range(6)]
    rows += [row(6 + number, video_id=f"v{number}", dataset="b", action=f"The man {number}!") for number in (3, 4)]
    chosen = choose(to_table("triples", rows), VIDEO_ROWS, SelectionSettings()).to_pylist()
    classes = defaultdict(set)
    for one in chosen:
        classes[one["dataset"]].add(one["class"])
    assert classes == {"a": {"jump", "run"}, "b": {"man 3", "man 4"}}
    with pytest.raises(Refused, match=r"b have no class_label.*phrase"):
        choose(to_table("triples", rows), VIDEO_ROWS, SelectionSettings(classes="label"))


def test_filters() -> None:
    rows = [
        row(0, video_id="v0", motion=0.5, confidence=-0.1),
        row(1, video_id="v0", motion=0.5, labeler_id="two"),
        row(2, video_id="v1", motion=0.5, dataset="b"),
        row(3, video_id="v1", motion=0.1),
        row(4, video_id="v3", motion=0.5, split="test"),
    ]
    table = to_table("triples", [{**one, "action": "it moves"} for one in rows])

    def ids(**settings: Any) -> list[str]:
        return choose(table, VIDEO_ROWS, SelectionSettings(**settings))["triple_id"].to_pylist()  # type: ignore[no-any-return]

    assert ids() == ["0000", "0003", "0001", "0002"]
    assert ids(labelers=["two"]) == ["0001"]
    assert ids(datasets=["b"], splits=["train", "test"]) == ["0002"]
    assert ids(splits=[]) == ["0000", "0003", "0004", "0001", "0002"]
    assert ids(where="motion > 0.2 -- a comment") == ["0000", "0001", "0002"]
    assert ids(where="class_label = 'run' OR false") == ["0003", "0002"]
    for wrong in ("color = 'red'", "motion >", "obs IS NOT NULL; DROP TABLE triples", "1 IN (FROM '/etc/passwd')"):
        with pytest.raises(Refused, match="condition"):
            ids(where=wrong)


def test_a_lake_at_a_pinned_version(place: str) -> None:
    lake = Lake(place)
    fill(lake)
    everything = SelectionSettings(splits=(), per_dataset=None)
    before = select_triples(lake, everything)
    assert before.num_rows == 2 * 4 * 5
    pinned = {name: lake.table(name).version() for name in ("triples", "videos")}
    Writer(lake).append("triples", [{**row(9), "video_id": "new", "action": "it moves"}])
    assert select_triples(lake, everything, pinned).equals(before)
    assert select_triples(lake, everything).num_rows == before.num_rows + 1
    few = select_triples(lake, SelectionSettings(splits=(), labelers=LABELERS[:1], per_dataset=3))
    assert few["action"].to_pylist() == [f"action {pts} of Zoë" for pts in (0, 1, 2)] * 2
    with pytest.raises(Refused, match="version 999"):
        select_triples(lake, everything, {"triples": 999})
    with pytest.raises(Refused, match="obs"):
        select_triples(lake, SelectionSettings(where="obs IS NOT NULL"))


def test_files_of_a_vacuumed_version_are_missed(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    fill(lake)
    for file in (tmp_path / "lake" / "triples").rglob("*.parquet"):
        if "checkpoint" not in file.name:
            file.unlink()
    with pytest.raises(Refused, match="vacuumed"):
        select_triples(lake, SelectionSettings(splits=()))


def test_an_empty_table_gives_an_empty_selection() -> None:
    empty = pa.Table.from_pylist([], schema=TABLES["triples"])
    chosen = choose(empty, VIDEO_ROWS, SelectionSettings())
    assert chosen.num_rows == 0
    assert chosen.schema.names == ["triple_id", "video_id", "dataset", "action", "class", "rank"]
