"""The same model, asked the same way over HTTP, behind other servers; and asked directly.

python -m bench.serving.peers plain|litserve|model --model NAME [--port N] [--log FILE]

Requests, decoding and answers are those of `/v1/label`. Images are decoded in the process that answers: neither peer
can survive a decoder that hangs.
"""

# Annotations are evaluated: LitServe reads them, and does not know them as strings.

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import litserve
import uvicorn
from fastapi import FastAPI

from bench.serving.bodies import bodies
from labeling.annotate import LabelPairs
from labeling.stream import SAMPLES, block
from lake.scores import NAMES
from models.loading import best_device, load_dynamics
from models.settings import ModelSettings
from serve.schemas import LabelIn
from serve.uploads import Pair, _pairs

BATCH = 64
WAIT_S = 0.01
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Work:
    """The work of a request."""

    def __init__(self, model: str, batch_size: int) -> None:
        self.model = load_dynamics(ModelSettings(name=model, batch_size=batch_size), answers_few=True)
        self._label = LabelPairs(self.model)

    def decode(self, asked: LabelIn) -> Pair:
        """The pair, as a service would show it to the model."""
        (pair,) = _pairs([(one.obs, one.next_obs) for one in asked.pairs], self.model.image_size, 95, 40_000_000)
        return pair

    def label(self, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        """Action and scores of each pair."""
        rows = [
            {"triple_id": str(row), "obs": pair.obs, "next_obs": pair.next_obs, "motion": pair.motion}
            for row, pair in enumerate(pairs)
        ]
        return [
            {name: row[name] for name in ("action", *NAMES)} for row in self._label(block(rows, SAMPLES)).to_pylist()
        ]


def plain(model: str, port: int) -> None:
    """An endpoint that asks the model."""
    work, lock, app = Work(model, 1), Lock(), FastAPI()

    @app.post("/v1/label")
    def label(asked: LabelIn) -> dict[str, Any]:
        pair = work.decode(asked)
        # Forty threads that share a core would only be in each other's way.
        with lock:
            return {"labels": work.label([pair])}

    @app.get("/health")
    def health() -> str:
        return "ok"

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


class Batching(litserve.LitAPI):  # type: ignore[misc]
    """LitServe's interface: a request decoded, requests of a batch predicted, an answer encoded."""

    def __init__(self, model: str, log: Path) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT_S, api_path="/v1/label")
        self._name, self._log = model, log

    def setup(self, device: str) -> None:
        """See `LitAPI`, as below."""
        self._work = Work(self._name, BATCH)

    def decode_request(self, request: dict[str, Any]) -> Pair:
        """The pair of a request."""
        return self._work.decode(LabelIn.model_validate(request))

    def batch(self, inputs: list[Pair]) -> list[Pair]:
        """Return the input of `predict`."""
        return inputs

    def predict(self, inputs: list[Pair]) -> list[dict[str, Any]]:
        """A label for each."""
        with self._log.open("a") as log:
            log.write(f"{len(inputs)}\n")
        return self._work.label(inputs)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the answer of each request."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """An answer."""
        return {"labels": [output]}


def model(name: str, repeats: int = 5) -> None:
    """Print what batches take, in milliseconds by their size, with nothing around them: the median."""
    work = Work(name, BATCH)
    asked = bodies(BATCH, work.model.image_size)
    pairs = [work.decode(LabelIn.model_validate_json(body)) for body in asked]
    taken: dict[int, float] = {}
    for size in SIZES:
        times = []
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            work.label(pairs[:size])
            times.append(1000 * (time.perf_counter() - begun))
        # The first of a size also makes room for it.
        taken[size] = sorted(times[1:])[repeats // 2]
    begun = time.perf_counter()
    for body in asked:
        work.decode(LabelIn.model_validate_json(body))
    decode_ms = 1000 * (time.perf_counter() - begun) / BATCH
    print(json.dumps({"image_size": work.model.image_size, "batch_ms": taken, "decode_ms": decode_ms}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["plain", "litserve", "model"])
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    if options.what == "plain":
        plain(options.model, options.port)
    elif options.what == "litserve":
        server = litserve.LitServer(Batching(options.model, options.log), accelerator=best_device(), timeout=False)
        server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False)
    else:
        model(options.model)


if __name__ == "__main__":
    main()
