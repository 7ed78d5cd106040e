"""Small data sets in the layout in which the real ones are published. Every picture shows its number."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
from PIL import Image

from tests.media import picture

FPS = 25


def image(path: Path, number: int, **options: Any) -> Path:
    """A picture as PNG or JPEG, by the name of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number)).save(path, **options)
    return path


def video(path: Path, numbers: Sequence[int], codec: str = "libx264") -> Path:
    """Pictures as a video of 25 frames/s, by default H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format={".webm": "webm", ".avi": "avi"}.get(path.suffix, "mp4")) as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height, stream.width = picture(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        for number in numbers:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_json(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def aurora(root: Path) -> Path:
    """The training set: one usable row in each of the four parts, and one of a list of instructions."""
    parts = {
        "magicbrush": ("0-input.png", "0-output.png", {"mask": "0-mask.png", "img_id": "327726"}),
        "ag": ("1K0SU.mp4_4_left.png", "1K0SU.mp4_4_right.png", {}),
        "something": ("100/first.jpg", "100/last.jpg", {"id": "100"}),
        "kubric": ("closer/6566/image0.jpg", "closer/6566/image1.jpg", {}),
    }
    for number, (part, (before, after, more)) in enumerate(parts.items()):
        folder = "frames" if part == "something" else "images"
        names = [f"data/{part}/{folder}/{name}" for name in (before, after)]
        for offset, name in enumerate(names):
            image(root / name, 10 * number + offset)
        instruction: Any = f"do  thing {number}\n"
        if part == "kubric":
            instruction = ["", f"do thing {number}", "another way to say it"]
        row = {"instruction": instruction, "input": names[0], "output": names[1], **more}
        write_json(root / f"data/{part}/train.json", [row])
    return root


def aurora_bench(root: Path) -> Path:
    """The benchmark: one row for each of its eight tasks, of which three have no output."""
    rows = []
    for number, task in enumerate(("magicbrush", "ag", "something", "whatsup", "kubric", "clevr", "emu", "epic")):
        row = {"prompt": f"do task {task}", "task": task, "input": f"data/{task}/images/{number}-in.png"}
        image(root / row["input"], 10 * number)
        if task not in ("clevr", "emu", "epic"):
            row["output"] = f"data/{task}/images/{number}-out.png"
            image(root / row["output"], 10 * number + 1)
        rows.append(row)
    write_json(root / "test.json", rows)
    return root


def something(root: Path) -> Path:
    """Something-Something v2: a clip for each split, of 12 frames."""
    for number, (name, split) in enumerate((("78687", "train"), ("74225", "validation"), ("1420", "test"))):
        first = 100 * number
        video(root / f"20bn-something-something-v2/{name}.webm", range(first, first + 12), "libvpx-vp9")
        row = {"id": name}
        if split != "test":
            row |= {
                "label": f"holding potato next to cup {number}",
                "template": "Holding [something] next to [something]",
                "placeholders": ["potato", f"cup {number}"],
            }
        write_json(root / f"labels/{split}.json", [row])
    write_json(root / "labels/labels.json", {"Holding something next to something": "0"})
    return root


def epic_row(video_id: str, start: str, stop: str, narration: str, number: int = 0) -> dict[str, Any]:
    """A line of the annotations of EPIC-Kitchens-100."""
    return {
        "narration_id": f"{video_id}_{number}",
        "participant_id": video_id[:3],
        "video_id": video_id,
        "narration_timestamp": start,
        "start_timestamp": start,
        "stop_timestamp": stop,
        "start_frame": 1,
        "stop_frame": 2,
        "narration": narration,
        "verb": narration.split()[0],
        "verb_class": 0,
        "noun": "door",
        "noun_class": 3,
        "all_nouns": "['door']",
        "all_noun_classes": "[3]",
    }


def epic_kitchens(root: Path) -> Path:
    """EPIC-Kitchens-100: a video of 4 s to train on, with two segments that overlap, and one of 1 s to validate."""
    video(root / "EPIC-KITCHENS/P01/videos/P01_01.MP4", range(100))
    video(root / "EPIC-KITCHENS/P01/videos/P01_11.MP4", range(200, 225))
    annotations = root / "epic-kitchens-100-annotations"
    write_csv(
        annotations / "EPIC_100_train.csv",
        [
            epic_row("P01_01", "00:00:01.00", "00:00:02.01", "turn on light"),
            epic_row("P01_01", "00:00:00.14", "00:00:01.20", "open door, slowly", 1),
        ],
    )
    write_csv(annotations / "EPIC_100_validation.csv", [epic_row("P01_11", "00:00:00.00", "00:00:01.50", "take plate")])
    return root


def kinetics(root: Path) -> Path:
    video(root / "train/playing harp/abcdefghijk_000001_000011.mp4", range(5))
    video(root / "val/abseiling/ABCDEFGHIJ-_000021_000031.mp4", range(5, 10))
    return root


def ucf101(root: Path) -> Path:
    for name in ("v_ApplyEyeMakeup_g01_c01", "v_ApplyEyeMakeup_g01_c02"):
        video(root / f"UCF-101/ApplyEyeMakeup/{name}.avi", range(int(name[-1]), 10), "mpeg4")
    return root


def moments(root: Path) -> Path:
    video(root / "training/blocking/getty-karate-video-id635808620_4.mp4", range(5))
    video(root / "validation/dancing/yt-5of6ffo6-Bw_205.mp4", range(5, 10))
    return root
