"""One storage configuration for boto3, pyarrow and deltalake: local folders and S3.

A uri is an absolute local path or ``s3://bucket/key``, in both cases raw: never percent-encoded, so that names with
spaces, ``#``, ``?`` or newlines are themselves. Credentials, region and endpoint are found by boto3 in the standard AWS
environment and profile, and what boto3 found is handed to the other two: they cannot disagree.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import AfterValidator, Field

from lake import durable, s3
from lake.errors import Refused, SourceChanged, Unavailable
from lake.settings import Settings
from lake.store_errors import explain

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LIST_PAGE = 1000
# Found by trying every letter on deltalake 1.6.6, in a folder and in S3.
_NOT_IN_LAKES = re.compile(r"[\x00-\x1f\x7f\[\]\\^|]|%[0-9a-fA-F]{2}")
_NOT_IN_S3_LAKES = re.compile(r"[#?]|//|/\.{1,2}(?=/|$)")
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")


class Entry(NamedTuple):
    """An object of a listing: its uri, size in bytes and etag (``size-mtime_ns`` for a local file)."""

    uri: str
    bytes: int
    etag: str


def normalize(uri: str) -> str:
    """Return the uri in the one spelling that the tables hold; ``Refused`` for a scheme that is not served."""
    scheme = _SCHEME.match(uri)
    if is_s3(uri):
        bucket, key = split_s3(uri)
        if not bucket:
            raise Refused(f"{uri!r} names no bucket: write s3://bucket/folder")
        return f"s3://{bucket}/{key}".rstrip("/")
    if scheme and scheme[1].lower() == "file":
        return os.path.abspath(unquote(urlsplit(uri).path))
    if scheme:
        raise Refused(
            f"{uri!r}: {scheme[1]}:// is not served; use a local folder or s3://bucket/folder "
            "(an S3-compatible store is reached with AWS_ENDPOINT_URL)"
        )
    if uri.lower().startswith("s3:"):
        raise Refused(f"{uri!r}: write s3://bucket/folder, with two slashes")
    if not uri:
        raise Refused("an empty uri: give a local folder or s3://bucket/folder")
    return os.path.abspath(Path(uri).expanduser())


def lake_uri(uri: str) -> str:
    """Return the uri of a lake in its one spelling.

    ``Refused`` for a name that deltalake takes for another one, or cannot take: it reads a uri where boto3, pyarrow and
    the operating system read a name, so that the tables of one lake would be in two places.
    """
    uri = normalize(uri)
    wrong = _NOT_IN_LAKES.search(uri) or (_NOT_IN_S3_LAKES.search(uri.removeprefix("s3://")) if is_s3(uri) else None)
    if wrong:
        raise Refused(f"a lake cannot be at {uri!r}: Delta tables take no {wrong[0]!r} in a name; rename the folder")
    return uri


def is_s3(uri: str) -> bool:
    """Return whether the uri names an object or a prefix in S3."""
    return uri.startswith("s3://")


def split_s3(uri: str) -> tuple[str, str]:
    """Return (bucket, key) of an ``s3://`` uri."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def join(uri: str, *parts: str) -> str:
    """Append path parts to a uri."""
    return "/".join([uri.rstrip("/"), *parts])


def local_etag(path: str | Path) -> str:
    """Return the etag of a local file, ``size-mtime_ns``."""
    stat = Path(path).stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


Text = Annotated[str, Field(pattern=r"\S")]
"""Text that says something."""


def _bucket(name: str) -> str:
    bucket, _ = split_s3(name)
    if not bucket:
        raise ValueError("give a bucket, such as open-videos or s3://open-videos")
    return bucket


Bucket = Annotated[str, AfterValidator(_bucket)]


class StorageConfig(Settings):
    """Where S3 is and how it is addressed, over the standard AWS environment; picklable, without secrets."""

    endpoint_url: Text | None = Field(None, description="S3 endpoint. Default: the AWS environment and profile.")
    region: Text | None = Field(None, description="S3 region. Default: the AWS environment and profile.")
    profile: Text | None = Field(None, description="AWS profile. Default: the AWS environment.")
    anonymous: frozenset[Bucket] = Field(
        frozenset(), description="Bucket to read videos from without credentials; repeat for several."
    )
    requester_pays: frozenset[Bucket] = Field(
        frozenset(), description="Bucket whose reads you agree to pay for; repeat for several."
    )

    def _settings(self, bucket: str = "") -> s3.S3Settings:
        own = bucket in self.anonymous, bucket in self.requester_pays
        return s3.S3Settings(self.endpoint_url, self.region, self.profile, *own)

    def s3_client(self, bucket: str = "") -> "S3Client":
        """Return a boto3 client for a bucket; shared by the threads of a process.

        Raises ``Refused`` when the profile is unknown or no credentials are found.
        """
        return s3.client(self._settings(bucket))

    def filesystem(self, uri: str) -> tuple[pafs.FileSystem, str]:
        """Return the pyarrow file system of a uri and the path in it.

        The credentials are those of this moment: ask again for every file rather than keeping it for hours.
        """
        if not is_s3(uri):
            return pafs.LocalFileSystem(), uri
        return s3.arrow_filesystem(s3.access(self._settings())), uri.removeprefix("s3://")

    def subtree(self, uri: str) -> pafs.FileSystem:
        """Return a pyarrow file system whose root is the uri."""
        filesystem, path = self.filesystem(uri)
        return pafs.SubTreeFileSystem(path, filesystem)

    def delta_options(self, uri: str) -> dict[str, str]:
        """Return deltalake's ``storage_options`` of a uri (empty for a local one); also of this moment."""
        return s3.delta_options(s3.access(self._settings())) if is_s3(uri) else {}

    def explained(self, error: Exception, uri: str) -> Refused | Unavailable:
        """Return an error of boto3 as one line with the remedy."""
        return explain(error, uri, s3.place(self._settings()).endpoint)

    def check(self, uri: str, *, must_exist: bool = False) -> None:
        """Ask the store once whether the uri can be used, so that a command can say no before it starts.

        Raises ``Refused`` (no such bucket or folder, access denied, wrong credentials or region) or ``Unavailable``
        (nobody answers), each with one line that names the remedy. ``must_exist``: also refuse an empty prefix.
        """
        uri = normalize(uri)
        if not is_s3(uri):
            _check_local(Path(uri), must_exist)
            return
        bucket, prefix = split_s3(uri)
        settings = self._settings(bucket)
        place = s3.place(settings)
        if not settings.anonymous:
            s3.access(settings)
        try:
            answer = s3.quick_client(settings).list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except (ClientError, BotoCoreError) as error:
            raise self.explained(error, uri) from None
        home = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", place.region)
        # The bucket of somebody else may be anywhere: boto3, which reads sources, follows it.
        if not place.endpoint and home != place.region and not (settings.anonymous or settings.requester_pays):
            raise Refused(f"bucket {bucket!r} is in {home}, not in {place.region}: set AWS_REGION={home}")
        if must_exist and not answer.get("KeyCount"):
            raise Refused(f"nothing is stored under {uri!r}: check the bucket and the prefix")

    def pages(self, uri: str) -> Iterator[list[Entry]]:
        """Yield the objects at or under a uri, sorted, in pages of at most 1,000; never the whole listing at once.

        Sorted by key in S3, folder by folder on disk. A uri that names one object yields that object.
        Raises ``Refused`` for a local path that does not exist, ``Refused`` or ``Unavailable`` as ``check`` does.
        """
        uri = normalize(uri)
        if not is_s3(uri):
            _check_local(Path(uri), must_exist=True)
            yield from _pages(_walk(Path(uri), ()))
            return
        try:
            yield from self._s3_pages(*split_s3(uri))
        except (ClientError, BotoCoreError) as error:
            raise self.explained(error, uri) from None

    def _s3_pages(self, bucket: str, key: str) -> Iterator[list[Entry]]:
        def listed(**request: Any) -> Any:
            return s3.patiently(lambda: self.s3_client(bucket).list_objects_v2(Bucket=bucket, **request))

        if key:
            # The object itself sorts first among the keys that begin with its name.
            first = listed(Prefix=key, MaxKeys=1).get("Contents", [])
            if first and first[0]["Key"] == key:
                yield [_entry(bucket, first[0])]
        more: dict[str, str] = {}
        while True:
            page = listed(Prefix=key and f"{key}/", MaxKeys=LIST_PAGE, **more)
            # A key that ends in a slash is the folder marker some tools write.
            entries = [_entry(bucket, item) for item in page.get("Contents", []) if not item["Key"].endswith("/")]
            if entries:
                yield entries
            if not page["IsTruncated"]:
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def fetch(self, uri: str, etag: str, dest: str | Path) -> Path:
        """Return a local path that holds the object as it was listed.

        A local file is returned as it is, not copied: call ``verify`` when it has been read. An S3 object is written to
        ``dest``; a broken download resumes where it stopped, always for the same etag.

        Raises ``SourceChanged`` when the object is gone or has another etag, and boto3's error when the store stays
        away (``store_errors.is_transient`` tells).
        """
        if not is_s3(uri):
            self.verify(uri, etag)
            return Path(uri)
        with Path(dest).open("wb") as out:
            bucket, key = split_s3(uri)
            s3.patiently(lambda: s3.download(self.s3_client(bucket), bucket, key, etag, out))
        return Path(dest)

    def put(self, uri: str, content: bytes) -> None:
        """Write an object, or overwrite it as a whole: who reads meanwhile gets the old bytes or the new ones.

        It is durable when this returns. Waits while a store is away, at most `s3.PATIENCE_S` seconds.
        """
        if is_s3(uri):
            bucket, key = split_s3(uri)
            s3.patiently(lambda: self.s3_client().put_object(Bucket=bucket, Key=key, Body=content))
        else:
            durable.write(Path(uri), content)

    def put_new(self, uri: str, content: bytes) -> bool:
        """Write an object unless there is one; returns whether the object there now has this content.

        Durable and patient as `put`. Of several writers at once one succeeds.
        """
        if not is_s3(uri):
            return durable.write_new(Path(uri), content) or self.get(uri) == content
        return self._put_if(uri, content, IfNoneMatch="*")

    def replace(self, uri: str, old: bytes, new: bytes) -> bool:
        """Overwrite an object that has the content `old`; returns whether its content now is `new`.

        Durable and patient as `put`. Of several that replace the same content at once one succeeds.
        """
        if not is_s3(uri):
            return durable.replace(Path(uri), old, new) or self.get(uri) == new
        bucket, key = split_s3(uri)
        found = s3.patiently(lambda: self.s3_client().head_object(Bucket=bucket, Key=key))
        if self.get(uri) != old:
            return False
        return self._put_if(uri, new, IfMatch=found["ETag"])

    def _put_if(self, uri: str, content: bytes, **condition: Any) -> bool:
        bucket, key = split_s3(uri)
        try:
            s3.patiently(lambda: self.s3_client().put_object(Bucket=bucket, Key=key, Body=content, **condition))
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
                raise
            # Its own, where the answer to an earlier attempt was lost.
            return self.get(uri) == content
        return True

    def put_folder(self, folder: Path, uri: str) -> None:
        """Write the files of a folder under a uri, over those of the same names. Durable and patient as `put`."""
        filesystem, path = self.filesystem(uri)
        if not is_s3(uri):
            durable.make_folder(Path(path))
        s3.patiently(lambda: pafs.copy_files(str(folder), path, destination_filesystem=filesystem))
        if not is_s3(uri):
            for file in (found for found in folder.rglob("*") if found.is_file()):
                durable.flush(Path(path, file.relative_to(folder)))

    def get_folder(self, uri: str, folder: Path) -> None:
        """Copy what is under a uri into a folder of this machine. Patient as `put`."""
        filesystem, path = self.filesystem(uri)
        s3.patiently(lambda: pafs.copy_files(path, str(folder), source_filesystem=filesystem))

    def get(self, uri: str) -> bytes | None:
        """Return all bytes of a small object; None where there is none."""
        if not is_s3(uri):
            try:
                return Path(uri).read_bytes()
            except FileNotFoundError:
                return None
        bucket, key = split_s3(uri)
        try:
            return s3.patiently(lambda: self.s3_client(bucket).get_object(Bucket=bucket, Key=key)["Body"].read())
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise self.explained(error, uri) from None

    def delete(self, uri: str) -> None:
        """Delete an object if it is there."""
        if is_s3(uri):
            bucket, key = split_s3(uri)
            s3.patiently(lambda: self.s3_client().delete_object(Bucket=bucket, Key=key))
        else:
            with suppress(FileNotFoundError):
                Path(uri).unlink()
                durable.flush_folder(Path(uri).parent)

    def verify(self, uri: str, etag: str) -> None:
        """Raise ``SourceChanged`` when a local file is no longer the one of this etag; an S3 copy cannot change."""
        if is_s3(uri):
            return
        try:
            now = local_etag(uri)
        except FileNotFoundError as error:
            raise SourceChanged(f"{uri!r} is gone") from error
        if now != etag:
            raise SourceChanged(f"{uri!r} changed: its etag is {now} and was {etag}")

    def open_ranged(self, entry: Entry, block_bytes: int = 1 << 18) -> IO[bytes]:
        """Open an object for seeking reads that fetch only what is read, in blocks; ``SourceChanged`` as ``fetch``."""
        if not is_s3(entry.uri):
            self.verify(entry.uri, entry.etag)
            return Path(entry.uri).open("rb")
        bucket, key = split_s3(entry.uri)
        raw = s3.RangedObject(self.s3_client(bucket), bucket, key, entry.etag, entry.bytes)
        return io.BufferedReader(raw, block_bytes)


def _check_local(path: Path, must_exist: bool) -> None:
    try:
        exists = path.exists()
    except OSError as error:
        # Such as a name that is too long.
        raise Refused(f"{str(path)!r} cannot be used: {error.strerror}: check the path") from None
    if not exists:
        if must_exist:
            raise Refused(f"{str(path)!r} does not exist: check the path")
        path = next(parent for parent in path.parents if parent.exists())
        if not path.is_dir():
            raise Refused(f"nothing can be created in {str(path)!r}, which is a file: name a folder")
        if not os.access(path, os.W_OK | os.X_OK):
            raise Refused(f"nothing can be created in {str(path)!r}: check its permissions")
    if not os.access(path, os.R_OK):
        raise Refused(f"{str(path)!r} cannot be read: check its permissions")


def _walk(path: Path, parents: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
    """Yield files at or under a path; links are followed, but never into a folder that they are inside of."""
    try:
        stat = path.stat()
    except OSError:
        if path.is_symlink():  # One that leads nowhere is listed: it must not disappear, opening it says what is wrong.
            yield Entry(str(path), 0, "0-0")
        elif path.exists():
            raise
        return
    if path.is_file():
        yield Entry(str(path), stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}")
    elif path.is_dir() and (here := (stat.st_dev, stat.st_ino)) not in parents:
        for child in sorted(path.iterdir()):
            yield from _walk(child, (*parents, here))


def _pages(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    page: list[Entry] = []
    for entry in entries:
        page.append(entry)
        if len(page) == LIST_PAGE:
            yield page
            page = []
    if page:
        yield page


def _entry(bucket: str, item: Any) -> Entry:
    return Entry(f"s3://{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))
