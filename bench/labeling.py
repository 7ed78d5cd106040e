"""Throughput of labelling: worldlake, a plain loop and the obvious Ray pipeline on the same clips in the same run.

    python -m bench.labeling [--clips 200] [--out bench/results/labeling.json]

Every contender samples the same frame pairs, asks the builtin model for an action and the two other scores, and writes
the pairs with their images. Also measured: each stage alone on one core, which gives the CPU-seconds that the work
itself needs; their sum over cores x wall time is the share of the machine that went into the work. worldlake labels a
lake of five times as many videos as well (the same clips under other names): what each further video costs is the
difference, without the start-up of Ray and of the models.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

FIRST_SEED = 7_000_000
IMAGE_SIZE = 64
COPIES = 5
CONTENDERS = ("worldlake", "plain_loop", "ray_pipeline")


@dataclass
class Measured:
    """One contender, as a whole process: start-up included."""

    name: str
    wall_s: float
    cpu_s: float
    peak_gib: float
    pairs: int


def main() -> None:
    """Measure and print; `--out` keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1, help="the contenders in turn, so often; medians are shown")
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
    from models.sample_world import FPS, write_folder

    videos = folder / "videos"
    write_folder(videos, range(FIRST_SEED, FIRST_SEED + clips))
    (videos / "ground_truth.json").unlink()
    hours = clips * 250 / FPS / 3600
    runs: dict[str, list[Measured]] = {name: [] for name in CONTENDERS}
    many = _copied(videos, folder / "many")
    for _ in range(repeats):
        for name in CONTENDERS:
            runs[name].append(_measure(name, folder))
            print(f"{runs[name][-1]}", file=sys.stderr, flush=True)
    measured = {name: sorted(found, key=lambda one: one.wall_s)[len(found) // 2] for name, found in runs.items()}
    larger = _measure("worldlake", many)
    print(f"{larger}", file=sys.stderr, flush=True)
    stages = _child("stages", folder)
    cores = os.cpu_count() or 1
    own_s = sum(stages.values())
    ours = measured["worldlake"]
    print(f"\n{clips} clips of 10 s on {cores} cores ({platform.machine()}), {ours.pairs} pairs\n")
    print(f"{'':14}{'wall s':>9}{'pairs/s':>9}{'video h/h':>11}{'CPU s':>8}{'peak GiB':>10}{'x worldlake':>13}")
    for one in measured.values():
        print(
            f"{one.name:14}{one.wall_s:9.1f}{one.pairs / one.wall_s:9.1f}{hours / one.wall_s * 3600:11.1f}"
            f"{one.cpu_s:8.1f}{one.peak_gib:10.2f}{one.wall_s / ours.wall_s:13.2f}"
        )
    print("\nstages alone, CPU-seconds on one core for the same pairs (their ceiling in pairs/s on all cores):")
    for name, seconds in stages.items():
        print(f"  {name:22}{seconds:8.1f}   {ours.pairs / seconds * cores:8.1f}")
    further_s = (larger.wall_s - ours.wall_s) / (COPIES - 1)
    shares = {
        f"work, {clips} clips, start-up included": own_s / (cores * ours.wall_s),
        f"work, {clips * COPIES} videos, start-up included": COPIES * own_s / (cores * larger.wall_s),
        "work, of every further video": own_s / (cores * further_s),
        "the model, of every further video": stages["model"] / (cores * further_s),
    }
    print(f"every further {clips} clips: {further_s:.1f} s, {ours.pairs / further_s:.1f} pairs/s")
    for name, share in shares.items():
        print(f"share of {cores} cores x time that is {name}: {share:.0%}")
    if out:
        figures: dict[str, Any] = {"clips": clips, "cores": cores, "machine": platform.machine()}
        figures |= {"stages_cpu_s": stages, "shares": shares, "larger": asdict(larger)}
        figures["contenders"] = {name: [asdict(one) for one in found] for name, found in runs.items()}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1) + "\n")


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
    return Measured(name, wall, sum(cpu.values()), peak[0] / 2**30, told["pairs"])


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
    from labeling.labeler import LabelerSettings
    from lake.catalog import ingest
    from lake.tables import Lake
    from worldlake.label import label_command

    lake = Lake(tempfile.mkdtemp(dir=folder))
    ingest(lake, [str(folder / "videos")])
    summary = label_command(lake, LabelerSettings(), "builtin", {})
    assert summary.status == "finished"
    return {"pairs": summary.counts["accepted"] + summary.counts["rejected"]}


def run_plain_loop(folder: Path) -> dict[str, Any]:
    """What one writes first: a loop over videos, one pair at a time, a data frame at the end."""
    import pandas as pd

    from labeling.sampling import SamplingSettings
    from models.loading import ModelSettings, load_dynamics

    model = load_dynamics(ModelSettings(batch_size=1))
    settings = SamplingSettings(decoder="decord")
    rows = []
    for path in _videos(folder):
        for pair in _pairs(path, settings):
            rows.append({"path": path, **_label(model, [pair])[0], "obs": pair.obs, "next_obs": pair.next_obs})
    pd.DataFrame(rows).to_parquet(folder / "plain.parquet")
    return {"pairs": len(rows)}


def run_ray_pipeline(folder: Path) -> dict[str, Any]:
    """The obvious Ray pipeline: `read_videos`, frames grouped by video, `map_batches` with the model, `write_delta`."""
    import numpy as np
    import pandas as pd
    import ray
    from ray.data import ActorPoolStrategy

    from labeling.sampling import SamplingSettings
    from worldlake.label import start_ray

    start_ray()

    def select(frames: pd.DataFrame) -> pd.DataFrame:
        frames = frames.sort_values("frame_index")
        return pd.DataFrame(_select(np.stack(list(frames["frame"])), SamplingSettings()))

    class Model:
        def __init__(self) -> None:
            from models.loading import ModelSettings, load_dynamics

            self.model = load_dynamics(ModelSettings())

        def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
            pairs = [_Images(row.obs, row.next_obs) for row in batch.itertuples()]
            return pd.concat([batch.reset_index(drop=True), pd.DataFrame(_label(self.model, pairs))], axis=1)

    dataset = (
        ray.data.read_videos(_videos(folder), include_paths=True)
        .groupby("path")
        .map_groups(select, batch_format="pandas")
        .map_batches(Model, batch_format="pandas", batch_size=16, compute=ActorPoolStrategy(size=1), num_cpus=1)
    )
    out = tempfile.mkdtemp(dir=folder)
    dataset.write_delta(out)
    from deltalake import DeltaTable

    return {"pairs": DeltaTable(out).to_pyarrow_dataset().count_rows()}


@dataclass(frozen=True)
class _Images:
    obs: bytes
    next_obs: bytes


def _pairs(path: str, settings: Any) -> list[Any]:
    from labeling.segments import sample_video

    return [pair for segment in sample_video(path, settings, IMAGE_SIZE) for pair in segment.pairs]


def _select(frames: Any, settings: Any) -> list[dict[str, Any]]:
    """The same selection of frame pairs from a whole video in memory, uint8 (frames, height, width, 3)."""
    import cv2

    from labeling.sampling import choose, flow_picture, motion_between

    candidates = list(range(0, len(frames), settings.score_stride))
    small = [flow_picture(cv2.cvtColor(frames[index], cv2.COLOR_RGB2GRAY)) for index in candidates]
    scores = [0.0, *(motion_between(small[i], small[i + 1])[0] for i in range(len(small) - 1))]
    kept = choose(scores, candidates, settings.frames_per_clip, settings.min_interval)
    images = []
    for index in kept:
        square = cv2.resize(frames[candidates[index]], (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)
        images.append(cv2.imencode(".jpg", cv2.cvtColor(square, cv2.COLOR_RGB2BGR))[1].tobytes())
    return [{"obs": images[i], "next_obs": images[i + 1]} for i in range(len(images) - 1)]


def _label(model: Any, pairs: list[Any]) -> list[dict[str, Any]]:
    from labeling.annotate import decode_images

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
    from labeling.sampling import SamplingSettings
    from labeling.stream import LABELLED, block
    from labeling.verify import Verify
    from labeling.write import Write
    from lake.tables import Lake
    from models.loading import ModelSettings, load_dynamics

    settings, pairs = SamplingSettings(), []

    def sample() -> None:
        for path in _videos(folder):
            pairs.extend(_pairs(path, settings))

    sampled = _cpu_s(sample)
    model, labels = load_dynamics(ModelSettings()), []

    def label() -> None:
        for start in range(0, len(pairs), 16):
            labels.extend(_label(model, pairs[start : start + 16]))

    labelled = _cpu_s(label)
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
            write(verify(block(rows, LABELLED)))

    return {"decode, flow, encode": sampled, "model": labelled, "verify, write": _cpu_s(store)}


def _cpu_s(work: Callable[[], None]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


if __name__ == "__main__":
    main()
