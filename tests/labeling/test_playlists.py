"""Files that name other files: nothing outside of them is read, by whatever way they come."""

import shutil
import struct
from pathlib import Path

import pytest

from labeling.decoding import open_video
from lake.catalog import ingest
from lake.errors import DecodeError
from lake.storage import Entry, StorageConfig, local_etag
from lake.tables import Lake
from lake.video_headers import ProbeError, prober
from tests.labeling.datasets import video
from tests.worldlake.command import worldlake


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A video outside of the source."""
    path = tmp_path / "elsewhere" / "private.mp4"
    return video(path, range(30))


def playlists(private: Path) -> dict[str, bytes]:
    """Contents, by name, that lead to a video; a relative one needs no permission to leave the folder."""
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{private}\n#EXT-X-ENDLIST\n".encode()
    concat = f"ffconcat version 1.0\nfile '{private}'\n".encode()
    moving = f"ffconcat version 1.0\nfile '../elsewhere/{private.name}'\n".encode()
    return {
        "clip.m3u8": hls,
        "clip.mp4": hls,
        "clip.ffconcat": concat,
        "concat.mp4": concat,
        "relative.mp4": moving,
        "reference.mov": _referring(private),
    }


def _referring(private: Path) -> bytes:
    """A QuickTime file without media, whose data reference is an alias of another file."""
    content = private.read_bytes()
    boxes = dict(_boxes(content))
    path = str(private).encode()
    pairs = struct.pack(">HH", 2, len(path)) + path + b"\0" * (len(path) % 2) + struct.pack(">HH", 0xFFFF, 0)
    alias = bytes(150) + pairs
    entry = _box(b"alis", bytes(4) + alias)
    return _box(b"ftyp", b"qt  \0\0\0\0qt  ") + _box(b"moov", _replaced(boxes[b"moov"], entry))


def _replaced(content: bytes, entry: bytes) -> bytes:
    parts = []
    for name, inner in _boxes(content):
        if name == b"dref":
            inner = struct.pack(">II", 0, 1) + entry
        elif name in (b"trak", b"mdia", b"minf", b"dinf"):
            inner = _replaced(inner, entry)
        parts.append(_box(name, inner))
    return b"".join(parts)


def _boxes(content: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 0
    while at < len(content):
        size = struct.unpack(">I", content[at : at + 4])[0]
        found.append((content[at + 4 : at + 8], content[at + 8 : at + size]))
        at += size
    return found


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + name + content


@pytest.fixture
def source(tmp_path: Path, private: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in playlists(private).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_no_decoder_follows_them(source: Path, decoder: str) -> None:
    for path in sorted(source.iterdir()):
        with pytest.raises(DecodeError):
            list(open_video(str(path), decoder).read(None))  # type: ignore[arg-type]


def test_no_header_is_read_through_them(source: Path) -> None:
    entries = [Entry(str(path), path.stat().st_size, local_etag(path)) for path in sorted(source.iterdir())]
    with prober(StorageConfig()) as probing:
        found = dict(zip((Path(entry.uri).name for entry in entries), probing.probe(entries), strict=True))
    # The header of the last is its own, and says so; its pictures are elsewhere.
    assert all(isinstance(one, ProbeError) for name, one in found.items() if name != "reference.mov"), found
    refused = found["clip.m3u8"], found["clip.ffconcat"], found["concat.mp4"]
    assert {one.error_type for one in refused} == {"UnknownFormat"}
    assert all("playlists are not followed" in one.message for one in refused)


def test_a_manifest_that_names_them_makes_failures(source: Path, tmp_path: Path) -> None:
    names = list(playlists(tmp_path / "elsewhere" / "private.mp4"))
    shutil.copy(tmp_path / "elsewhere" / "private.mp4", source / "own.mp4")
    lines = [f"{name},it moves" for name in [*names, "own.mp4"]]
    (source / "rows.csv").write_text("\n".join(["clip,text", *lines]))
    mapping = tmp_path / "mine.yaml"
    mapping.write_text("name: mine\nmanifest: 'rows\\.csv'\nvideo: '{clip}'\naction: '{text}'\n")
    code, said = worldlake("ingest", str(source), "--lake", str(tmp_path / "lake"), "--format", str(mapping))
    assert code == 0, said
    lake = Lake(str(tmp_path / "lake"))
    uris = lake.read("triples", ["uri"])["uri"].to_pylist()
    assert uris == [str(source / "own.mp4")]
    failed = [row for row in lake.read("failures", ["uri", "stage", "message"]).to_pylist() if row["stage"] == "decode"]
    assert {Path(row["uri"]).name for row in failed} == set(names)
    reasons = {Path(row["uri"]).name: row["message"] for row in failed}
    assert "playlists are not followed" in reasons["clip.m3u8"]


def test_an_ingest_lists_them_as_failures(source: Path, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    counts = ingest(lake, [str(source)])
    # Two are not named like videos; the header of the one with a reference is its own.
    assert (counts.listed, counts.failed, counts.skipped) == (4, 3, 2)
