"""Find problems of this machine that would stop a run, and fixes."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from lake.errors import WorldlakeError, one_line
from lake.log import stored
from lake.repair import check
from lake.schemas import TABLES
from lake.storage import StorageConfig, is_s3
from lake.tables import Lake
from worldlake.extras import EXTRAS, absent, install

# A worker process with torch, a decode process and its share of the object store.
_MEMORY_PER_CORE = 2 << 30
_MIN_DISK = 10 << 30
_MIN_FILES = 4096
_INSTALL = "pip install -c constraints.txt -e ."


@dataclass(frozen=True)
class Finding:
    """One look at the machine. `level` is fine, note (slower or less) or stops (a run would fail)."""

    level: str
    what: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class _Check:
    """A look that may raise, and what to try then."""

    what: str
    look: Callable[[], Iterator[Finding]]
    remedy: str


def examine(lake: str | None, storage: StorageConfig) -> list[Finding]:
    """Look at everything; a check never raises."""
    checks = [
        _Check("python", _python, "install Python 3.11 or newer"),
        _Check("packages", _packages, _INSTALL),
        _Check("extras", _extras, _INSTALL),
        _Check("memory", _memory, "mount /proc and /dev/shm"),
        _Check("disk", _disk, "set TMPDIR to a folder that can be written"),
        _Check("open files", _files, "ulimit -n 65536"),
        _Check("gpu", _gpu, _INSTALL),
        _Check("ray", _ray, "start the cluster, or correct or unset RAY_ADDRESS"),
    ]
    if lake is not None:
        remedy = "check the path and its permissions; for S3 those of the credentials, and AWS_ENDPOINT_URL"
        checks.append(_Check("lake", lambda: _lake(lake, storage), remedy))
    return [finding for check in checks for finding in _findings(check)]


def _findings(check: _Check) -> Iterator[Finding]:
    try:
        yield from check.look()
    except WorldlakeError as error:
        # The line names its remedy.
        yield Finding("stops", check.what, one_line(error, 300))
    except ImportError as error:
        yield Finding("stops", check.what, one_line(error, 300), _INSTALL)
    except Exception as error:
        yield Finding("stops", check.what, f"{type(error).__name__}: {one_line(error, 300)}", check.remedy)


def _python() -> Iterator[Finding]:
    yield Finding("fine", "python", sys.version.split()[0])


def _packages() -> Iterator[Finding]:
    names = ("ray", "deltalake", "transformers", "torch", "av")
    for name in names:
        import_module(name)
    yield Finding("fine", "packages", ", ".join(f"{name} {version(name)}" for name in names))
    import av
    import torch

    codecs = {name for name in ("h264", "hevc", "vp9", "av1", "mpeg4") if name not in av.codecs_available}
    if codecs:
        yield Finding(
            "note", "codecs", f"FFmpeg in PyAV lacks {', '.join(sorted(codecs))}", "reinstall av from a wheel"
        )
    if torch.get_num_threads() > 1 and "OMP_NUM_THREADS" not in os.environ:
        yield Finding("note", "threads", f"torch would use {torch.get_num_threads()} threads in each process",
                      "export OMP_NUM_THREADS=1 when several workers share the cores")  # fmt: skip


def _extras() -> Iterator[Finding]:
    lacking = absent()
    if lacking:
        commands = ", ".join(command for command, extra in EXTRAS.items() if extra in lacking)
        found = f"not installed: {', '.join(lacking)} (for the commands {commands})"
        yield Finding("note", "extras", found, install(*lacking))
    else:
        yield Finding("fine", "extras", f"{', '.join(dict.fromkeys(EXTRAS.values()))} are installed")


def _memory() -> Iterator[Finding]:
    cores = os.cpu_count() or 1
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{total / 2**30:.1f} GiB for {cores} cores"
    if total < cores * _MEMORY_PER_CORE:
        yield Finding("note", "memory", found, "use fewer --decode-workers and --label-workers, about 2 GiB each")
    else:
        yield Finding("fine", "memory", found)
    shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").exists() else None  # noqa: S108 - where Ray keeps objects
    if shm and shm.total < total * 0.25:
        yield Finding("note", "shared memory", f"{shm.total / 2**30:.1f} GiB; Ray falls back to disk",
                      "give the container more: --shm-size=8g, or an emptyDir with medium Memory")  # fmt: skip


def _disk() -> Iterator[Finding]:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB free in {folder} (videos from S3 are stored here while they are decoded)"
    if free < _MIN_DISK:
        yield Finding("note", "disk", found, "set TMPDIR to a larger disk")
    else:
        yield Finding("fine", "disk", found)
    if not os.access(folder, os.W_OK):
        yield Finding("stops", "disk", f"{folder} cannot be written", "set TMPDIR to a folder that can")


def _files() -> Iterator[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _MIN_FILES:
        yield Finding("note", "open files", f"limit {soft}", f"ulimit -n {min(hard, 65536)}")
    else:
        yield Finding("fine", "open files", f"limit {soft}")


def _gpu() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        yield Finding("fine", "gpu", names)
    elif Path("/dev/nvidiactl").exists():
        yield Finding("stops", "gpu", "there is one, and torch cannot use it", "install the CUDA build of torch")
    else:
        yield Finding("note", "gpu", "none: models run on the CPU", "fine for builtin; a 3B model needs one")


def _ray() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield Finding("fine", "ray", "starts on this machine; set RAY_ADDRESS to use a cluster")
        return
    from cluster.connect import start_ray

    start_ray()
    import ray

    yield Finding("fine", "ray", f"{len(ray.nodes())} nodes and {ray.cluster_resources()} at {address}")


def _lake(uri: str, storage: StorageConfig) -> Iterator[Finding]:
    try:
        lake = Lake(uri, storage)
        if not is_s3(lake.uri) and not Path(lake.uri).is_dir():
            yield _new_folder(Path(lake.uri))
            return
        lake.storage.check(lake.uri)
        filesystem, root = lake.storage.filesystem(lake.uri)
        probe = f"{root}/doctor.tmp"
        with filesystem.open_output_stream(probe) as out:
            out.write(b"worldlake doctor")
        filesystem.delete_file(probe)
        yield Finding("fine", "lake", f"{lake.uri} can be read and written")
        yield from _damage(lake)
    except WorldlakeError as error:
        yield Finding("stops", "lake", str(error))
    except OSError as error:
        whose = "the credentials" if is_s3(uri) else "the folder"
        yield Finding(
            "stops", "lake", f"{uri} cannot be written: {one_line(error, 300)}", f"check the permissions of {whose}"
        )


def _damage(lake: Lake) -> Iterator[Finding]:
    if not any(stored(lake, name) for name in TABLES):
        return
    found = check(lake)
    for damage in found:
        yield Finding("stops", "lake", damage.text(), f"worldlake repair --lake {lake.uri}")
    if not found:
        yield Finding("fine", "lake", "nothing in it is damaged")


def _new_folder(folder: Path) -> Finding:
    if folder.exists():
        return Finding("stops", "lake", f"{folder} is a file", "name a folder")
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    made: list[Path] = []
    try:
        for path in reversed(missing):
            path.mkdir()
            made.append(path)
    except OSError as error:
        found = f"{folder} cannot be created: {one_line(error, 300)}"
        return Finding("stops", "lake", found, "choose a folder that you can write")
    finally:
        for path in reversed(made):
            path.rmdir()
    return Finding("fine", "lake", f"{folder} is not there yet and can be created")
