"""Bearer keys: who may do what, how often. Only hashes are kept.

A key is 32 random bytes, so its SHA-256 cannot be guessed back; slow hashes are for passwords that people choose.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from lake.errors import Refused
from lake.storage import join
from lake.tables import Lake

Scope = Literal["label", "predict", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_TOKEN = re.compile(r"wl_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,62}")


class Key(BaseModel):
    """A key as it is kept. `admin` implies the other scopes."""

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
        """Whether it has a scope."""
        return scope in self.scopes or "admin" in self.scopes


_KEYS = TypeAdapter(list[Key])


class Keys:
    """The keys of a lake, in `<lake>/_serve/keys.json`."""

    def __init__(self, lake: Lake) -> None:
        self._storage, self._uri = lake.storage, join(lake.uri, "_serve/keys.json")

    def read(self) -> list[Key]:
        """All keys. Raises Refused where the file is none of ours."""
        content = self._storage.get(self._uri)
        try:
            return _KEYS.validate_json(content) if content is not None else []
        except ValueError as error:
            raise Refused(f"{self._uri} holds no keys ({str(error).splitlines()[0]}): remove it") from None

    def create(
        self,
        name: str,
        scopes: tuple[str, ...],
        *,
        days: float | None = None,
        per_minute: int = 600,
        write: bool = False,
    ) -> tuple[Key, str]:
        """A new key and its token, which nobody can read again. Raises Refused for a name or a scope that is none."""
        keys = self.read()
        if not _NAME.fullmatch(name):
            raise Refused(f"key name {name!r}: use letters, digits, spaces and . _ @ -, at most 63")
        if any(key.name == name for key in keys):
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
        self._write([*keys, key])
        return key, f"wl_{key.key_id}_{secret}"

    def revoke(self, name: str) -> None:
        """Remove a key by its name. Raises Refused where there is none."""
        keys = self.read()
        if not any(key.name == name for key in keys):
            raise Refused(f"there is no key {name!r}: {', '.join(key.name for key in keys) or 'there is none at all'}")
        self._write([key for key in keys if key.name != name])

    def _write(self, keys: list[Key]) -> None:
        self._storage.put(self._uri, json.dumps([key.model_dump(mode="json") for key in keys], indent=1).encode())


def find(keys: list[Key], token: str) -> Key | None:
    """The key of a token, expired or not; None for a token of no key. A wrong secret takes as long as a right one."""
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
