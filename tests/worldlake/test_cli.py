"""Bad input is refused in one clear line with exit code 2; `--help` and `--config` teach and work."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from cyclopts import App

from lake.catalog import ingest
from lake.errors import Fenced, Superseded
from lake.tables import Lake
from sample_world.clips import write_folder
from tests.conftest import Bucket
from tests.worldlake.command import PROGRAM, worldlake
from worldlake import cli


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cli")
    write_folder(folder / "videos", [60_000], frames=50)
    ingest(Lake(str(folder / "lake")), [str(folder / "videos")])
    return str(folder / "lake")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lable"], "lable"),
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
        (["label", "--lake", "LAKE", "--where", "color = 'red'"], "color"),
        (["label", "--lake", "LAKE", "--where", "dataset ="], "condition"),
        (["label", "--lake", "LAKE", "--where", "dataset::INT = 1"], "condition"),
        (["label", "/no/such/videos", "--lake", "NEW"], "/no/such/videos"),
        (["label", "--lake", "NEW"], "worldlake ingest"),
        (["label", "--lake", "gs://bucket/lake"], "s3://"),
        (["label", "--lake", "LAKE", "--config", "/no/such.yaml"], "--config"),
        (["label", "--lake", "LAKE", "--config", "BAD_CONFIG"], "color"),
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
        (["sql", "SELECT color FROM triples", "--lake", "LAKE"], "color"),
        (["sql", "DROP TABLE triples", "--lake", "LAKE"], "read only"),
        (["sql", "SELECT * FROM read_csv('/etc/passwd')", "--lake", "LAKE"], "only the tables of the lake"),
        (["sql", "SELECT 1 AS a, 2 AS a", "--lake", "LAKE", "--format", "json"], "names with AS"),
        (["sql", "SELECT 1", "--lake", "LAKE", "--format", "xml"], "arrow"),
        (["forget", "nobody", "--lake", "LAKE"], "nobody"),
        (["maintain", "--lake", "LAKE", "--keep-hours", "1"], "24"),
        (["maintain", "--lake", "LAKE", "--keep-hours", "99999999999999"], "--keep-hours"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--clips", "10001"], "--clips"),
        (["ingest", "VIDEOS", "--lake", "NEW", "--dataset", ""], "--dataset"),
        (["label", "--lake", "BAD_CONFIG/lake"], "is a file"),
        (["label", "--lake", "LAKE", "--where", " "], "--where"),
        (["label", "--lake", "LAKE", "--where", "dataset = 'nobody'"], "matches no video; the lake has 1 video"),
        (["label", "--lake", "LAKE", "--policy", ""], "--policy"),
        (["label", "--lake", "LAKE", "--policy", "EMPTY_POLICY"], "is empty"),
        (["label", "--lake", "LAKE", "--revision", "main"], "leave the revision out"),
        (["label", "--lake", "LAKE", "--batch-size", "0"], "--batch-size"),
        (
            ["label", "--lake", "LAKE", "--method", "uniform", "--min-interval", "5"],
            "--min-interval has no place",
        ),
        (
            ["label", "--lake", "LAKE", "--method", "uniform", "--frames-per-clip", "5"],
            "--frames-per-clip has no place here: use --method, --uniform-stride",
        ),
        (["label", "--lake", "LAKE", "--method", "foo"], "--method: use 'motion', 'uniform' (given: 'foo')"),
        (["evaluate", "world", "--lake", "LAKE", "--world-batch-size", "0"], "--world-batch-size: "),
        (["evaluate", "world", "--lake", "LAKE", "--batch-size", "0"], ": --batch-size: "),
        (["ingest", "--lake", "LAKE"], "SOURCES is missing (see"),
        (["train", "--lake", "LAKE"], "say what to train: `worldlake train dynamics` or `worldlake train world` (see"),
        (["evaluate", "--limit", "3"], "say what to evaluate: `worldlake evaluate dynamics` or"),
        (["keys", "--lake", "LAKE"], "say what to do: `worldlake keys create`, `worldlake keys revoke` or"),
        (["--lake", "LAKE"], "say what to do before any option: `worldlake COMMAND [OPTIONS]`"),
        (["label", "--lake", "LAKE", "--uniform-stride", "5"], "--uniform-stride has no place"),
        (["label", "--lake", "LAKE", "--decode-on", "cpu"], "KEY=VALUE"),
        (["label", "--lake", "LAKE", "--label-on", "group=gpu"], "RAY_ADDRESS"),
        (["status", "--config", "TWICE_CONFIG"], "lake is given twice"),
        (["label", "--lake", "LAKE", "--config", "SPELLED_TWICE_CONFIG"], "image-size is given twice"),
        (["status", "--config", "LIST_CONFIG"], "lake"),
        (["label", "--lake", "LAKE", "--config", "WORD_CONFIG"], "limit"),
        (["demo", "--videos", "/no/such/videos"], "/no/such/videos"),
        (["demo", "--folder", "/proc/demo"], "/proc/demo"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], says: str, lake: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad-policy.yaml").write_text("default: {confidense: {min: 0}}")
    (tmp_path / "bad-config.yaml").write_text("color: red")
    files = {
        "EMPTY_POLICY": "",
        "TWICE_CONFIG": "lake: a\nlake: b\n",
        "SPELLED_TWICE_CONFIG": "image-size: 64\nimage_size: 128\n",
        "LIST_CONFIG": "lake: [a, b]\n",
        "WORD_CONFIG": "limit: many\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    names = {
        "LAKE": lake,
        "NEW": str(tmp_path / "new"),
        "VIDEOS": str(Path(lake).parent / "videos"),
        "EMPTY": str(tmp_path / "empty"),
        "BAD_POLICY": str(tmp_path / "bad-policy.yaml"),
        "BAD_CONFIG": str(tmp_path / "bad-config.yaml"),
        "BAD_CONFIG/lake": str(tmp_path / "bad-config.yaml" / "lake"),
        **{name: str(tmp_path / name) for name in files},
    }
    code, output = worldlake(*(names.get(argument, argument) for argument in arguments))
    assert code == 2, output
    assert len(output.strip().splitlines()) == 1, output
    assert says in output


@pytest.mark.parametrize("command", [(), ("train",), ("evaluate",), ("keys",)])
def test_a_group_without_a_command_shows_its_help(command: tuple[str, ...]) -> None:
    assert worldlake(*command) == worldlake(*command, "--help")
    assert worldlake(*command)[0] == 0


def test_a_command_without_what_it_needs_shows_its_help() -> None:
    code, output = worldlake("label")
    assert code == 2
    assert "Usage: worldlake label" in output
    assert output.splitlines()[-1] == "worldlake: --lake is missing (see `worldlake label --help`)"


def commands(app: App) -> Iterator[App]:
    """Every command, the groups left out."""
    for name in app:
        if not name.startswith("-"):
            found = app[name]
            yield from (commands(found) if any(not one.startswith("-") for one in found) else [found])


def test_every_option_has_a_sentence_and_no_python() -> None:
    for command in commands(cli.app):
        for argument in command.assemble_argument_collection():
            if argument.parameter.show is not False and not argument.children:
                said = argument.parameter.help or ""
                assert said.endswith("."), f"{command.name} {argument.name}: {said}"
                assert "None" not in said, argument.name


def test_config_gives_defaults_and_the_command_line_wins(lake: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"lake: {lake}\nformat: json\n")
    assert json.loads(worldlake("sql", "SELECT count(*) AS n FROM videos", "--config", str(config))[1]) == [{"n": 1}]
    code, output = worldlake("sql", "SELECT count(*) AS n FROM videos", "--config", str(config), "--format", "csv")
    assert (code, output) == (0, "n\n1\n")


def test_config_gives_one_text_or_a_list_where_an_option_is_repeated(lake: str, tmp_path: Path) -> None:
    videos = Path(lake).parent / "videos"
    for sources in (str(videos), [str(videos)]):
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps({"lake": str(tmp_path / "new"), "sources": sources, "json": True, "split": None}))
        code, output = worldlake("ingest", "--config", str(config))
        assert (code, json.loads(output)["listed"]) == (0, 1), output


def test_a_query_is_read_from_standard_input(lake: str) -> None:
    query = "-- how many\nSELECT count(*) AS n FROM videos\n"
    command = [PROGRAM, "sql", "-", "--lake", lake, "--format", "csv"]
    done = subprocess.run(command, input=query, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "n\n1\n"), done.stderr


def test_a_reader_that_has_seen_enough_ends_a_query_quietly(lake: str) -> None:
    command = [PROGRAM, "sql", "SELECT * FROM range(1000000)", "--lake", lake, "--format", "csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "range\n"
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, "")


def test_a_panic_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(cli, "app", panic)
    monkeypatch.setattr(cli, "explain", lambda words: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err.strip().splitlines()
    assert (ended.value.code, len(said), "unwrap" in said[0]) == (1, 1, True)


@pytest.mark.parametrize("error", [Fenced, Superseded])
def test_a_command_that_another_one_ended_is_worth_running_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    def ended_by_another(*_: object, **__: object) -> None:
        raise error("videos were forgotten meanwhile:\nrun the command again")

    monkeypatch.setattr(cli, "app", ended_by_another)
    monkeypatch.setattr(cli, "explain", lambda words: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert (ended.value.code, said) == (1, "worldlake: videos were forgotten meanwhile: run the command again\n")


def test_version() -> None:
    assert worldlake("--version") == (0, f"worldlake {version('worldlake')}\n")


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
    code, output = refused("status", "--lake", f"{bucket.uri}/lake", "--endpoint-url", "nonsense")
    assert code == 2
    assert "--endpoint-url" in output
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    code, output = refused("label", "--lake", f"{bucket.uri}/lake")
    assert code == 1
    assert "does not answer" in output
    assert "--endpoint-url" in output
