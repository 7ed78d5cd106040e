"""Throughput of labeling: worldlake, a plain program and a plain Ray pipeline on the same clips in the same run.

    python -m bench.labeling [--clips 200] [--repeats 3] [--out bench/results/labeling.json]

Every contender samples the same frame pairs with the same code (the benchmark fails if one has other pairs), asks the
builtin model for an action and the two other scores in batches of 64, with as many model processes as there are cores,
and writes the pairs with their images. They take turns, and the median of the repeats counts. Each labels five times as
many videos as well (the same clips under other names, once): what each further video costs is the difference, without
start-up. Also measured: each stage alone on one core, which gives the CPU-seconds that the work itself needs; their sum
over cores x wall time is the share of the machine that went into the work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

FIRST_SEED = 7_000_000
IMAGE_SIZE = 64
COPIES = 5
BATCH = 64
CONTENDERS = ("worldlake", "plain_program", "ray_pipeline")


@dataclass
class Measured:
    """One contender, as a whole process: start-up included."""

    name: str
    wall_s: float
    cpu_s: float
    peak_gib: float
    pairs: int
    digest: str
    """Of the clips and times of all pairs."""


def main() -> None:
    """Measure and print; `--out` keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3, help="the contenders in turn, so often; medians are shown")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--contender", choices=[*CONTENDERS, "stages"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(globals()[f"run_{arguments.contender}"](arguments.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-labeling-") as folder:
        _report(Path(folder), arguments.clips, arguments.repeats, arguments.out)


def _report(folder: Path, clips: int, repeats: int, out: Path | None) -> None:
    from sample_world.clips import write_folder

    videos = folder / "videos"
    write_folder(videos, range(FIRST_SEED, FIRST_SEED + clips))
    (videos / "ground_truth.json").unlink()
    runs = _take_turns(folder, repeats)
    median = {name: sorted(found, key=lambda one: one.wall_s)[len(found) // 2] for name, found in runs.items()}
    larger = {name: found[0] for name, found in _take_turns(_copied(videos, folder / "many"), 1).items()}
    further = {name: (larger[name].wall_s - median[name].wall_s) / (COPIES - 1) for name in CONTENDERS}
    stages = _child("stages", folder)
    shares = _shares(clips, stages, median["worldlake"], larger["worldlake"], further["worldlake"])
    _print(clips, median, further, stages, shares)
    if out:
        cores = os.cpu_count() or 1
        figures: dict[str, Any] = {"clips": clips, "cores": cores, "machine": platform.machine(), "repeats": repeats}
        figures |= {"batch": BATCH, "model_processes": cores, "pairs": median["worldlake"].pairs}
        figures["further_s"] = {name: round(seconds, 1) for name, seconds in further.items()}
        cpu = {name: (larger[name].cpu_s - median[name].cpu_s) / (COPIES - 1) for name in CONTENDERS}
        figures["further_cpu_s"] = {name: round(seconds, 1) for name, seconds in cpu.items()}
        figures |= {"stages_cpu_s": stages, "shares": shares}
        figures["contenders"] = {name: [asdict(one) for one in found] for name, found in runs.items()}
        figures["larger"] = {name: asdict(one) for name, one in larger.items()}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1) + "\n")


def _take_turns(folder: Path, repeats: int) -> dict[str, list[Measured]]:
    """Runs of every contender; ends the benchmark where they did not label the same pairs."""
    runs: dict[str, list[Measured]] = {name: [] for name in CONTENDERS}
    for _ in range(repeats):
        for name in CONTENDERS:
            runs[name].append(_measure(name, folder))
            print(f"{runs[name][-1]}", file=sys.stderr, flush=True)
    if len({one.digest for found in runs.values() for one in found}) > 1:
        raise SystemExit(f"the contenders did not label the same pairs: {runs}")
    return runs


def _shares(
    clips: int, stages: dict[str, float], ours: Measured, larger: Measured, further_s: float
) -> dict[str, float]:
    """Return the share of cores x time that the stages used, with and without start-up."""
    cores, own_s = os.cpu_count() or 1, sum(stages.values())
    return {
        f"work, {clips} clips, start-up included": own_s / (cores * ours.wall_s),
        f"work, {clips * COPIES} videos, start-up included": COPIES * own_s / (cores * larger.wall_s),
        "work, of every further video": own_s / (cores * further_s),
        "the model, of every further video": stages["model"] / (cores * further_s),
    }


def _print(
    clips: int,
    measured: dict[str, Measured],
    further: dict[str, float],
    stages: dict[str, float],
    shares: dict[str, float],
) -> None:
    from sample_world.clips import FPS

    cores, pairs, hours = os.cpu_count() or 1, measured["worldlake"].pairs, clips * 250 / FPS / 3600
    print(f"\n{clips} clips of 10 s on {cores} cores ({platform.machine()}), {pairs} pairs\n")
    print(f"{'':14}{'wall s':>9}{'pairs/s':>9}{'video h/h':>11}{'CPU s':>8}{'peak GiB':>10}{'further s':>11}")
    for name, one in measured.items():
        print(
            f"{name:14}{one.wall_s:9.1f}{pairs / one.wall_s:9.1f}{hours / one.wall_s * 3600:11.1f}"
            f"{one.cpu_s:8.1f}{one.peak_gib:10.2f}{further[name]:11.1f}"
        )
    print("\nstages alone, CPU-seconds on one core for the same pairs (their ceiling in pairs/s on all cores):")
    for name, seconds in stages.items():
        print(f"  {name:22}{seconds:8.1f}   {pairs / seconds * cores:8.1f}")
    for name, share in shares.items():
        print(f"share of {cores} cores x time that is {name}: {share:.0%}")


def _copied(videos: Path, folder: Path) -> Path:
    """A folder whose `videos` are those of another, several times."""
    (folder / "videos").mkdir(parents=True)
    for clip in videos.glob("*.mp4"):
        for copy in range(COPIES):
            os.link(clip, folder / "videos" / f"{clip.stem}-{copy}.mp4")
    return folder


def _measure(name: str, folder: Path) -> Measured:
    """Run a contender as a process of its own; memory is the sum over its process tree, five times a second."""
    peak, ended = [0], threading.Event()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.labeling", "--contender", name, "--folder", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    cpu: dict[int, float] = {}

    def watch() -> None:
        while not ended.wait(0.2):
            tree = session(process.pid)
            for member, times in tree.items():
                cpu[member.pid] = max(cpu.get(member.pid, 0), times.user + times.system)
            peak[0] = max(peak[0], sum(pss(member) for member in tree))

    watcher = threading.Thread(target=watch, daemon=True)
    started = time.monotonic()
    watcher.start()
    output = process.communicate()[0]
    wall = time.monotonic() - started
    ended.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{name} failed with exit code {process.returncode}")
    told = json.loads(output.splitlines()[-1])
    return Measured(name, wall, sum(cpu.values()), peak[0] / 2**30, **told)


def session(leader: int) -> dict[psutil.Process, Any]:
    """The processes that one has started, with their CPU times."""
    found = {}
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                found[process] = process.cpu_times()
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def pss(process: psutil.Process) -> int:
    """Its memory in bytes; pages that several processes share (the object store, libraries) count once in a sum."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def _child(contender: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.labeling", "--contender", contender, "--folder", str(folder)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _videos(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / "videos").glob("*.mp4"))


def run_worldlake(folder: Path) -> dict[str, Any]:
    """`worldlake ingest` and `worldlake label`."""
    from lake.catalog import ingest
    from lake.tables import Lake
    from worldlake.api import label

    lake = Lake(tempfile.mkdtemp(dir=folder))
    ingest(lake, [str(folder / "videos")])
    summary = label(lake)
    assert summary.status == "finished"
    pairs = [
        (row["uri"], row["obs_pts"], row["next_pts"])
        for table in ("triples", "rejections")
        for row in lake.read(table, ["uri", "obs_pts", "next_pts"]).to_pylist()
    ]
    return _told(pairs)


def _told(pairs: Iterable[tuple[str, int, int]]) -> dict[str, Any]:
    """Return a contender's statement of its pairs, each of a clip and two times."""
    named = sorted(f"{Path(path).name} {obs} {after}" for path, obs, after in pairs)
    return {"pairs": len(named), "digest": hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]}


def run_plain_program(folder: Path) -> dict[str, Any]:
    """Run the simplest program: a process for each core, and a Parquet file for each list of videos."""
    paths, cores = _videos(folder), os.cpu_count() or 1
    lists = [paths[start : start + 25] for start in range(0, len(paths), 25)]
    out = Path(tempfile.mkdtemp(dir=folder))
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), _load) as pool:
        jobs = [pool.submit(_label_list, one, out / f"{number}.parquet") for number, one in enumerate(lists)]
        return _told([pair for job in jobs for pair in job.result()])


_loaded: list[Any] = []


def _load() -> None:
    from models.loading import load_dynamics
    from models.settings import ModelSettings

    _loaded.append(load_dynamics(ModelSettings(batch_size=BATCH)))


def _label_list(paths: list[str], out: Path) -> list[tuple[str, int, int]]:
    import pandas as pd

    from labeling.settings import SamplingSettings

    sampled = [(path, pair) for path in paths for pair in _pairs(path, SamplingSettings())]
    rows = []
    for start in range(0, len(sampled), BATCH):
        some = sampled[start : start + BATCH]
        labels = _label(_loaded[0], [pair for _, pair in some])
        rows += [_row(path, pair) | label for (path, pair), label in zip(some, labels, strict=True)]
    pd.DataFrame(rows).to_parquet(out)
    return [(row["path"], row["obs_pts"], row["next_pts"]) for row in rows]


def run_ray_pipeline(folder: Path) -> dict[str, Any]:
    """A plain Ray pipeline: paths, `flat_map` to pairs, `map_batches` with the model, `write_delta`."""
    import pandas as pd
    import ray
    from deltalake import DeltaTable
    from ray.data import ActorPoolStrategy

    from cluster.connect import start_ray
    from labeling.settings import SamplingSettings

    start_ray()
    cores = os.cpu_count() or 1

    class Model:
        def __init__(self) -> None:
            _load()

        def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
            pairs = list(batch.itertuples())
            return pd.concat([batch.reset_index(drop=True), pd.DataFrame(_label(_loaded[0], pairs))], axis=1)

    settings, paths = SamplingSettings(), [{"path": path} for path in _videos(folder)]
    dataset = (
        ray.data.from_items(paths, override_num_blocks=8 * cores)
        .flat_map(lambda row: [_row(row["path"], pair) for pair in _pairs(row["path"], settings)], num_cpus=0.4)
        # As in worldlake, both stages share all cores.
        .map_batches(
            Model, batch_format="pandas", batch_size=BATCH, compute=ActorPoolStrategy(size=cores), num_cpus=0.4
        )
    )
    out = tempfile.mkdtemp(dir=folder)
    dataset.write_delta(out)
    rows = DeltaTable(out).to_pyarrow_dataset().to_table(columns=["path", "obs_pts", "next_pts"]).to_pylist()
    return _told([(row["path"], row["obs_pts"], row["next_pts"]) for row in rows])


def _row(path: str, pair: Any) -> dict[str, Any]:
    images = {"obs": pair.obs, "next_obs": pair.next_obs}
    return {"path": path, "obs_pts": pair.obs_pts, "next_pts": pair.next_pts, **images}


def _pairs(path: str, settings: Any) -> list[Any]:
    from labeling.segments import sample_video

    return [pair for segment in sample_video(path, settings, IMAGE_SIZE) for pair in segment.pairs]


def _label(model: Any, pairs: list[Any]) -> list[dict[str, Any]]:
    from labeling.images import decode_images

    obs = decode_images([pair.obs for pair in pairs])
    next_obs = decode_images([pair.next_obs for pair in pairs])
    found = model.annotate(obs, next_obs)
    actions = [one.action for one in found]
    backward, still = model.score(next_obs, obs, actions), model.score(obs, obs, actions)
    return [
        {"action": one.action, "confidence": one.mean_logprob, "backward": float(b), "still": float(s)}
        for one, b, s in zip(found, backward, still, strict=True)
    ]


def run_stages(folder: Path) -> dict[str, float]:
    """CPU-seconds of each stage alone in one thread of one process, for all pairs of all videos."""
    from labeling.policy import load_policy
    from labeling.settings import SamplingSettings
    from labeling.stream import LABELED, block
    from labeling.verify import Verify
    from labeling.write import Write
    from lake.tables import Lake
    from models.loading import load_dynamics
    from models.settings import ModelSettings

    settings, pairs = SamplingSettings(), []

    def sample() -> None:
        for path in _videos(folder):
            pairs.extend(_pairs(path, settings))

    sampled = _cpu_s(sample)
    model, labels = load_dynamics(ModelSettings()), []

    def label() -> None:
        for start in range(0, len(pairs), BATCH):
            labels.extend(_label(model, pairs[start : start + BATCH]))

    labeled = _cpu_s(label)
    lake = Lake(tempfile.mkdtemp(dir=folder))
    lake.create()
    write = Write(lake, "run", "labeler", "policy", "pyav")
    verify = Verify(load_policy("builtin"))

    def store() -> None:
        for start in range(0, len(pairs), 64):
            rows = [
                {
                    "triple_id": str(number),
                    "video_id": "v",
                    "obs": pairs[number].obs,
                    "next_obs": pairs[number].next_obs,
                    "action": labels[number]["action"],
                    "confidence": labels[number]["confidence"],
                }
                for number in range(start, min(start + 64, len(pairs)))
            ]
            write(verify(block(rows, LABELED)))

    return {"decode, flow, encode": sampled, "model": labeled, "verify, write": _cpu_s(store)}


def _cpu_s(work: Callable[[], None]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


if __name__ == "__main__":
    main()
