"""Bearer keys, their scopes and rates. Only hashes are stored.

A key is 32 random bytes, so its SHA-256 cannot be guessed back; slow hashes are for passwords that people choose.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from lake.errors import Refused
from lake.storage import Entry, is_s3, join

if TYPE_CHECKING:
    # Tables import Delta Lake and its engine, which a proxy has no use for.
    from lake.tables import Lake

Scope = Literal["label", "predict", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_TOKEN = re.compile(r"wl_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_OBJECT = re.compile(r"/[0-9a-f]{12}\.json$")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,62}")


class Key(BaseModel):
    """A key as it is stored. `admin` implies the other scopes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key_id: str
    name: str
    digest: str = Field(description="SHA-256 of the secret, hexadecimal")
    scopes: tuple[Scope, ...]
    per_minute: int = Field(600, ge=1, description="requests a minute, on each ingress replica")
    write: bool = Field(False, description="what it labels goes into the lake where a request does not say")
    created_at: dt.datetime
    expires_at: dt.datetime | None = None

    def may(self, scope: Scope) -> bool:
        """Return whether the key has a scope."""
        return scope in self.scopes or "admin" in self.scopes


class Keys:
    """The keys of a lake, each an object of its own, `<lake>/_serve/keys/<key_id>.json`, that is never changed.

    So creating or revoking a key never restores or loses another one. A lake without keys is not open to everyone: the
    service decides which key is valid then.
    """

    def __init__(self, lake: Lake) -> None:
        self._storage, self._folder = lake.storage, join(lake.uri, "_serve/keys")
        self._read: dict[Entry, Key] = {}

    def read(self) -> list[Key]:
        """Return all keys, oldest first. Raises Refused if an object is damaged or of an older worldlake."""
        old = f"{self._folder}.json"
        if self._storage.get(old) is not None:
            raise Refused(f"{old} is of an older worldlake: remove it, and make its keys again (worldlake keys create)")
        entries = self._entries()
        with ThreadPoolExecutor(8) as pool:
            found = dict(zip(entries, pool.map(self._one, entries), strict=True))
        # What was revoked since it was listed is not there.
        self._read = {entry: key for entry, key in found.items() if key is not None}
        return sorted(self._read.values(), key=lambda key: key.created_at)

    def _entries(self) -> list[Entry]:
        if not is_s3(self._folder) and not Path(self._folder).exists():
            return []
        return [entry for page in self._storage.pages(self._folder) for entry in page if _OBJECT.search(entry.uri)]

    def _one(self, entry: Entry) -> Key | None:
        if entry in self._read:
            return self._read[entry]
        content = self._storage.get(entry.uri)
        try:
            return Key.model_validate_json(content) if content is not None else None
        except ValueError as error:
            raise Refused(f"{entry.uri} holds no key ({str(error).splitlines()[0]}): remove it") from None

    def _uri(self, key: Key) -> str:
        return join(self._folder, f"{key.key_id}.json")

    def create(
        self,
        name: str,
        scopes: tuple[str, ...],
        *,
        days: float | None = None,
        per_minute: int = 600,
        write: bool = False,
    ) -> tuple[Key, str]:
        """Create a key; returns it and its token, which is not stored. Raises Refused for an invalid name or scope."""
        if not _NAME.fullmatch(name):
            raise Refused(f"key name {name!r}: use letters, digits, spaces and . _ @ -, at most 63")
        if any(key.name == name for key in self.read()):
            raise Refused(f"there is a key {name!r}: choose another name, or revoke it first")
        if not scopes or set(scopes) - set(SCOPES):
            raise Refused(f"--scope {', '.join(scopes) or 'is missing'}: use {', '.join(SCOPES)}")
        now = dt.datetime.now(dt.UTC)
        secret = secrets.token_urlsafe(32)
        key = Key(
            key_id=secrets.token_hex(6),
            name=name,
            digest=_digest(secret),
            scopes=scopes,
            per_minute=per_minute,
            write=write,
            created_at=now,
            expires_at=now + dt.timedelta(days=days) if days is not None else None,
        )
        self._storage.put(self._uri(key), key.model_dump_json().encode())
        return key, f"wl_{key.key_id}_{secret}"

    def revoke(self, name: str) -> None:
        """Delete every key of a name. Raises Refused if there is none."""
        keys = self.read()
        named = [key for key in keys if key.name == name]
        if not named:
            raise Refused(f"there is no key {name!r}: {', '.join(key.name for key in keys) or 'there is none at all'}")
        for key in named:
            self._storage.delete(self._uri(key))


def find(keys: list[Key], token: str) -> Key | None:
    """Return the key of a token, expired or not; None if there is none. A wrong secret takes as long as a right one."""
    match = _TOKEN.fullmatch(token)
    key_id, secret = match.groups() if match else ("", "")
    known = next((key for key in keys if key.key_id == key_id), None)
    # Also compared where there is no such key, so that the answer takes as long.
    equal = hmac.compare_digest(known.digest if known else _digest(""), _digest(secret))
    return known if known is not None and equal else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass
class Bucket:
    """A token bucket: `per_minute` requests a minute, as many at once."""

    per_minute: int
    level: float
    filled_at: float

    def take(self, now: float) -> float:
        """Take one; 0, or the seconds until there is one."""
        rate = self.per_minute / 60
        self.level = min(float(self.per_minute), self.level + (now - self.filled_at) * rate)
        self.filled_at = now
        if self.level < 1:
            return (1 - self.level) / rate
        self.level -= 1
        return 0.0
