"""Engines that know nothing of us open the tables: row counts, predicates and image bytes are those that were written.

Every engine runs in a process of its own: some of them cannot live beside each other.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest

from lake.forget import forget
from lake.maintenance import maintain
from lake.schemas import TABLES
from lake.tables import Lake
from tests.conftest import Bucket
from tests.lake.filled import LABELERS, Filled, fill

# Each defines `rows(condition) -> list of (triple_id, obs, next_obs)` over the table at `uri`; None is all of them.
_PRELUDE = """
import os, sys, json, hashlib
uri, *conditions = sys.argv[1:]
s3 = uri.startswith("s3://")
endpoint, key, secret = map(os.environ.get, ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
options = {"aws_endpoint_url": endpoint, "aws_allow_http": "true"} if s3 else {}
def native(rows):
    return [(row["triple_id"], row["obs"], row["next_obs"]) for row in rows]
SQL = "SELECT triple_id, obs, next_obs FROM triples WHERE "
"""
READERS = {
    "duckdb": """
import duckdb
from deltalake import DeltaTable
triples = DeltaTable(uri, storage_options=options).to_pyarrow_dataset()
def rows(condition):
    return duckdb.sql(SQL + condition).fetchall()
""",
    "polars": """
import polars
def rows(condition):
    table = polars.scan_delta(uri, storage_options=options or None)
    return native(polars.SQLContext(triples=table).execute(SQL + condition).collect().to_dicts())
""",
    "datafusion": """
import datafusion
from deltalake import DeltaTable
def rows(condition):
    context = datafusion.SessionContext()
    context.register_dataset("triples", DeltaTable(uri, storage_options=options).to_pyarrow_dataset())
    return native(context.sql(SQL + condition).to_arrow_table().to_pylist())
""",
    "deltalake": """
from deltalake import DeltaTable, QueryBuilder
import pyarrow
def rows(condition):
    builder = QueryBuilder().register("triples", DeltaTable(uri, storage_options=options))
    return native(pyarrow.table(builder.execute(SQL + condition)).to_pylist())
""",
    "chdb": """
import chdb, io, pyarrow
def rows(condition):
    if s3:
        source = f"deltaLake('{endpoint}/{uri.removeprefix('s3://')}/', '{key}', '{secret}')"
    else:
        source = f"deltaLakeLocal('{uri}')"
    query = SQL.replace("FROM triples", f"FROM {source}") + condition
    answer = chdb.query(query + " SETTINGS output_format_arrow_string_as_string = 0", "ArrowStream")
    with pyarrow.ipc.open_stream(io.BytesIO(answer.bytes())) as stream:
        found = native(stream.read_all().to_pylist())
    return [(triple.decode(), obs, next_obs) for triple, obs, next_obs in found]
""",
    "daft": """
import daft, deltalake, pyarrow
from daft.io import IOConfig, S3Config
# Daft 0.6, the last one that takes our pyarrow, expects what deltalake 1.0 returned here.
actions = deltalake.DeltaTable.get_add_actions
deltalake.DeltaTable.get_add_actions = lambda table: pyarrow.table(actions(table)).combine_chunks().to_batches()[0]
config = S3Config(
    endpoint_url=endpoint, key_id=key, access_key=secret, region_name="us-east-1", use_ssl=False,
    force_virtual_addressing=False,
)
def rows(condition):
    table = daft.read_deltalake(uri, io_config=IOConfig(s3=config) if s3 else None)
    return native(daft.sql(SQL + condition, triples=table).to_pylist())
""",
}
_REPORT = """
def digest(images):
    return hashlib.sha256(b"".join(images)).hexdigest()
found = [{triple: digest(images) for triple, *images in rows(condition)} for condition in conditions]
print(json.dumps(found), flush=True)
# Some engines do not end cleanly.
os._exit(0)
"""


def read(reader: str, uri: str, *conditions: str) -> list[dict[str, str]]:
    """Hash of both images by triple id, as another engine finds them, for each condition."""
    command = [sys.executable, "-c", _PRELUDE + READERS[reader] + _REPORT, uri, *conditions]
    # ClickHouse opens local files only below the folder that it runs in.
    folder = uri if Path(uri).is_dir() else None
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    return maintained(Lake(str(tmp_path_factory.mktemp("lake"))))


def maintained(lake: Lake) -> Filled:
    """A lake whose tables were appended to, compacted and deleted from."""
    filled = fill(lake, videos=3)
    maintain(lake)
    forget(lake, filled.videos[2])
    kept = {row["triple_id"] for row in lake.read("triples", ["triple_id"]).to_pylist()}
    return Filled(lake, filled.videos[:2], {key: value for key, value in filled.images.items() if key in kept})


def check(reader: str, filled: Filled) -> None:
    expected = {key: hashlib.sha256(b"".join(images)).hexdigest() for key, images in filled.images.items()}
    uri = filled.lake.table_uri("triples")
    wanted = f"labeler_id = '{LABELERS[0]}' AND video_id = '{filled.videos[0]}' AND confidence > -0.15"
    rows = filled.lake.dataset("triples").to_table(columns=["triple_id", "labeler_id", "video_id", "confidence"])
    some = {
        row["triple_id"]
        for row in rows.to_pylist()
        if (row["labeler_id"], row["video_id"]) == (LABELERS[0], filled.videos[0]) and row["confidence"] > -0.15
    }
    assert len(some) == 2
    assert read(reader, uri, "next_pts > obs_pts", wanted) == [expected, {key: expected[key] for key in some}]


# What the page takes as given, and how it looks there.
_GIVEN = """
import os, sys, json, hashlib
LAKE = sys.argv[1]
is_s3 = LAKE.startswith("s3://")
names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
ENDPOINT, KEY, SECRET = (os.environ[name] if is_s3 else None for name in names)
OPTIONS = {"aws_endpoint_url": ENDPOINT, "aws_allow_http": "true"} if is_s3 else None
"""
_CLICKHOUSE = """
import chdb, io, pyarrow
query = QUERY.replace("http://host:9000/bucket/lake", f"{ENDPOINT}/{LAKE.removeprefix('s3://')}")
query = query.replace("'KEY', 'SECRET'", f"'{KEY}', '{SECRET}'").replace("/path/of/lake", LAKE)
answer = chdb.query(query, "ArrowStream")
with pyarrow.ipc.open_stream(io.BytesIO(answer.bytes())) as stream:
    rows = stream.read_all().to_pylist()
"""
_SHOW = """
rows = [tuple(row.values()) if isinstance(row, dict) else row for row in rows]
text = lambda triple: triple.decode() if isinstance(triple, bytes) else triple
digest = lambda images: hashlib.sha256(b"".join(images)).hexdigest()
print(json.dumps({text(triple): digest(images) for triple, *images in rows}), flush=True)
os._exit(0)
"""
_PAGE = Path(__file__).parents[2] / "docs/how-to/readers.md"


def documented(is_s3: bool) -> dict[str, str]:
    """By engine, a program around the snippet of the page that ends with the rows in `rows`."""
    programs = {}
    checked, _, _ = _PAGE.read_text().partition("\n## Not checked")
    for section in checked.split("\n## ")[1:]:
        blocks = re.findall(r"```(python|sql)\n(.*?)```", section, re.DOTALL)
        kind, text = blocks[0 if is_s3 else -1]
        programs[section.splitlines()[0]] = text if kind == "python" else f"QUERY = {text!r}\n{_CLICKHOUSE}"
    return programs


def check_documented(filled: Filled) -> None:
    wanted = filled.lake.read("triples", ["triple_id"], pc.field("confidence") > -0.15)["triple_id"].to_pylist()
    expected = {key: hashlib.sha256(b"".join(filled.images[key])).hexdigest() for key in wanted}
    assert 0 < len(expected) < len(filled.images)
    uri = filled.lake.uri
    programs = documented(uri.startswith("s3://"))
    assert set(programs) == {"DuckDB", "Polars", "DataFusion", "Daft", "ClickHouse"}
    for engine, program in programs.items():
        command = [sys.executable, "-c", _GIVEN + program + _SHOW, uri]
        folder = uri if Path(uri).is_dir() else None
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=folder, check=False)
        assert done.returncode == 0, f"{engine}: {done.stderr[-2000:]}"
        assert json.loads(done.stdout.splitlines()[-1]) == expected, engine


def test_the_page_works_on_a_folder(local: Filled) -> None:
    check_documented(local)


@pytest.mark.slow
def test_the_page_works_on_s3(bucket: Bucket) -> None:
    check_documented(maintained(Lake(f"{bucket.uri}/lake")))


@pytest.mark.parametrize("reader", READERS)
def test_other_engines_read_a_folder(reader: str, local: Filled) -> None:
    check(reader, local)


@pytest.mark.slow
def test_other_engines_read_s3(bucket: Bucket) -> None:
    filled = maintained(Lake(f"{bucket.uri}/lake"))
    for reader in READERS:
        check(reader, filled)


def test_the_protocol_is_that_of_every_engine(local: Filled) -> None:
    for name in TABLES:
        protocol = local.lake.table(name).protocol()
        assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)
        assert not protocol.reader_features
