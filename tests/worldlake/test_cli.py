"""Bad input is refused in one clear line with exit code 2; `--help` and `--config` teach and work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lake.catalog import ingest
from lake.tables import Lake
from models.sample_world import write_folder
from tests.conftest import Bucket
from tests.worldlake.command import worldlake

COMMANDS = ("demo", "ingest", "label", "status", "sql", "maintain", "forget", "doctor")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cli")
    write_folder(folder / "videos", [60_000], frames=50)
    ingest(Lake(str(folder / "lake")), [str(folder / "videos")])
    return str(folder / "lake")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--help"),
        (["lable"], "lable"),
        (["label"], "--lake"),
        (["label", "--lake"], "--lake"),
        (["label", "--lake", "LAKE", "--limit", "many"], "--limit"),
        (["label", "--lake", "LAKE", "--limit", str(2**63)], "--limit"),
        (["label", "--lake", "LAKE", "--max-hours", "nan"], "--max-hours"),
        (["label", "--lake", "LAKE", "--max-hours", "-1"], "--max-hours"),
        (["label", "--lake", "LAKE", "--commit-every", "inf"], "--commit-every"),
        (["label", "--lake", "LAKE", "--method", "best"], "uniform"),
        (["label", "--lake", "LAKE", "--frames-per-clip", "1"], "frames-per-clip"),
        (["label", "--lake", "LAKE", "--decoder", "vlc"], "decord"),
        (["label", "--lake", "LAKE", "--model", "gpt"], "hf:"),
        (["label", "--lake", "LAKE", "--model", "hf:/no/such/folder"], "/no/such/folder"),
        (["label", "--lake", "LAKE", "--dtype", "int4"], "bfloat16"),
        (["label", "--lake", "LAKE", "--policy", "/no/such.yaml"], "builtin"),
        (["label", "--lake", "LAKE", "--policy", "BAD_POLICY"], "confidense"),
        (["label", "--lake", "LAKE", "--policy", "AGREEMENT_POLICY"], "agreement"),
        (["label", "--lake", "LAKE", "--where", "colour = 'red'"], "colour"),
        (["label", "--lake", "LAKE", "--where", "dataset ="], "condition"),
        (["label", "--lake", "LAKE", "--where", "dataset::INT = 1"], "condition"),
        (["label", "/no/such/videos", "--lake", "NEW"], "/no/such/videos"),
        (["label", "--lake", "NEW"], "worldlake ingest"),
        (["label", "--lake", "gs://bucket/lake"], "s3://"),
        (["label", "--lake", "LAKE", "--config", "/no/such.yaml"], "--config"),
        (["label", "--lake", "LAKE", "--config", "BAD_CONFIG"], "colour"),
        (["ingest", "/no/such/videos", "--lake", "NEW"], "/no/such/videos"),
        (["ingest", "VIDEOS", "--lake", "NEW", "--format", "zip"], "kinetics"),
        (["ingest", "VIDEOS", "--lake", "NEW", "--split", "half"], "validation"),
        (["ingest", "ftp://host/videos", "--lake", "NEW"], "s3://"),
        (["ingest", "EMPTY", "--lake", "NEW"], "no video"),
        (["ingest", "BAD_CONFIG", "--lake", "NEW"], "no video"),
        (["ingest", "VIDEOS", "--lake", "/proc/lake"], "/proc/lake"),
        (["ingest", "VIDEOS", "--lake", "BAD_CONFIG"], "folder to write"),
        (["status", "--lake", "NEW"], "worldlake ingest"),
        (["sql", "SELEC 1", "--lake", "LAKE"], "syntax error"),
        (["sql", "SELECT colour FROM triples", "--lake", "LAKE"], "colour"),
        (["sql", "DROP TABLE triples", "--lake", "LAKE"], "read only"),
        (["sql", "SELECT * FROM read_csv('/etc/passwd')", "--lake", "LAKE"], "disabled"),
        (["sql", "SELECT 1", "--lake", "LAKE", "--format", "xml"], "arrow"),
        (["forget", "nobody", "--lake", "LAKE"], "nobody"),
        (["maintain", "--lake", "LAKE", "--keep-hours", "1"], "24"),
        (["demo", "--videos", "/no/such/videos"], "/no/such/videos"),
        (["demo", "--folder", "/proc/demo"], "/proc/demo"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], says: str, lake: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad-policy.yaml").write_text("default: {confidense: {min: 0}}")
    (tmp_path / "agreement-policy.yaml").write_text("default: {agreement: {min: 0}}")
    (tmp_path / "bad-config.yaml").write_text("colour: red")
    names = {
        "LAKE": lake,
        "NEW": str(tmp_path / "new"),
        "VIDEOS": str(Path(lake).parent / "videos"),
        "EMPTY": str(tmp_path / "empty"),
        "BAD_POLICY": str(tmp_path / "bad-policy.yaml"),
        "AGREEMENT_POLICY": str(tmp_path / "agreement-policy.yaml"),
        "BAD_CONFIG": str(tmp_path / "bad-config.yaml"),
    }
    code, output = worldlake(*(names.get(argument, argument) for argument in arguments))
    assert code == 2, output
    assert len(output.strip().splitlines()) == 1, output
    assert says in output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str) -> None:
    code, output = worldlake(command, "--help")
    assert code == 0
    assert len(output.splitlines()) > 10


def test_config_gives_defaults_and_the_command_line_wins(lake: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"lake: {lake}\nformat: json\n")
    assert json.loads(worldlake("sql", "SELECT count(*) AS n FROM videos", "--config", str(config))[1]) == [{"n": 1}]
    code, output = worldlake("sql", "SELECT count(*) AS n FROM videos", "--config", str(config), "--format", "csv")
    assert (code, output) == (0, "n\n1\n")


def test_reports_as_json(lake: str) -> None:
    status = json.loads(worldlake("status", "--lake", lake, "--json")[1])
    assert status["videos"] == 1
    findings = json.loads(worldlake("doctor", "--lake", lake, "--json")[1])
    assert {finding["what"] for finding in findings} >= {"python", "memory", "disk", "gpu", "ray", "lake"}
    done = json.loads(worldlake("maintain", "--lake", lake, "--json")[1])
    assert done["videos"]["files_after"] == 1


def test_s3_that_cannot_be_used_is_said_in_one_line(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: str) -> tuple[int, str]:
        code, output = worldlake(*arguments)
        assert len(output.strip().splitlines()) == 1, output
        return code, output

    code, output = refused("ingest", "s3://no-such-bucket/videos", "--lake", f"{bucket.uri}/lake")
    assert code == 2
    assert "no-such-bucket" in output
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        code, output = refused("status", "--lake", f"{bucket.uri}/lake")
        assert code == 2
        assert "AWS_SECRET_ACCESS_KEY" in output
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    code, output = refused("label", "--lake", f"{bucket.uri}/lake")
    assert code == 1
    assert "does not answer" in output
