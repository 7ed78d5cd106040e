"""The image file, executed without a container engine: stage by stage, in roots that hold Debian and Python only."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "k8s" / "Containerfile"


def _host() -> list[str]:
    """Return the settings that let pip find packages on this machine."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True)
    own = {
        match
        for match in re.findall(r"((?:/[\w.-]+){2})", said.stdout)
        if Path(match).is_dir() and not match.startswith("/etc/")
    }
    return ["/etc/pip.conf", "/etc/xdg/pip", "/etc/ssl/certs", "/etc/resolv.conf", *sorted(own)]


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of an image file, continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def stages(found: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """The instructions of each stage, FROM first; what stands before the first FROM is left out."""
    made: list[list[tuple[str, str]]] = []
    for name, arguments in found:
        if name == "FROM":
            made.append([])
        if made:
            made[-1].append((name, arguments))
    return made


def base(folder: Path) -> Path:
    """A root with Debian and, at /usr/local, a Python with pip, as Python's own images have it."""
    packages = "python3,python3-venv,ca-certificates"
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["chroot", folder, "python3", "-m", "venv", "/usr/local"], check=True)
    return folder


def build(debian: Path, folder: Path, arguments: dict[str, str]) -> Path:
    """Execute the image file over copies of the root `debian`; the last stage's root."""
    roots: dict[str, Path] = {}
    root = folder
    for number, stage in enumerate(stages(instructions(CONTAINERFILE.read_text()))):
        root = folder / str(number)
        subprocess.run(["cp", "-a", debian, root], check=True)
        _stage(root, stage, roots, arguments)
        name = re.search(r" AS (\w+)$", stage[0][1])
        roots[name[1] if name else str(number)] = root
    return root


def _stage(root: Path, stage: list[tuple[str, str]], roots: dict[str, Path], arguments: dict[str, str]) -> None:
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    folder = "/"
    for name, value in stage:
        if name == "ARG":
            key, _, default = value.partition("=")
            environment[key] = arguments.get(key, default.strip('"'))
        elif name == "ENV":
            for key, text in re.findall(r"(\w+)=(\S+)", value):
                environment[key] = text.replace("$PATH", environment["PATH"])
        elif name == "WORKDIR":
            folder = value
            (root / value[1:]).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            _copy(root / folder[1:], value.split(), roots, root)
        elif name == "RUN":
            run(root, ["/bin/sh", "-c", f"cd {folder} && {value}"], environment, shared=True)


def _copy(folder: Path, words: list[str], roots: dict[str, Path], root: Path) -> None:
    if words[0].startswith("--from="):
        source = roots[words[0].removeprefix("--from=")] / words[1][1:]
        target = root / words[2][1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", source, target], check=True)
        return
    # The context is what .dockerignore lets through.
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *kept],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    for name in filter(None, tracked):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


def run(root: Path, command: list[str], environment: dict[str, str], *, shared: bool = False, user: int = 0) -> str:
    """Run a command in a root, in mounts of its own. Without `shared` the root is read-only but for /tmp."""
    mounts = ["set -e", f"mount --bind {root} {root}", f"mount -t proc proc {root}/proc"]
    mounts += [f"mount --bind /dev {root}/dev", f"mount -t tmpfs shm {root}/dev/shm" if not shared else "true"]
    if shared:
        for path in filter(os.path.exists, _host()):
            place = root / path[1:]
            mounts += [
                f"mkdir -p {place if os.path.isdir(path) else place.parent}",
                "true" if os.path.isdir(path) else f"touch {place}",
                f"mount --bind {os.path.realpath(path)} {place}",
            ]
    else:
        mounts += [f"mount -t tmpfs tmp {root}/tmp", f"mount -o remount,bind,ro {root}"]
    inner = f'exec /usr/sbin/chroot --userspec={user}:{user} {root} "$@"'
    script = "\n".join([*mounts, inner])
    done = subprocess.run(
        ["/usr/bin/unshare", "--mount", "sh", "-c", script, "sh", *command],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise AssertionError(f"{command}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout
