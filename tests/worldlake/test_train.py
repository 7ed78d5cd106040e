"""`worldlake train` without a training: its help, and what it refuses before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lake.tables import Lake
from tests.training.tiny import add_triples, save_tiny_world
from tests.worldlake.command import worldlake


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    add_triples(lake, 2)
    return lake


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf:{save_tiny_world(tmp_path_factory.mktemp('model'))}"


@pytest.mark.parametrize(
    ("task", "own", "other"), [("world", "--floor", "--prompt"), ("dynamics", "--prompt", "--floor")]
)
def test_help_names_the_settings_of_its_task(task: str, own: str, other: str) -> None:
    code, output = worldlake("train", task, "--help")
    assert code == 0
    assert own in output
    assert other not in output
    assert "--peak-lr" in output
    assert f"Usage: worldlake train {task} --lake" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give exactly one of --epochs and --steps"),
        (
            ["--steps", "5", "--batch-size", "5", "--micro-batch-size", "2"],
            "--batch-size 5 is not a multiple of --micro",
        ),
        (["--steps", "5", "--workers", "two"], "--workers: give a number, or two with a dash such as 2-8"),
        (["--steps", "5", "--workers", "4-2"], "both at least 1"),
        (["--steps", "5", "--source", "{datasets: [nothing]}"], "no triple is in {"),
        (["--steps", "5", "--source", "{data: [one]}"], "--source: data has no place here: use labelers, "),
        (["--steps", "5", "--source", "3"], "--source: write {key: value, ...} (given: ['3'])"),
        (["--steps", "5", "--source", "{"], "is not YAML"),
        (["--steps", "5", "--triples-version", "7"], "triples has no version 7: the newest is 1"),
        (["--steps", "5", "--method", "full", "--lora-rank", "4"], "--lora-rank does nothing with --method full"),
        (["--steps", "5", "--model", "hf:/nowhere"], "no folder '/nowhere'"),
        (["--steps", "5", "--run", "a/b"], "--run 'a/b': use letters"),
        (["--steps", "5", "--prompt", "a"], "Unknown option: --prompt"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(lake: Lake, model: str, options: list[str], message: str) -> None:
    named = [] if "--model" in options else ["--model", model]
    code, output = worldlake("train", "world", "--lake", lake.uri, *named, *options)
    assert code == 2, output
    assert message in output
    assert len(output.strip().splitlines()) == 1


def test_a_file_holds_the_same_options(lake: Lake, model: str, tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(
        f"model: {model}\nsteps: 5\nbatch-size: 5\nmicro-batch-size: 2\nsource: ['{{datasets: [one], factor: 15}}']\n"
    )
    code, output = worldlake("train", "world", "--lake", lake.uri, "--config", str(config))
    assert code == 2
    assert "--batch-size 5 is not a multiple of --micro-batch-size 2" in output
    code, output = worldlake(
        "train", "world", "--lake", lake.uri, "--config", str(config), "--batch-size", "4", "--triples-version", "9"
    )
    assert "no version 9" in output
