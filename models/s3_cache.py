"""Model folders in an object store: copied to a machine once, for all the processes there."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from lake.errors import ModelRefused, one_line

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def fetch(uri: str, patterns: tuple[str, ...], content: str | None = None) -> tuple[Path, str]:
    """A folder of this machine with the files under `uri` (s3://bucket/folder) that match, and what says its content.

    Folders below are left out. Who names the `content` gets that, from this machine where it is here already. It is in
    `$XDG_CACHE_HOME/worldlake/models` (`~/.cache` by default). Credentials, region and endpoint come from the AWS
    environment. Raises ModelRefused, with the remedy, where it cannot be had, or there is another by now.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    if content and (known := _cache() / content).is_dir():
        return known, content
    bucket, _, path = uri.removeprefix("s3://").partition("/")
    prefix = f"{path.strip('/')}/".lstrip("/")
    try:
        client = _client()
        found = _files(client, bucket, prefix, patterns)
        if not found:
            raise ModelRefused(f"there is no model at {uri}: name the folder with config.json and *.safetensors")
        digest = hashlib.sha256(repr((bucket, prefix, found)).encode()).hexdigest()[:32]
        if content not in (None, digest):
            raise ModelRefused(
                f"{uri} has been replaced since its content was {content}: begin again with what is there"
            )
        folder = _cache() / digest
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Whoever of this machine's processes comes first downloads; one that dies meanwhile leaves no half model.
            with FileLock(folder.with_suffix(".lock")):
                if not folder.is_dir():
                    part = folder.with_suffix(".part")
                    shutil.rmtree(part, ignore_errors=True)
                    part.mkdir()
                    for name, _ in found:
                        client.download_file(bucket, prefix + name, str(part / name))
                    if _files(client, bucket, prefix, patterns) != found:
                        raise ModelRefused(f"{uri} was replaced while it was copied: run this again")
                    part.rename(folder)
    except (BotoCoreError, ClientError, Boto3Error, ValueError) as error:
        raise ModelRefused(
            f"{uri} cannot be read ({one_line(error)}): check the address, and AWS_PROFILE or "
            "AWS_ACCESS_KEY_ID, AWS_REGION and AWS_ENDPOINT_URL of this machine"
        ) from error
    except OSError as error:
        raise ModelRefused(
            f"{uri} cannot be kept in {_cache()} ({error}): set XDG_CACHE_HOME to another place"
        ) from error
    return folder, digest


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


def _files(client: S3Client, bucket: str, prefix: str, patterns: tuple[str, ...]) -> list[tuple[str, str]]:
    """Names after the prefix, and what changes when a file does."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
    found = [
        (one["Key"].removeprefix(prefix), f"{one['ETag']} {one['Size']}")
        for page in pages
        for one in page.get("Contents", ())
    ]
    return sorted((name, tag) for name, tag in found if any(map(Path(name).match, patterns)))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "worldlake", "models")
