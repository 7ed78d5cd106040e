"""SQL over a filled lake: what can be asked, what is read, and what is refused."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lake import sql
from lake.cached_tables import CachedLake
from lake.errors import Refused
from lake.runs import Run
from lake.tables import Lake
from lake.writer import Writer
from tests.lake import statements
from tests.lake.filled import LABELERS, Filled, fill


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    return fill(Lake(str(tmp_path_factory.mktemp("lake"))))


def ask(lake: Lake, text: str) -> list[dict[str, Any]]:
    with sql.query(lake, text) as result:
        rows: list[dict[str, Any]] = result.read_all().to_pylist()
    return rows


def printed(lake: Lake, text: str, output: str) -> bytes:
    out = io.BytesIO()
    with sql.query(lake, text) as result:
        sql.write_result(result, output, out)
    return out.getvalue()


def test_every_table_and_every_labeler_has_a_view(filled: Filled) -> None:
    counts = {name: ask(filled.lake, f"SELECT count(*) AS n FROM {name}")[0]["n"] for name in sql._OPENING_ORDER}
    assert counts == {
        "videos": 4, "triples": 40, "rejections": 40, "progress": 8, "failures": 0, "reviews": 0, "tokens": 0,
        "runs": 4,
    }  # fmt: skip
    for labeler in LABELERS:
        [row] = ask(filled.lake, f"SELECT count(*) AS n, min(labeler_id) AS id FROM triples_{labeler[:8]}")
        assert row == {"n": 20, "id": labeler}
    assert ask(filled.lake, "SELECT DISTINCT labeler_id FROM current") == [{"labeler_id": LABELERS[1]}]
    joined = "SELECT dataset, count(*) AS n FROM videos JOIN current USING (video_id, dataset) GROUP BY ALL ORDER BY 1"
    assert ask(filled.lake, joined) == [{"dataset": "one", "n": 10}, {"dataset": "two", "n": 10}]


def test_current_is_empty_before_a_labeler_finishes(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.create()
    assert ask(lake, "FROM current") == []
    with Run(lake, "run", "label", {}, labeler_id=LABELERS[0]):
        assert ask(lake, "FROM current") == []
        assert ask(lake, f"FROM triples_{LABELERS[0][:8]}") == []


def test_what_people_labeled_has_a_view_and_is_not_current(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.create()
    for labeler in (LABELERS[0], "human:my-data", "human:mine"):
        with Run(lake, labeler[-5:], "ingest" if labeler.startswith("human:") else "label", {}, labeler_id=labeler):
            Writer(lake).append("triples", [{"triple_id": labeler, "labeler_id": labeler}])
    for view, labeler in (("human_my_data", "human:my-data"), ("human_mine", "human:mine")):
        assert ask(lake, f"SELECT triple_id FROM triples_{view}") == [{"triple_id": labeler}]
    assert ask(lake, "SELECT triple_id FROM current") == [{"triple_id": LABELERS[0]}]


@pytest.fixture
def blotted(tmp_path: Path) -> Filled:
    """A lake whose image columns are overwritten on disk, and one whole file of `triples` of the first video."""
    filled = fill(Lake(str(tmp_path)))
    for path in (tmp_path / "triples").rglob("*.parquet"):
        metadata = pq.ParquetFile(path).metadata
        content = bytearray(path.read_bytes())
        spans = []
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(0).column(column)
            if chunk.path_in_schema in ("obs", "next_obs"):
                spans.append((chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size))
        for start, end in spans:
            content[start:end] = bytes(end - start)
        if filled.videos[0] in pq.read_table(path, columns=["video_id"])["video_id"].to_pylist():
            content[:] = bytes(len(content))
        path.write_bytes(content)
    return filled


def test_only_the_columns_and_files_that_a_query_needs_are_read(blotted: Filled) -> None:
    there = f"video_id = '{blotted.videos[1]}'"
    assert ask(blotted.lake, f"SELECT count(*) AS n, avg(confidence) AS c FROM triples WHERE {there}")[0]["n"] == 10
    assert len(ask(blotted.lake, f"SELECT * EXCLUDE (obs, next_obs) FROM triples WHERE {there}")) == 10
    for unread in (f"SELECT obs FROM triples WHERE {there}", "SELECT action FROM triples"):
        with pytest.raises(Exception, match=r"."):
            ask(blotted.lake, unread)


def test_a_query_sees_one_version(filled: Filled) -> None:
    with sql.query(filled.lake, "SELECT count(*) AS n FROM videos") as result:
        Writer(filled.lake).append("videos", [{"video_id": "late"}])
        assert result.read_all().to_pylist() == [{"n": 4}]
    table = filled.lake.table("videos")
    table.delete("video_id = 'late'")


def test_outputs(filled: Filled) -> None:
    first = "SELECT action, confidence, obs, labeled_at FROM current ORDER BY obs_pts, video_id LIMIT 2"
    key = ask(filled.lake, "SELECT triple_id FROM current ORDER BY obs_pts, video_id LIMIT 1")[0]["triple_id"]
    obs = filled.images[key][0]
    table = printed(filled.lake, first, "table").decode().splitlines()
    assert table[0].split() == ["action", "confidence", "obs", "labeled_at"]
    assert "action 0 of Zoë" in table[2]
    assert f"<jpeg {round(len(obs) / 1000)} kB>" in table[2]
    document = json.loads(printed(filled.lake, first, "json"))
    assert [row["action"] for row in document] == ["action 0 of Zoë"] * 2
    lines = printed(filled.lake, first, "csv").decode().splitlines()
    assert lines[1].split(",")[2] == document[0]["obs"]
    with pa.ipc.open_stream(printed(filled.lake, first, "arrow")) as stream:
        assert stream.read_all()["obs"][0].as_py() == obs
    nothing = "SELECT obs, 'NaN'::DOUBLE AS x FROM current WHERE false"
    assert json.loads(printed(filled.lake, nothing, "json")) == []
    assert json.loads(printed(filled.lake, "SELECT 'NaN'::DOUBLE AS x, [1.5] AS y, {'a': 1} AS z", "json")) == [
        {"x": None, "y": [1.5], "z": {"a": 1}}
    ]
    many = printed(filled.lake, "SELECT * FROM range(1000)", "table").decode().splitlines()
    assert len(many) == 103
    assert "--format" in many[-1]


@pytest.mark.parametrize(
    "text",
    [
        "SELEC 1",
        "SELECT nothing FROM triples",
        "SELECT * FROM nowhere",
        "SELECT 1; SELECT 2",
        "",
        "DROP VIEW current",
        "CREATE TABLE x AS SELECT 1",
        "INSERT INTO videos VALUES (1)",
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "ATTACH '/tmp/x.db'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT json_serialize_plan('SELECT * FROM duckdb_secrets()')",
        "SELECT WRITE_LOG('x')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/*')",
        "SELECT 'x'::INTEGER",
        "SELECT error(action) FROM triples",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '/tmp/x.csv'",
    ],
)
def test_anything_else_is_refused_in_one_line(filled: Filled, text: str) -> None:
    with pytest.raises(Refused) as caught:
        ask(filled.lake, text)
    assert "\n" not in str(caught.value)


def test_no_query_can_loosen_the_settings_of_its_connection(filled: Filled) -> None:
    """Should a statement that sets something ever get through, it finds the configuration locked."""
    names = ("lock_configuration", "enable_external_access", "python_enable_replacements")
    shown = ", ".join(f"current_setting('{name}') AS {name}" for name in names)
    assert ask(filled.lake, f"SELECT {shown}") == [dict(zip(names, (True, False, False), strict=True))]


def test_only_an_unknown_table_names_the_tables(filled: Filled) -> None:
    with pytest.raises(Refused, match=r"nowhere.*triples.*current.*triples_aaaaaaaa"):
        ask(filled.lake, "SELECT * FROM nowhere")
    for text in ("SELECT nothing FROM triples", "SELEC 1", "SELECT 'x'::INTEGER", "SELECT nothing()"):
        with pytest.raises(Refused) as caught:
            ask(filled.lake, text)
        assert "triples_aaaaaaaa" not in str(caught.value)
    with pytest.raises(Refused, match="only the tables of the lake can be read"):
        ask(filled.lake, "SELECT * FROM read_csv('/etc/passwd')")


@pytest.mark.parametrize("output", ["csv", "json", "arrow"])
def test_an_error_half_way_is_refused_too(filled: Filled, output: str) -> None:
    with pytest.raises(Refused, match=r"^Conversion Error: [^\n]*x[^\n]*$"):
        printed(filled.lake, "SELECT (CASE range WHEN 250000 THEN 'x' ELSE '1' END)::INT FROM range(300000)", output)


def test_numbers_are_what_they_are(filled: Filled) -> None:
    some = f"{2**60 + 1}::HUGEINT AS h, 1.50::DECIMAL(9, 2) AS d, {'1' * 25}.5 AS l"
    text = f"SELECT sum(n) AS s, {some} FROM (VALUES (2)) t(n)"
    row = {"s": 2, "h": 2**60 + 1, "d": 1.5, "l": "1" * 25 + ".5"}
    assert printed(filled.lake, text, "json").decode() == "[\n" + json.dumps(row) + "\n]\n"
    assert printed(filled.lake, text, "csv").decode().splitlines()[1] == f"2,{2**60 + 1},1.5,{'1' * 25}.5"


def test_no_column_gets_lost(filled: Filled) -> None:
    assert printed(filled.lake, "SELECT 1 AS a, 2 AS a", "csv") == b"a,a\n1,2\n"
    with pytest.raises(Refused, match="a other names with AS"):
        printed(filled.lake, "SELECT 1 AS a, 2 AS a, 3 AS b", "json")


def test_variables_of_the_program_are_no_tables(filled: Filled) -> None:
    secret = pa.table({"a": [1]})
    assert duckdb.sql("SELECT * FROM secret").fetchall() == [(1,)]
    with pytest.raises(Refused, match="secret"):
        ask(filled.lake, "SELECT * FROM secret")
    assert secret.num_rows == 1


@pytest.mark.slow
def test_no_statement_of_any_type_writes_or_reaches_a_file(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "stolen").write_text("secret")
    (tmp_path / ":memory:").write_text("secret")
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    versions = [filled.lake.table(name).version() for name in sql._OPENING_ORDER]
    answered = []
    lake = CachedLake(filled.lake)
    for text in statements.refused():
        try:
            ask(lake, text)
        except Refused:
            continue
        answered.append(text)
    assert answered == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [filled.lake.table(name).version() for name in sql._OPENING_ORDER] == versions


@pytest.mark.parametrize("text", statements.READING)
def test_whatever_only_reads_is_answered(filled: Filled, text: str) -> None:
    assert ask(filled.lake, text)


@pytest.mark.slow
def test_files_stay_out_of_reach_even_of_a_statement_that_is_let_through(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "_refuse_other_statements", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    for text in (*statements.BY_TYPE["COPY"], *statements.WITHIN_A_SELECT, "SELECT * FROM range(9) ORDER BY 1"):
        for prefix in ("", "EXPLAIN ANALYZE "):
            with contextlib.suppress(Refused):
                ask(filled.lake, prefix + text)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("MAP {'a': 1, 'b': NULL}", {"a": 1, "b": None}),
        ("MAP {1: [DATE '2026-01-02']}", {"1": ["2026-01-02"]}),
        ("MAP {DATE '2026-01-02': 'x'}", {"2026-01-02": "x"}),
        ("MAP {}::MAP(VARCHAR, INT)", {}),
        ("INTERVAL '1 month 2 days 3.5 seconds'", "P1M2DT3.5S"),
        ("INTERVAL '-1 year 3 hours'", "P-12MT10800S"),
        ("INTERVAL '2 days'", "P2D"),
        ("INTERVAL '0 days'", "PT0S"),
        ("[{'a': INTERVAL '1 microsecond'}]", [{"a": "PT0.000001S"}]),
        ("TIMESTAMP_NS '2020-01-01 00:00:00.123456789'", "2020-01-01T00:00:00.123456789"),
        ("340282366920938463463374607431768211455::UHUGEINT::VARCHAR", "340282366920938463463374607431768211455"),
        ("{'BIT': 'UHUGEINT'::ENUM('UHUGEINT')}", {"BIT": "UHUGEINT"}),
    ],
)
def test_a_value_of_any_type_is_json_and_no_text_of_python(filled: Filled, value: str, expected: Any) -> None:
    assert json.loads(printed(filled.lake, f"SELECT {value} AS x", "json")) == [{"x": expected}]
    (row,) = list(csv.reader(io.StringIO(printed(filled.lake, f"SELECT {value} AS x", "csv").decode())))[1:]
    assert row == [expected if isinstance(expected, str) else json.dumps(expected)]
    assert b"MonthDayNano" not in printed(filled.lake, f"SELECT {value} AS x", "table")


@pytest.mark.parametrize("output", ["csv", "json", "table"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("'infinity'::TIMESTAMP", "infinite"),
        ("'-infinity'::DATE", "infinite"),
        ("[TIMESTAMPTZ '20000-01-01']", "years 1 to 9999"),
        ("DATE '0044-03-15 (BC)'", "years 1 to 9999"),
        ("5::UHUGEINT", "column x has the type UHUGEINT"),
        ("[{'a': 5::UHUGEINT}]", "column x has the type UHUGEINT"),
        ("'101'::BIT", "column x has the type BIT"),
        ("TIMETZ '12:00:00+02'", "column x has the type TIME WITH TIME ZONE"),
        ("MAP {[1]: 2}", "keys of a MAP"),
    ],
)
def test_a_value_that_would_come_out_wrong_is_refused(filled: Filled, value: str, message: str, output: str) -> None:
    with pytest.raises(Refused, match=f"{message}[^\n]*: cast [^\n]* to VARCHAR$"):
        printed(filled.lake, f"SELECT {value} AS x", output)
