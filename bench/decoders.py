"""Compare the decoders: correctness on every kind of file, speed of the sampling pass, memory over 1,000 files.

Run from the root of the repository: `taskset -c 0 python -m bench.decoders`. Writes bench/results/decoders.json.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import av
import cv2
import decord
import psutil
from rich.console import Console
from rich.table import Table

from labeling.decoding import Cut, Gap, open_video
from labeling.sampling import flow_picture, motion_between
from labeling.segments import sample_segment, sample_video
from labeling.settings import DecoderName, SamplingSettings
from lake.errors import ChildLost, DecodeError
from lake.isolation import Isolated
from tests.media import H264, VP9, Medium, ffmpeg, make_corpus, read_counter, real_clips

RESULTS = Path(__file__).parent / "results" / "decoders.json"
IMAGE_SIZE = 224
REPEATS = 3
FOOTAGE_FPS = 25
TIMEOUT_S = 1800
MEMORY_FILES = 1000
DECODERS: tuple[DecoderName, ...] = get_args(DecoderName)


def check(medium: Medium, decoder: DecoderName) -> dict[str, Any]:
    """Count the frames that show what their PTS says, and those that do not."""
    right = wrong = gaps = 0
    try:
        video = open_video(str(medium.path), decoder)
        time_base = Fraction(*video.time_base)
        for item in video.read(None):
            if isinstance(item, Gap | Cut):
                gaps += isinstance(item, Gap)
            elif read_counter(item.square(IMAGE_SIZE)) == medium.shown_at(item.pts * time_base):
                right += 1
            else:
                wrong += 1
    except DecodeError as error:
        return {"right": right, "wrong": wrong, "gaps": gaps, "refused": str(error)}
    return {"right": right, "wrong": wrong, "gaps": gaps}


def sample_all(path: str, decoder: DecoderName) -> tuple[int, int]:
    """Sample a whole video; the number of frames and of pairs."""
    segments = list(sample_video(path, SamplingSettings(decoder=decoder), IMAGE_SIZE))
    return sum(segment.frames for segment in segments), sum(len(segment.pairs) for segment in segments)


def _cpu_seconds(work: Callable[[], object]) -> float:
    """The least CPU time of all threads of this process over a few runs."""
    times = []
    for _ in range(REPEATS):
        before = time.process_time()
        work()
        times.append(time.process_time() - before)
    return min(times)


def speed(path: str, decoder: DecoderName) -> dict[str, float]:
    """CPU seconds of decoding alone and of the whole sampling pass over a video."""
    frames, pairs = sample_all(path, decoder)

    def decode() -> int:
        return sum(1 for _ in open_video(path, decoder).read(None))

    decoding, sampling = _cpu_seconds(decode), _cpu_seconds(lambda: sample_all(path, decoder))
    return {"frames": frames, "pairs": pairs, "decode_s": decoding, "sampling_s": sampling}


def stages(path: str) -> dict[str, float]:
    """CPU milliseconds of each step of sampling a frame of this video."""
    frames = [item for item in open_video(path, "pyav").read(None) if not isinstance(item, Gap | Cut)][:50]
    small = [flow_picture(frame.luma(1)) for frame in frames]
    squares = [frame.square(IMAGE_SIZE) for frame in frames]
    steps: dict[str, Callable[[], object]] = {
        "flow picture": lambda: [flow_picture(frame.luma(1)) for frame in frames],
        "flow and camera": lambda: [motion_between(a, b) for a, b in zip(small, small[10:] + small[:10], strict=True)],
        "square": lambda: [frame.square(IMAGE_SIZE) for frame in frames],
        "jpeg": lambda: [cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, 95]) for square in squares],
    }
    return {name: _cpu_seconds(step) / len(frames) * 1000 for name, step in steps.items()}


def memory(paths: list[str], decoder: DecoderName) -> dict[str, float]:
    """Resident megabytes after the first tenth of the files, at the end, and the most; a second of each is sampled."""
    settings = SamplingSettings(decoder=decoder, segment_seconds=1)
    process = psutil.Process()
    used: list[float] = []
    for number in range(MEMORY_FILES):
        with suppress(DecodeError):
            sample_segment(paths[number % len(paths)], None, settings, IMAGE_SIZE)
        used.append(process.memory_info().rss / 1e6)
    return {"after_tenth_mb": used[MEMORY_FILES // 10], "after_all_mb": used[-1], "most_mb": max(used)}


def apart(child: Isolated, function: Callable[..., Any], *args: object) -> Any:
    """The result of the call in the child process, or what became of it."""
    try:
        return child.call(function, *args)
    except (ChildLost, DecodeError) as error:
        return {"lost": str(error)}


def make_speed_files(folder: Path) -> dict[str, str]:
    """Ten to twenty seconds of real footage in common sizes and codecs."""
    cartoon, _, street = map(str, real_clips())
    files = {}
    for name, source, size, codec in (
        ("h264 1280x720", cartoon, "1280:720", H264),
        ("h264 640x360", street, "640:360", H264),
        ("h264 320x240", street, "320:240", H264),
        ("vp9 640x360", street, "640:360", VP9),
    ):
        path = folder / f"{name}.mkv"
        ffmpeg(
            "-stream_loop", "1", "-i", source, "-an", "-vf", f"scale={size}", "-pix_fmt", "yuv420p", *codec, str(path)
        )
        files[name] = str(path)
    return files


def measure(folder: Path) -> dict[str, Any]:
    """Everything, for every decoder; a second child for memory, so that it starts empty."""
    corpus = make_corpus(folder)
    files = make_speed_files(folder)
    healthy = [str(medium.path) for medium in corpus.values() if medium.outcome == "whole"]
    correctness: dict[str, Any] = {n: {"outcome": m.outcome, "frames": m.frames} for n, m in corpus.items()}
    speeds: dict[str, Any] = {name: {} for name in files}
    used: dict[str, Any] = {}
    for decoder in DECODERS:
        with Isolated(TIMEOUT_S) as child:
            for name, medium in corpus.items():
                correctness[name][decoder] = apart(child, check, medium, decoder)
            for name, path in files.items():
                speeds[name][decoder] = apart(child, speed, path, decoder)
        with Isolated(TIMEOUT_S) as child:
            used[decoder] = apart(child, memory, healthy, decoder)
    return {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "used": 1},
        "versions": {"av": av.__version__, "decord": decord.__version__, "opencv": cv2.__version__},
        "correctness": correctness,
        "speed": speeds,
        "stages_ms": {name: stages(path) for name, path in files.items()},
        "memory": used,
    }


def show(results: dict[str, Any]) -> None:
    """Print the figures as tables."""
    console = Console(width=140)
    table = Table("file", "has to be", "frames", *DECODERS, title="frames right / wrong / gaps")
    for name, row in results["correctness"].items():
        cells = [_verdict(row[decoder]) for decoder in DECODERS]
        table.add_row(repr(name)[1:-1], row["outcome"], str(row["frames"]), *cells)
    console.print(table)
    table = Table("video", "decoder", "decode alone", "sampling pass", "frames/s", "video h/h", "not decoding")
    for name, row in results["speed"].items():
        for decoder in DECODERS:
            if "lost" in (took := row[decoder]):
                table.add_row(name, decoder, took["lost"])
                continue
            decode, whole = took["decode_s"], took["sampling_s"]
            rate, realtime = f"{took['frames'] / whole:.0f}", f"{took['frames'] / FOOTAGE_FPS / whole:.1f}"
            table.add_row(
                name, decoder, f"{decode:.2f} s", f"{whole:.2f} s", rate, realtime, f"{1 - decode / whole:.0%}"
            )
    console.print(table)
    for section in ("stages_ms", "memory"):
        rows = results[section]
        table = Table(section, *next(iter(rows.values())))
        for name, row in rows.items():
            table.add_row(name, *(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
        console.print(table)


def _verdict(row: dict[str, Any]) -> str:
    if "lost" in row:
        return str(row["lost"])
    counts = f"{row['right']} / {row['wrong']} / {row['gaps']}"
    return f"refused: {row['refused']}" if "refused" in row else counts


def main() -> None:
    """Measure, write the figures and print them."""
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(Path(scratch))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    show(measured)


if __name__ == "__main__":
    # A child process does not import the main module: it finds functions by the name that others import.
    from bench import decoders

    decoders.main()
