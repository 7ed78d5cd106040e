"""The Delta log of a table and the files beside it, as they are stored: what each version names, and what none does.

Only what deletes files and bytes goes by this. A log is kept whole (`delta.enableExpiredLogCleanup` is off), so it says
of every file since which version a table names it, and until which.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any
from urllib.parse import unquote

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lake.durable import UNFINISHED
from lake.errors import BrokenLog
from lake.s3 import patiently
from lake.storage import join
from lake.store_errors import read_undamaged
from lake.tables import Lake

_FOLDER = "_delta_log"
_COMMIT = re.compile(r"_delta_log/(\d{20})\.json")
_CHECKPOINT = re.compile(r"_delta_log/(\d{20})\.checkpoint.*\.parquet")
_POINTER = "_delta_log/_last_checkpoint"
_AT_ONCE = 16


@dataclass(frozen=True)
class Stored:
    """A file of a table in the store. `path` is relative to the table."""

    path: str
    bytes: int
    modified_at: datetime | None

    @property
    def is_data(self) -> bool:
        """True for a data file, also an unfinished one."""
        return not self.path.startswith("_delta_log/")

    @property
    def is_unfinished(self) -> bool:
        """True for a file that is still being written: by us with an ending, by delta-rs with a number behind `#`."""
        return self.path.endswith(UNFINISHED) or "#" in self.path.rsplit("/", 1)[-1]


def stored(lake: Lake, name: str, folder: str = "") -> dict[str, Stored]:
    """Return all files of a table by path, those of its log too; or those in one of its folders.

    A listing is not a snapshot: what is written meanwhile may be in it or not. So list first, then read the log, to
    find files that no commit names; and read the log first, then list, to find files that are gone.
    """
    filesystem, root = lake.storage.filesystem(lake.table_uri(name))
    selector = pafs.FileSelector(f"{root}/{folder}".rstrip("/"), recursive=True, allow_not_found=True)
    infos = patiently(lambda: filesystem.get_file_info(selector))
    found = [
        Stored(info.path[len(root) :].lstrip("/"), info.size, info.mtime)
        for info in infos
        if info.type == pafs.FileType.File
    ]
    return {file.path: file for file in found}


@dataclass(frozen=True)
class Named:
    """A file that versions `since` to `until` (exclusive; None: to the newest) of a table name."""

    path: str
    bytes: int
    since: int
    until: int | None

    def is_in(self, version: int) -> bool:
        """Return whether a version names the file."""
        return self.since <= version and (self.until is None or version < self.until)


class Log:
    """The commits of one table."""

    def __init__(self, lake: Lake, name: str) -> None:
        """Read the log.

        Raises:
            BrokenLog: a commit is missing or not whole. Nothing may be deleted by such a log.
        """
        self._lake, self.name = lake, name
        versions = {int(match[1]): path for path in stored(lake, name, _FOLDER) if (match := _COMMIT.fullmatch(path))}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            contents = list(pool.map(lambda version: read_commit(lake, name, versions[version]), sorted(versions)))
        if versions and sorted(versions) != list(range(max(versions) + 1)):
            missing = next(version for version in range(max(versions)) if version not in versions)
            raise BrokenLog(f"{name}/{commit_path(missing)} is missing: restore it from a backup of {lake.uri}")
        self.commits = dict(zip(sorted(versions), contents, strict=True))
        self.named = _named(self.commits)

    @cached_property
    def newest(self) -> dict[str, Named]:
        """The files of the newest version by path."""
        return {file.path: file for files in self.named.values() for file in files if file.until is None}

    def replaced_by(self, file: Named) -> dict[str, Named]:
        """Return the files that the commit which named a file took out, by path."""
        return {
            path: span
            for path, spans in self.named.items()
            for span in spans
            if span.until == file.since and path not in self.newest
        }

    def removed_at(self, path: str) -> datetime:
        """When a file was last removed, as the remover's clock had it."""
        times = [
            action["remove"].get("deletionTimestamp") or 0
            for span in self.named[path]
            for action in self.commits.get(span.until if span.until is not None else -1, [])
            if "remove" in action and unquote(action["remove"]["path"]) == path
        ]
        return datetime.fromtimestamp(max(times, default=0) / 1000, UTC)

    @cached_property
    def files(self) -> dict[str, Stored]:
        """All files of the table, listed after the log was read."""
        return stored(self._lake, self.name)

    @property
    def gone(self) -> set[str]:
        """Files that some version named and that are no longer stored."""
        return self.named.keys() - self.files.keys()

    def unclean(self) -> dict[int, list[dict[str, Any]]]:
        """By version, commits that say more than they need, as they should be.

        Statistics of files that are gone and conditions of deletions are for readers of these files and for people;
        they repeat what was in the rows, and without them a commit means the same.
        """
        gone = self.gone
        cleaned = {version: [_cleaned(one, gone) for one in actions] for version, actions in self.commits.items()}
        return {version: actions for version, actions in cleaned.items() if actions != self.commits[version]}

    def clean(self) -> int:
        """Rewrite the `unclean` commits, and drop the checkpoints that repeat them; how many commits that were."""
        unclean = self.unclean()
        for version, actions in unclean.items():
            content = "\n".join(json.dumps(action, separators=(",", ":")) for action in actions)
            self._lake.storage.put(join(self._lake.table_uri(self.name), commit_path(version)), content.encode())
        # Also where nothing is unclean: the process that cleaned them may have been killed before this.
        self._drop_checkpoints()
        return len(unclean)

    def _drop_checkpoints(self) -> None:
        """Delete checkpoints of older versions, which have all statistics, once the newest version has one."""
        newest = max(self.commits)
        if old := [path for path in self.files if (match := _CHECKPOINT.fullmatch(path)) and int(match[1]) < newest]:
            self._lake.checkpoint(self._lake.table(self.name), self.name)
            for path in old:
                self._lake.storage.delete(join(self._lake.table_uri(self.name), path))


def read_commit(lake: Lake, name: str, path: str) -> list[dict[str, Any]]:
    """Return the actions of a commit of a table. Raises BrokenLog where it was not written whole."""
    actions = _actions(lake.storage.get(join(lake.table_uri(name), path)) or b"")
    if not actions:
        raise BrokenLog(f"{name}/{path} was not written whole: run `worldlake repair --lake {lake.uri}`")
    return actions


def is_whole(commit: bytes) -> bool:
    """Return whether a commit was written whole."""
    return bool(_actions(commit))


def _actions(commit: bytes) -> list[dict[str, Any]]:
    """Return the actions of a commit; none where it was not written whole."""
    try:
        return [json.loads(line) for line in commit.splitlines() if line.strip()]
    except ValueError:
        return []


def broken_checkpoints(lake: Lake, name: str, files: Iterable[str]) -> list[str]:
    """Of the files of a table: the checkpoints that cannot be read, and the pointer to one that is not there."""
    filesystem, root = lake.storage.filesystem(lake.table_uri(name))
    broken = []
    for path in sorted(path for path in files if _CHECKPOINT.fullmatch(path)):
        if read_undamaged(partial(pq.read_table, f"{root}/{path}", filesystem=filesystem)) is None:
            broken.append(path)
    if _POINTER in files:
        try:
            version = json.loads(lake.storage.get(join(lake.table_uri(name), _POINTER)) or b"")["version"]
            found = [path for path in files if (match := _CHECKPOINT.fullmatch(path)) and int(match[1]) == version]
        except (ValueError, KeyError, TypeError):
            found = []
        if not set(found) - set(broken):
            broken.append(_POINTER)
    return broken


def commit_path(version: int) -> str:
    """Return the path of a commit in its table."""
    return f"_delta_log/{version:020}.json"


def _named(commits: dict[int, list[dict[str, Any]]]) -> dict[str, list[Named]]:
    """By path, when it was named: a file may be removed and added again."""
    spans: dict[str, list[Named]] = defaultdict(list)
    for version, actions in commits.items():
        # A commit that removes and adds one file replaces its entry.
        for action in sorted(actions, key=lambda action: "remove" not in action):
            if "remove" in action:
                path = unquote(action["remove"]["path"])
                if spans[path] and spans[path][-1].until is None:
                    last = spans[path][-1]
                    spans[path][-1] = Named(path, last.bytes, last.since, version)
            elif "add" in action:
                path = unquote(action["add"]["path"])
                if not spans[path] or spans[path][-1].until is not None:
                    spans[path].append(Named(path, action["add"]["size"], version, None))
    return dict(spans)


def _cleaned(action: dict[str, Any], gone: set[str]) -> dict[str, Any]:
    for kind in ("add", "remove"):
        entry = action.get(kind)
        if entry and entry.get("stats") and unquote(entry["path"]) in gone:
            return {kind: {name: value for name, value in entry.items() if name != "stats"}}
    info = action.get("commitInfo")
    if info and "predicate" in info.get("operationParameters", {}):
        kept = {name: value for name, value in info["operationParameters"].items() if name != "predicate"}
        return {"commitInfo": {**info, "operationParameters": kept}}
    return action
