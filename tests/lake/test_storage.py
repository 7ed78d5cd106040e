"""Storage over a real S3 server, in good weather and bad."""

import os
import pickle
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from botocore.exceptions import ClientError
from deltalake import write_deltalake

from lake.errors import Refused, SourceChanged, Unavailable
from lake.schemas import TABLES
from lake.sql import query
from lake.storage import Entry, StorageConfig, local_etag, normalize
from lake.store_errors import is_transient
from lake.tables import Lake
from lake.writer import Writer
from tests.answering import Answering
from tests.conftest import Bucket
from tests.seaweed import OTHER_KEY, OTHER_SECRET

STRANGE_NAMES = ["a b.mp4", "ü/日本 語.mp4", "new\nline.mp4", "50%25?#&+.mp4", "quote'\".mp4"]


def only(storage: StorageConfig, uri: str) -> Entry:
    [[entry]] = list(storage.pages(uri))
    return entry


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/a/./b/../c d/", "/a/c d"),
        ("file:///a/c%20d", "/a/c d"),
        ("s3://bucket/a b/?#/", "s3://bucket/a b/?#"),
        ("s3://bucket", "s3://bucket"),
    ],
)
def test_a_uri_has_one_spelling(given: str, expected: str) -> None:
    assert normalize(given) == expected


@pytest.mark.parametrize("uri", ["gs://b/x", "https://host/x", "s3:///x", "s3:/x", "", "hdfs://x"])
def test_other_schemes_are_refused_with_the_remedy(uri: str) -> None:
    with pytest.raises(Refused, match=r"s3://bucket/folder"):
        normalize(uri)


@pytest.mark.parametrize("name", ["a b", "ü", "a%b", "x*y", "{y}", "a:b", "~t", "a+b&c=d;e,f@g!$()", "quote'\"<>`"])
def test_a_lake_may_have_a_strange_name(place: str, name: str) -> None:
    lake = Lake(f"{place}/{name}")
    lake.create()
    Writer(lake).append("reviews", [{"triple_id": "0"}])
    with query(lake, "SELECT triple_id FROM reviews") as result:
        assert result.read_all()["triple_id"].to_pylist() == ["0"]
    logs = {entry.uri for page in lake.storage.pages(lake.uri) for entry in page if entry.uri.endswith(f"{0:020}.json")}
    assert logs == {f"{lake.uri}/{table}/_delta_log/{0:020}.json" for table in TABLES}


@pytest.mark.parametrize(
    ("name", "letter"),
    [("a%20b", "%20"), ("[x]", "["), ("x]", "]"), ("a|b", "|"), ("a^b", "^"), ("a\\b", "\\"), ("a\tb", "\t")],
)
@pytest.mark.parametrize("folder", ["/lakes", "s3://bucket"])
def test_a_lake_is_refused_where_delta_tables_would_be_elsewhere(folder: str, name: str, letter: str) -> None:
    with pytest.raises(Refused, match=f"take no {re.escape(repr(letter))} in a name"):
        Lake(f"{folder}/{name}")


@pytest.mark.parametrize(("name", "letter"), [("run#1", "#"), ("what?", "?"), ("a//b", "//"), ("a/../b", "/..")])
def test_a_lake_in_s3_has_no_letter_of_uris(name: str, letter: str) -> None:
    with pytest.raises(Refused, match=f"take no {re.escape(repr(letter))} in a name"):
        Lake(f"s3://bucket/{name}")


@pytest.mark.parametrize("name", ["run#1", "what?"])
def test_a_lake_in_a_folder_may_have_them(tmp_path: Path, name: str) -> None:
    lake = Lake(str(tmp_path / name))
    lake.create()
    assert {path.name for path in (tmp_path / name).iterdir()} == set(TABLES)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_names_are_themselves_on_disk_and_in_s3(tmp_path: Path, bucket: Bucket) -> None:
    storage = pickle.loads(pickle.dumps(StorageConfig()))
    for name in STRANGE_NAMES:
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        bucket.put(f"videos/{name}", name.encode())
    for source in (str(tmp_path / "videos"), f"{bucket.uri}/videos"):
        entries = [entry for page in storage.pages(source) for entry in page]
        assert {entry.uri for entry in entries} == {f"{source}/{name}" for name in STRANGE_NAMES}
        assert [only(storage, entry.uri) for entry in entries] == entries
        for number, entry in enumerate(entries):
            content = entry.uri.removeprefix(f"{source}/").encode()
            assert storage.fetch(entry.uri, entry.etag, tmp_path / str(number)).read_bytes() == content
            with storage.open_ranged(entry) as file:
                assert file.read() == content
            filesystem, path_in_it = storage.filesystem(entry.uri)
            assert filesystem.open_input_file(path_in_it).read() == content


def test_pages_are_sorted_and_bounded(tmp_path: Path, bucket: Bucket) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    with ThreadPoolExecutor(8) as threads:
        client = bucket.server.client()
        for number in range(1100):
            (tmp_path / "sub" / f"{number:05}").touch()
            threads.submit(client.put_object, Bucket=bucket.name, Key=f"sub/{number:05}", Body=b"")
    bucket.put("sub", b"an object beside the folder of its name")
    bucket.put("subway", b"a neighbor")
    storage = StorageConfig()
    local = list(storage.pages(str(tmp_path)))
    remote = list(storage.pages(f"{bucket.uri}/sub"))
    assert [len(page) for page in local] == [1000, 101]
    assert local[0][0] == Entry(str(tmp_path / "self"), 0, "0-0")
    assert [len(page) for page in remote] == [1, 1000, 100]
    for pages in (local, remote):
        uris = [entry.uri for page in pages for entry in page]
        assert uris == sorted(uris)


def test_a_changed_source_is_noticed(tmp_path: Path, bucket: Bucket) -> None:
    storage = StorageConfig()
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    bucket.put("a.mp4", b"one")
    for uri in (str(path), f"{bucket.uri}/a.mp4"):
        entry = only(storage, uri)
        path.write_bytes(b"other")
        bucket.put("a.mp4", b"other")
        with pytest.raises(SourceChanged):
            storage.fetch(uri, entry.etag, tmp_path / "copy")
        with pytest.raises(SourceChanged), storage.open_ranged(entry) as file:
            file.read()
        bucket.server.client().delete_object(Bucket=bucket.name, Key="a.mp4")
        path.unlink()
        with pytest.raises(SourceChanged):
            storage.fetch(uri, entry.etag, tmp_path / "copy")
        path.write_bytes(b"one")
        bucket.put("a.mp4", b"one")


def test_a_local_file_is_not_copied_and_verified_after(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    etag = local_etag(path)
    assert StorageConfig().fetch(str(path), etag, tmp_path / "copy") == path
    path.write_bytes(b"three")
    with pytest.raises(SourceChanged):
        StorageConfig().verify(str(path), etag)


def test_of_two_new_objects_under_one_name_the_first_stays(place: str) -> None:
    storage, uri = StorageConfig(), f"{place}/folder/object"
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda number: storage.put_new(uri, b"%d" % number), range(8)))
    [first] = [number for number, is_there in enumerate(written) if is_there]
    assert storage.get(uri) == b"%d" % first
    # A second attempt of the same writer, whose first answer was lost.
    assert storage.put_new(uri, b"%d" % first)
    assert not storage.put_new(uri, b"another")
    assert [entry.uri for page in storage.pages(place) for entry in page] == [uri]


def test_of_several_that_replace_one_content_one_does(place: str) -> None:
    storage, uri = StorageConfig(), f"{place}/object"
    storage.put(uri, b"old")
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda number: storage.replace(uri, b"old", b"%d" % number), range(8)))
    [first] = [number for number, is_done in enumerate(done) if is_done]
    assert storage.get(uri) == b"%d" % first
    assert not storage.replace(uri, b"old", b"another")


def test_an_object_may_be_written_twice_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: StorageConfig().put(str(tmp_path / "object"), bytes([n]) * 100_000), range(200)))
    (written,) = tmp_path.iterdir()
    assert len(set(written.read_bytes())) == 1


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path, bucket: Bucket) -> None:
    content = os.urandom(5_000_000)
    bucket.put("a.mp4", content)
    requests: list[bytes] = []
    with cutting_proxy(bucket.server.ports[3], 1_500_000, requests) as port:
        storage = StorageConfig(endpoint_url=f"http://127.0.0.1:{port}")
        entry = only(StorageConfig(), f"{bucket.uri}/a.mp4")
        assert storage.fetch(entry.uri, entry.etag, tmp_path / "copy").read_bytes() == content
    ranges = [request.split(b"Range: bytes=")[1].split(b"\r")[0] for request in requests]
    assert ranges[0] == b"0-"
    assert len(ranges) >= 3
    assert all(int(again[:-1]) > 0 for again in ranges[1:])


class cutting_proxy:
    """A TCP proxy to a local port that drops every connection after N bytes of the answer."""

    def __init__(self, target: int, after: int, requests: list[bytes]) -> None:
        self.target, self.after, self.requests = target, after, requests
        self.server = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> int:
        threading.Thread(target=self._serve, daemon=True).start()
        return int(self.server.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def _serve(self) -> None:
        while True:
            try:
                inner, _ = self.server.accept()
            except OSError:
                return
            with inner, socket.create_connection(("127.0.0.1", self.target)) as outer:
                request = inner.recv(65536)
                self.requests.append(request)
                outer.sendall(request)
                sent = 0
                while sent < self.after and (data := outer.recv(65536)):
                    inner.sendall(data)
                    sent += len(data)


def refusal(uri: str, **options: bool) -> str:
    with pytest.raises(Refused) as caught:
        StorageConfig().check(uri, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_wrong_is_said_at_once(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lake = f"{bucket.uri}/lake"
    StorageConfig().check(lake)
    assert "nothing is stored under" in refusal(lake, must_exist=True)
    assert "does not exist" in refusal("s3://no-such-bucket/lake")
    assert "does not exist" in refusal(str(tmp_path / "missing"), must_exist=True)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert "rejects the credentials" in refusal(lake)
        patch.setenv("AWS_ACCESS_KEY_ID", "unknown")
        assert "rejects the credentials" in refusal(lake)
        patch.setenv("AWS_ACCESS_KEY_ID", OTHER_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", OTHER_SECRET)
        assert "is denied" in refusal(lake)
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        assert "no AWS credentials" in refusal(lake)
        patch.setenv("AWS_PROFILE", "unknown")
        assert "AWS_PROFILE" in refusal(lake)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "no url")
        assert "AWS_ENDPOINT_URL" in refusal(lake)
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        with pytest.raises(Unavailable, match="does not answer") as caught:
            StorageConfig().check(lake)
        assert is_transient(caught.value)


def test_a_profile_is_all_it_needs(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = bucket.server.environment
    for name in values:
        monkeypatch.delenv(name)
    settings = {
        "region": values["AWS_REGION"],
        "endpoint_url": values["AWS_ENDPOINT_URL"],
        "aws_access_key_id": values["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": values["AWS_SECRET_ACCESS_KEY"],
    }
    lines = [f"{name} = {value}" for name, value in settings.items()]
    (tmp_path / "config").write_text("\n".join(["[profile mine]", *lines]))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    storage = StorageConfig(profile="mine")
    uri = f"{bucket.uri}/table"
    write_deltalake(uri, pa.table({"a": [1]}), storage_options=storage.delta_options(uri))
    assert next(entry.uri for page in storage.pages(uri) for entry in page) == f"{uri}/_delta_log/{0:020}.json"
    filesystem, path = storage.filesystem(uri)
    assert filesystem.get_file_info(f"{path}/_delta_log/{0:020}.json").size > 0


def test_addressing_follows_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    aws = StorageConfig().delta_options("s3://b/lake")
    assert aws["aws_virtual_hosted_style_request"] == "true"
    assert "aws_endpoint_url" not in aws
    assert (aws["aws_region"], aws["aws_session_token"]) == ("eu-west-1", "token")
    assert StorageConfig().s3_client().meta.endpoint_url == "https://s3.eu-west-1.amazonaws.com"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store:9000")
    own = StorageConfig().delta_options("s3://b/lake")
    assert (own["aws_endpoint_url"], own["aws_allow_http"]) == ("http://store:9000", "true")
    assert own["aws_virtual_hosted_style_request"] == "false"


def test_a_public_bucket_is_read_without_credentials(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = bucket.server.client()
    client.create_bucket(Bucket="open")
    client.put_object(Bucket="open", Key="videos/a.mp4", Body=b"content")
    uri = "s3://open/videos"
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        assert "no AWS credentials" in refusal(uri)
        storage = StorageConfig(anonymous=frozenset({"open"}))
        storage.check(uri, must_exist=True)
        entry = only(storage, f"{uri}/a.mp4")
        assert storage.fetch(entry.uri, entry.etag, tmp_path / "copy").read_bytes() == b"content"
        assert storage.open_ranged(entry).read() == b"content"
        with pytest.raises(Refused, match="no AWS credentials"):
            storage.check(f"{bucket.uri}/lake")
    # With wrong credentials too: they are not sent there, and another bucket is asked with them.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert only(storage, f"{uri}/a.mp4") == entry
    with pytest.raises(Refused, match="rejects the credentials"):
        storage.check(f"{bucket.uri}/lake")


def test_who_reads_a_bucket_of_a_requester_pays_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    entry = Entry("s3://costly/a.mp4", 7, "etag")
    with Answering(403, "AccessDenied") as store:
        storage = StorageConfig(endpoint_url=store.endpoint, requester_pays=frozenset({"costly"}))
        for call in (
            lambda: storage.check("s3://costly/videos"),
            lambda: list(storage.pages("s3://costly/videos")),
            lambda: storage.fetch(entry.uri, entry.etag, tmp_path / "copy"),
            lambda: storage.open_ranged(entry).read(),
        ):
            with pytest.raises((Refused, ClientError)):
                call()
        assert len(store.requests) == 4
        assert all(request.endswith(" requester") for request in store.requests)
        with pytest.raises(Refused):
            storage.check("s3://other/videos")
        assert not store.requests[-1].endswith(" requester")
