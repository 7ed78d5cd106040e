"""The commands as functions, as a program or a notebook calls them."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import worldlake
from labeling.run import Summary
from sample_world.clips import write_folder
from worldlake import (
    Lake,
    ModelSettings,
    Refused,
    RunSettings,
    SamplingSettings,
    WorldTraining,
    evaluate,
    ingest,
    label,
    query,
    train,
)
from worldlake.cli import run as command

HEAVY = ("torch", "ray", "transformers", "cyclopts", "cv2", "fastapi")
PROGRAM = """
import sys
{statement}
print(*sorted(name for name in {heavy} if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import worldlake; dir(worldlake)", ""),
        ("from worldlake import Lake, Refused, ingest, label, query, train, evaluate", ""),
        ("from worldlake import query; query(sys.argv[1], 'SELECT count(*) FROM videos')", ""),
        ("from worldlake import ModelSettings, DynamicsTraining, RunSettings", ""),
    ],
)
def test_an_import_is_light(statement: str, loaded: str, lake: str) -> None:
    program = PROGRAM.format(statement=statement, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program, lake], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == loaded


def test_every_name_is_there_and_documented() -> None:
    assert worldlake.__all__ == sorted(worldlake.__all__)
    for name in worldlake.__all__:
        assert (getattr(worldlake, name).__doc__ or "").strip(), name
    assert issubclass(worldlake.ServiceError, worldlake.WorldlakeError)
    with pytest.raises(AttributeError, match="no attribute 'lable'"):
        worldlake.lable  # noqa: B018


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A lake with two videos that nobody has labeled."""
    folder = tmp_path_factory.mktemp("api")
    write_folder(folder / "videos", [91_000, 91_001], frames=120)
    counts = ingest(str(folder / "lake"), str(folder / "videos")).videos
    assert (counts.listed, counts.new) == (2, 2)
    return str(folder / "lake")


Call = Callable[[str], object]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda lake: ingest(lake, "/no/such/videos"), ["ingest", "/no/such/videos"]),
        (lambda lake: ingest(lake, "/tmp", format="zip"), ["ingest", "/tmp", "--format", "zip"]),
        (lambda lake: ingest(lake, "/tmp", split="half"), ["ingest", "/tmp", "--split", "half"]),
        (lambda lake: label(lake, model="gpt"), ["label", "--model", "gpt"]),
        (lambda lake: label(lake, policy="/no/such.yaml"), ["label", "--policy", "/no/such.yaml"]),
        (lambda lake: label(lake, where="color = 'red'"), ["label", "--where", "color = 'red'"]),
        (lambda lake: label(lake, run=RunSettings(label_on="a=b")), ["label", "--label-on", "a=b"]),
        (lambda lake: query(lake, "DELETE FROM videos"), ["sql", "DELETE FROM videos"]),
        (lambda lake: query(lake, "SELECT color FROM videos"), ["sql", "SELECT color FROM videos"]),
        (lambda lake: train(lake, WorldTraining(steps=1)), ["train", "world", "--steps", "1"]),
        (lambda lake: evaluate(lake, split="half"), ["evaluate", "dynamics", "--split", "half"]),
        (lambda lake: evaluate(lake), ["evaluate", "dynamics"]),
        (lambda lake: evaluate(lake, world="hf:/no/such"), ["evaluate", "world", "--world", "hf:/no/such"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_refused_as_by_the_command(
    call: Call, words: list[str], lake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Refused) as refused:
        call(lake)
    assert command([*words, "--lake", lake]) == 2
    assert capsys.readouterr().err == f"worldlake: {str(refused.value).rstrip('.')}\n"


@pytest.mark.parametrize(
    "call", [label, lambda lake: query(lake, "SELECT 1"), lambda lake: train(lake, WorldTraining(steps=1)), evaluate]
)
def test_a_lake_that_is_not_there_is_refused(call: Call, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="worldlake ingest"):
        call(str(tmp_path / "lake"))


def test_what_cannot_be_read_is_a_warning_with_the_query_that_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    lake = str(tmp_path / "lake")
    for said in ("could not be read; why", "could not be read before"):
        caplog.clear()
        with caplog.at_level("WARNING", "worldlake"):
            ingest(lake, str(tmp_path / "videos"))
        (record,) = caplog.records
        assert said in record.getMessage()
        words = shlex.split(record.getMessage().split("why: worldlake sql ")[1])
        (row,) = query(lake, words[0]).to_pylist()
        assert row["uri"] == str(tmp_path / "videos" / "broken.mp4")


@pytest.mark.parametrize(
    "call",
    [
        lambda lake: query(lake, "SELECT FROM"),
        lambda lake: query(lake, "SELECT * FROM nothing"),
        lambda lake: label(lake, model="hf:a b/c"),
        lambda lake: ingest(lake, "/no/such/videos"),
        lambda lake: train(lake, WorldTraining(steps=1, model="hf:/no/such")),
    ],
)
def test_a_refusal_is_one_traceback(call: Call, lake: str) -> None:
    with pytest.raises(Refused) as refused:
        call(lake)
    text = "".join(traceback.format_exception(refused.value))
    assert text.count("Traceback (most recent call last)") == 1, text


def test_settings_name_the_field_that_is_wrong() -> None:
    with pytest.raises(Refused, match=r"^frames_per_clip: .*given: 1"):
        SamplingSettings.model_validate({"sampler": {"frames_per_clip": 1}})


@dataclass
class Labeled:
    lake: Lake
    labeler_id: str
    progress: list[tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def labeled(lake: str, ray_cluster: str) -> Labeled:
    """The same lake, labeled in another thread than the main one, as servers and notebooks' widgets do."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    progress: list[tuple[int, dict[str, Any]]] = []
    found = []

    def work() -> None:
        found.append(label(lake, progress=lambda done, counts: progress.append((done, dict(counts)))))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(280)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    (summary,) = found
    assert summary.status == "finished"
    return Labeled(Lake(lake), summary.labeler_id, progress)


@pytest.mark.ray
def test_a_lake_is_labeled_and_queried(labeled: Labeled) -> None:
    decided = query(labeled.lake, "SELECT (SELECT count(*) FROM triples) + (SELECT count(*) FROM rejections) AS pairs")
    done, counts = labeled.progress[-1]
    assert (done, counts["videos_pending"]) == (2, 0)
    assert counts["accepted"] + counts["rejected"] == decided["pairs"][0].as_py() > 0
    again = label(labeled.lake, model=ModelSettings(batch_size=8))
    assert (again.status, again.labeler_id) == ("nothing to do", labeled.labeler_id)
    assert again.text().endswith(f"every video that was asked for is labeled already (labeler {labeled.labeler_id})")


@pytest.mark.ray
def test_an_event_of_the_caller_drains(labeled: Labeled) -> None:
    stop = threading.Event()
    stop.set()
    summary = label(labeled.lake, sampling=SamplingSettings(jpeg_quality=80), stop=stop)
    assert (summary.status, summary.counts["videos_finished"]) == ("drained", 0)
    assert summary.text().endswith("; 2 videos pending: run the same command again")


@pytest.mark.parametrize(("model", "accepted", "advice"), [("builtin", 0, 1), ("builtin", 1, 0), ("hf:other", 0, 0)])
def test_builtin_that_accepts_nothing_is_a_warning(
    model: str, accepted: int, advice: int, lake: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts = {"accepted": accepted, "rejected": 25}
    monkeypatch.setattr("labeling.run.label", lambda *_, **__: Summary("r", "l", "p", "finished", counts, 1.0))
    monkeypatch.setattr("labeling.labeler.resolve_labeler", lambda *_: None)
    with caplog.at_level("WARNING", "worldlake"):
        label(lake, model=model)
        label(lake, model=model, advise=False)
    assert caplog.text.count("use --model hf:OWNER/NAME") == advice


@pytest.mark.ray
def test_a_model_is_evaluated(labeled: Labeled, tmp_path: Path) -> None:
    outcome = evaluate(
        labeled.lake, split="all", labelers=[labeled.labeler_id], limit=4, report=tmp_path / "report.html"
    )
    # It named these actions itself.
    assert outcome.figures["dynamics"]["exact_match"].value == 1
    assert (tmp_path / "report.html").stat().st_size > 1000
    outcome = evaluate(labeled.lake, world="builtin", n=2, split="all", labelers=[labeled.labeler_id], limit=2)
    assert outcome.counts["pairs"] == 2


@pytest.mark.slow
@pytest.mark.ray
def test_a_model_is_trained(labeled: Labeled) -> None:
    settings = WorldTraining(
        steps=1,
        batch_size=2,
        micro_batch_size=2,
        sources=({"labelers": [labeled.labeler_id], "splits": []},),  # type: ignore[arg-type]
    )
    lines: list[dict[str, Any]] = []
    summary = train(labeled.lake, settings, progress=lines.append)
    assert (summary.status, summary.step) == ("finished", 1)
    assert lines
    assert train(labeled.lake, settings).status == "nothing to do"


@pytest.mark.parametrize(
    "given",
    [
        {"n": 4},
        {"referee": "builtin"},
        {"oracle": True},
        {"features": ["hf:/a"]},
        {"judge": "http://a/v1"},
        {"judge_model": "x"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_is_for_a_world_model_is_refused_without_one(given: dict[str, Any], lake: str) -> None:
    with pytest.raises(Refused, match=f"^{next(iter(given))}: .*pass world, or omit$"):
        evaluate(lake, **given)
