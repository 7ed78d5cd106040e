"""Access to S3 as the standard AWS environment describes it: clients, errors in one line, ranged and resumed reads."""

import io
import os
from collections.abc import Callable
from contextlib import closing, suppress
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import pyarrow.fs as pafs
from botocore.exceptions import BotoCoreError, ClientError

from lake import network
from lake.errors import Refused, SourceChanged, Unavailable, one_line
from lake.metrics import S3_ERRORS, S3_RETRIES
from lake.network import Route
from lake.retry import Schedule, retry
from lake.store_errors import CHANGED, ENDPOINT, is_away, no_credentials, outage

# boto3 takes a quarter of a second to import, in every process, and a lake in a folder needs nothing of it.
if TYPE_CHECKING:
    import boto3
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

# A restart of a store takes a minute at most. A store that is away for longer ends the run, which can be resumed.
PATIENCE_S = 120.0
_WAITS_S = (0.2, 0.4, 0.8, 1.6, 3.2, 5.0)
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
COPY_BYTES = 1 << 20
# boto3's own retries draw on a quota that the threads of a client share, so the long waits are ours: see `patiently`.
STEADY: dict[str, Any] = {
    "retries": {"total_max_attempts": 3, "mode": "standard"},
    "connect_timeout": CONNECT_TIMEOUT_S,
    "read_timeout": READ_TIMEOUT_S,
    "max_pool_connections": 32,
}
# Two attempts: a user who starts a command wants to know at once.
QUICK: dict[str, Any] = {
    "retries": {"total_max_attempts": 2, "mode": "standard"},
    "connect_timeout": 5,
    "read_timeout": 15,
}


class S3Settings(NamedTuple):
    """S3 settings beyond the AWS environment; see ``StorageConfig``."""

    endpoint_url: str | None
    region: str | None
    profile: str | None
    anonymous: bool = False
    requester_pays: bool = False


class Access(NamedTuple):
    """Current credentials, region, endpoint (None for AWS itself), and route, as boto3 found them."""

    key: str
    secret: str
    token: str | None
    region: str
    endpoint: str | None
    route: Route


class Place(NamedTuple):
    """Region, endpoint (None for AWS itself), and the way there."""

    region: str
    endpoint: str | None
    route: Route


def access(settings: S3Settings) -> Access:
    """Resolve credentials, region and endpoint; ``Refused`` without credentials or with an unknown profile."""
    environment = _environment()
    session = _session(settings, environment)
    try:
        found = session.get_credentials()
        credentials = found.get_frozen_credentials() if found else None
    except (BotoCoreError, ClientError) as error:
        if is_away(error):
            raise Unavailable(f"{one_line(error)}: the service that hands out credentials does not answer") from None
        refused = Refused(f"{one_line(error)}: check AWS_PROFILE and the role it assumes")
        raise outage(error) or refused from None
    if credentials is None or not credentials.access_key or not credentials.secret_key:
        raise no_credentials()
    place = _place(settings, environment)
    return Access(credentials.access_key, credentials.secret_key, credentials.token, *place)


def client(settings: S3Settings) -> "S3Client":
    """Return a boto3 client; shared by the threads of a process."""
    if not settings.anonymous:
        access(settings)
    return _client(settings, _environment())


def quick_client(settings: S3Settings) -> "S3Client":
    """Return a boto3 client that gives up within seconds."""
    return _build(settings, _session(settings, _environment()), QUICK, _place(settings, _environment()))


def place(settings: S3Settings) -> Place:
    """Return where S3 is; needs no credentials."""
    return _place(settings, _environment())


@lru_cache(maxsize=8)
def arrow_filesystem(found: Access) -> pafs.FileSystem:
    """Return the pyarrow file system of this access; it waits out short outages too."""
    scheme, host = found.endpoint.split("://", 1) if found.endpoint else ("https", None)
    return pafs.S3FileSystem(
        access_key=found.key,
        secret_key=found.secret,
        session_token=found.token,
        region=found.region,
        scheme=scheme,
        endpoint_override=host,
        # Other stores seldom have a host name for each bucket.
        force_virtual_addressing=not found.endpoint,
        proxy_options=found.route.proxy,
        tls_ca_file_path=found.route.ca_file,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=READ_TIMEOUT_S,
        # 25 ms doubled eleven times is PATIENCE_S less one doubling; the "standard" strategy has a quota like boto3's.
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=12),
    )


def delta_options(found: Access) -> dict[str, str]:
    """Return deltalake's ``storage_options``."""
    options = {
        "aws_access_key_id": found.key,
        "aws_secret_access_key": found.secret,
        "aws_region": found.region,
        "aws_virtual_hosted_style_request": str(not found.endpoint).lower(),
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        "timeout": f"{READ_TIMEOUT_S}s",
        # The time decides: with its jitter the default of ten retries is over within seconds.
        "max_retries": "1000",
        "retry_timeout": f"{PATIENCE_S:.0f}s",
        "backoff_config.init_backoff": "200ms",
        "backoff_config.max_backoff": "5s",
        "backoff_config.base": "3",
        **found.route.delta_options(),
    }
    if found.token:
        options["aws_session_token"] = found.token
    if found.endpoint:
        options["aws_endpoint_url"] = found.endpoint
        options["aws_allow_http"] = str(found.endpoint.startswith("http://")).lower()
    return options


def patiently(call: Callable[[], T]) -> T:
    """Return what the call returns, repeating it while the store is away, for at most ``PATIENCE_S`` seconds."""
    schedule = Schedule(_WAITS_S, PATIENCE_S, jitter=True)
    try:
        return retry(call, schedule, is_away, on_wait=lambda error, wait_s: S3_RETRIES.record(1))
    except Exception as error:
        _count(error)
        raise


def _count(error: Exception) -> None:
    """Count what the store has refused or not answered; that an object is not there, or another one, is an answer."""
    code = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
    if code not in CHANGED and (isinstance(error, ClientError | BotoCoreError) or is_away(error)):
        S3_ERRORS.record(1, error=code)


def download(s3: "S3Client", bucket: str, key: str, etag: str, out: IO[bytes]) -> None:
    """Append what ``out`` does not hold yet of an object; ``SourceChanged`` when it has another etag or is gone."""
    try:
        with closing(_get(s3, bucket, key, etag, f"bytes={out.tell()}-")) as body:
            for chunk in body.iter_chunks(COPY_BYTES):
                out.write(chunk)
    except ClientError as error:
        # Nothing is at or after this offset: the object is empty, or complete here.
        if error.response["Error"]["Code"] not in ("InvalidRange", "416"):
            raise


class RangedObject(io.RawIOBase):
    """An S3 object as a raw file; every read is one ranged request for the same etag."""

    def __init__(self, s3: "S3Client", bucket: str, key: str, etag: str, size: int) -> None:
        self._s3, self._bucket, self._key, self._etag, self._size = s3, bucket, key, etag, size
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move without a request."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from here; ``SourceChanged`` when the object has another etag or is gone."""
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        byte_range = f"bytes={self._position}-{end - 1}"
        data = patiently(lambda: _get(self._s3, self._bucket, self._key, self._etag, byte_range).read())
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _get(s3: "S3Client", bucket: str, key: str, etag: str, byte_range: str) -> Any:
    try:
        return s3.get_object(Bucket=bucket, Key=key, IfMatch=f'"{etag}"', Range=byte_range)["Body"]
    except ClientError as error:
        if error.response["Error"]["Code"] in CHANGED:
            raise SourceChanged(f"'s3://{bucket}/{key}' is no longer the object with etag {etag}") from error
        raise


def _environment() -> tuple[tuple[str, str], ...]:
    """Return what the caches depend on: variables, and the file that tools write renewed credentials into."""
    found = {name: value for name, value in os.environ.items() if name.startswith("AWS_")} | network.variables()
    credentials = os.path.expanduser(found.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")
    with suppress(OSError):
        found["written at"] = str(os.stat(credentials).st_mtime_ns)
    return tuple(sorted(found.items()))


@lru_cache(maxsize=8)
def _session(settings: S3Settings, environment: tuple[tuple[str, str], ...]) -> "boto3.Session":
    import boto3

    # AWS_REGION is what every other SDK reads; boto3 reads only AWS_DEFAULT_REGION.
    region = settings.region or dict(environment).get("AWS_REGION") or None
    try:
        return boto3.Session(profile_name=settings.profile, region_name=region)
    except BotoCoreError as error:
        raise Refused(f"{one_line(error)}: check AWS_PROFILE and ~/.aws/config") from None


@lru_cache(maxsize=8)
def _client(settings: S3Settings, environment: tuple[tuple[str, str], ...]) -> "S3Client":
    return _build(settings, _session(settings, environment), STEADY, _place(settings, environment))


@lru_cache(maxsize=8)
def _place(settings: S3Settings, environment: tuple[tuple[str, str], ...]) -> Place:
    """Where boto3 settles on from option, environment and profile."""
    session = _session(settings, environment)
    url = _build(settings, session, QUICK, None).meta.endpoint_url
    is_aws = (urlsplit(url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    way = network.route(url, session._session.get_scoped_config().get("ca_bundle"))
    return Place(session.region_name or "us-east-1", None if is_aws else url.rstrip("/"), way)


def _build(settings: S3Settings, session: "boto3.Session", behavior: dict[str, Any], place: Place | None) -> "S3Client":
    from botocore import UNSIGNED
    from botocore.client import Config

    if place and place.endpoint:
        behavior = {**behavior, "s3": {"addressing_style": "path"}}
    if settings.anonymous:
        behavior = {**behavior, "signature_version": UNSIGNED}
    try:
        made = session.client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=session.region_name or "us-east-1",
            config=Config(**behavior),
            verify=place.route.ca_file if place else None,
        )
    except (BotoCoreError, ValueError) as error:
        raise Refused(f"{one_line(error)}: check {ENDPOINT} (like http://host:port)") from None
    if settings.requester_pays:
        made.meta.events.register("before-call.s3", _pay)
    return made


def _pay(params: dict[str, Any], **_: Any) -> None:
    params["headers"]["x-amz-request-payer"] = "requester"
