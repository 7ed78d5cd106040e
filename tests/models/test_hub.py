"""Models of Hugging Face, whose hub stands behind its client's HTTP transport."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import huggingface_hub
import pytest

from lake.errors import ModelRefused
from models.loading import resolve
from models.settings import ModelSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Hugging Face, as far as its client sees it, with the repository org/tiny.

    What it is told to answer, and how often it sent a file.
    """
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    files = {path.name: path.read_bytes() for path in qwen.iterdir()} | {"README.md": b"", "pytorch_model.bin": b""}
    told: dict[str, int] = {}

    def answer(request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if "down" in told:
            raise httpx2.ConnectError("no route to host")
        if "broken" in told:
            return httpx2.Response(500)
        if "gated" in told:
            return httpx2.Response(403, headers={"X-Error-Code": "GatedRepo"})
        if not path.startswith(("/api/models/org/tiny", "/org/tiny")):
            return httpx2.Response(404, headers={"X-Error-Code": "RepoNotFound"})
        if "/revision/" in path and not path.endswith(("/main", COMMIT)):
            return httpx2.Response(404, headers={"X-Error-Code": "RevisionNotFound"})
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return httpx2.Response(200, json=entries)
        if path.startswith("/api/"):
            return httpx2.Response(200, json={"id": "org/tiny", "sha": COMMIT, "siblings": []})
        name = path.rsplit("/", 1)[1]
        told[name] = told.get(name, 0) + (request.method == "GET")
        data = files[name]
        headers = {"ETag": hashlib.sha1(data).hexdigest(), "X-Repo-Commit": COMMIT, "Content-Length": str(len(data))}
        return httpx2.Response(200, headers=headers, content=b"" if request.method == "HEAD" else data)

    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(answer)))
    yield told
    huggingface_hub.set_client_factory(httpx2.Client)


def test_a_repository_is_pinned_to_its_commit(hub: dict[str, int], qwen: Path) -> None:
    branch = ModelSettings(name="hf:org/tiny", max_new_tokens=8)
    resolved = resolve(branch)
    assert resolved.settings.revision == COMMIT
    assert resolved.identity == resolve(ModelSettings(name=f"hf:{qwen}", max_new_tokens=8)).identity
    assert "model.safetensors" in hub
    assert not {"README.md", "pytorch_model.bin"} & hub.keys()
    hub["down"] = 1
    assert resolve(branch) == resolve(resolved.settings) == resolved


def test_all_who_want_a_repository_at_once_download_it_once(hub: dict[str, int]) -> None:
    # Locks of files keep processes apart as they do these.
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: resolve(ModelSettings(name="hf:org/tiny")), range(4)))
    assert len({one.settings.revision for one in found}) == 1
    assert hub["model.safetensors"] == 1


@pytest.mark.parametrize(
    ("told", "name", "revision", "message"),
    [
        (
            "down",
            "org/tiny",
            None,
            r"cannot be downloaded \(no network\?\): run `hf download org/tiny --local-dir FOLDER`",
        ),
        ("broken", "org/tiny", None, r"cannot be downloaded \(HfHubHTTPError: .*500.*\): run `hf download"),
        ("gated", "org/tiny", None, "org/tiny is gated; accept its terms .*hf auth login"),
        ("", "org/none", None, "no repository org/none on Hugging Face; check the name"),
        ("", "org/tiny", "v9", "org/tiny has no revision 'v9'; name one of its commits"),
    ],
)
def test_a_repository_that_cannot_be_had_is_refused(
    hub: dict[str, int], told: str, name: str, revision: str | None, message: str
) -> None:
    hub[told] = 1
    with pytest.raises(ModelRefused, match=message) as refusal:
        resolve(ModelSettings(name=f"hf:{name}", revision=revision))
    assert "\n" not in str(refusal.value)
    # The library's errors say nothing more.
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__
