"""Model folders in an object store: copied to a machine once, for all the processes there."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from models.errors import ModelRefused

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def fetch(uri: str, patterns: tuple[str, ...]) -> Path:
    """A folder of this machine with the files under `uri` (s3://bucket/folder) that match, and no folders below.

    It is in `$XDG_CACHE_HOME/worldlake/models` (`~/.cache` by default), under a name that its content has: a model that
    was replaced is another folder. Credentials, region and endpoint come from the AWS environment. Raises ModelRefused,
    with the remedy, where it cannot be read.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, path = uri.removeprefix("s3://").partition("/")
    prefix = f"{path.strip('/')}/"
    try:
        client = _client()
        found = {name: tag for name, tag in _files(client, bucket, prefix) if any(map(Path(name).match, patterns))}
        if not found:
            raise ModelRefused(f"there is no model at {uri}: name the folder with config.json and *.safetensors")
        content = hashlib.sha256(repr((uri, sorted(found.items()))).encode()).hexdigest()
        folder = _cache() / content[:32]
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Whoever of this machine's processes comes first downloads; one that dies while it does leaves no half model.
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                part = folder.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                for name in found:
                    client.download_file(bucket, prefix + name, str(part / name))
                part.rename(folder)
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelRefused(
            f"{uri} cannot be read ({reason}): check the address, and AWS_PROFILE or AWS_ACCESS_KEY_ID, AWS_REGION and "
            "AWS_ENDPOINT_URL of this machine"
        ) from error
    return folder


def _client() -> S3Client:
    import boto3
    from botocore.config import Config

    session = boto3.Session(region_name=os.environ.get("AWS_REGION"))
    options: dict[str, Any] = {"region_name": session.region_name or "us-east-1"}
    client = session.client("s3", **options)
    if (urlsplit(client.meta.endpoint_url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return client
    # Other stores seldom have a host name for each bucket.
    return session.client("s3", **options, config=Config(s3={"addressing_style": "path"}))


def _files(client: S3Client, bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Names after the prefix, and what changes when a file does."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
        for one in page.get("Contents", ()):
            yield one["Key"].removeprefix(prefix), f"{one['ETag']} {one['Size']}"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "worldlake", "models")
