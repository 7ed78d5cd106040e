"""A training run: the driver that pins what is read, starts the workers, and keeps the log and the counts.

    <lake>/models/<run>/run.json        what decides the weights: settings, hashes of the model to start from, versions
                        checkpoint-*    see `training.checkpoint`
                        log/            see `training.train_log`
                        model/          the trained model, or its adapter, as `models` loads it

The same command resumes where it stopped: from the newest checkpoint, at the versions of the tables that were pinned
when the run began.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.connect import start_ray
from lake.commits import Claim
from lake.errors import Refused, Superseded
from lake.runs import Run, RunState, find_alive, states
from lake.storage import StorageConfig, join, normalize
from lake.tables import Lake
from lake.writer import Writer
from models.loading import resolve
from models.settings import WorldSettings
from models.world_loading import load_image_tokenizer, tokenizer_id, world_folder
from training.data import Chosen, choose, entombed, read
from training.driver_channel import Messages, new_channel
from training.dynamics import PAIR_COLUMNS, model_settings
from training.order import Order
from training.prefetch import DecodePairs, Rows, decode_tokens
from training.selection import at_version
from training.settings import DynamicsTraining, TrainingSettings, WorldTraining
from training.tokens import WithImages, make_tokens
from training.train_log import TrainLog
from training.trainer_thread import TrainerThread, refuse_too_few
from training.worker import Job
from training.world import COLUMNS

_RECORD = "run.json"
# A process that was taken for dead finds out within this time; its checkpoints are in folders of their own.
_CLAIM_EVERY_S = 10.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass
class Summary:
    """Summary of a run. `status` is `finished`, `drained` (asked to stop) or `nothing to do` (finished before)."""

    run: str
    status: str
    task: str
    model: str
    """Uri of the folder with the trained model, or its adapter."""
    triples: int = 0
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)
    """The last line of the log."""

    def text(self) -> str:
        """The summary as a user reads it."""
        if self.status == "nothing to do":
            return f"nothing to do: run {self.run} has finished, its model is in {self.model}; --run names another"
        figures = "".join(
            f"; {name.replace('_', ' ')} {self.last[name]:.4g}"
            for name in ("loss", "samples_per_s", "data_wait")
            if name in self.last
        )
        where = f"model in {self.model}" if self.status == "finished" else "run the same command to resume"
        return (
            f"run {self.run} {self.status} at step {self.step:,} of {self.steps:,} over {self.triples:,} triples in "
            f"{self.seconds:.1f} s{figures}; {where}"
        )


Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class _Base:
    """The model that a training starts from."""

    folder: Path
    hashes: dict[str, str]
    settings: TrainingSettings
    """With nothing left open about the model."""


@dataclass
class _Record:
    """`run.json`: what a resumed run has in common with its start."""

    lake: str
    identity: dict[str, Any]
    base: dict[str, str]
    versions: dict[str, int]
    precision: str


def train(
    lake: Lake,
    settings: TrainingSettings,
    *,
    run_id: str | None = None,
    out: str | None = None,
    stop: threading.Event,
    progress: Progress = lambda line: None,
    warn: Callable[[str], None] = lambda message: None,
) -> Summary:
    """Train a model on the triples of a lake, or resume the run of this name.

    `run_id` defaults to a name that the same settings always have, `out` to `<lake>/models`. Set `stop` to end after
    the current step, with a checkpoint.

    Raises:
        Refused: no triple is chosen, a version is gone, the run has other settings or is live, the
            cluster is too small, the disk is full, or the loss is no longer finite.
        Superseded: another process took over the run, or videos were forgotten.
    """
    started = time.monotonic()
    run_id = run_id or settings.default_run()
    if not _NAME.fullmatch(run_id):
        raise Refused(f"--run {run_id!r}: use letters, digits, dots, dashes and underscores")
    uri = join(normalize(out) if out else join(lake.uri, "models"), run_id)
    summary = Summary(run_id, "nothing to do", settings.task, join(uri, "model"))
    if other := find_alive(lake, lambda state: state.run_id == run_id, stop):
        raise Refused(f"run {run_id} is alive on {other.host} (pid {other.pid}): wait for it, or use another --run")
    before = {state.run_id: state for state in states(lake)}.get(run_id)
    base = _find_base(settings)
    record = _read_record(lake.storage, uri)
    if record:
        _refuse_other(run_id, record, base, lake)
        if before and before.status == "finished":
            return summary
    elif before:
        _refuse_elsewhere(lake, before, uri)
    versions = record.versions if record else _pin(lake, settings)
    # Before the run is on record: settings that choose nothing leave no run behind.
    chosen = choose(lake, settings.sources, versions)
    # From here on a process of this name that was taken for dead writes nothing more.
    claim = Claim(lake, f"train/{run_id}")
    writer = Writer(lake)
    config = settings.identity() | {"run": settings.model_dump(mode="json"), "uri": uri}
    hashes = {f"base/{name}": digest for name, digest in base.hashes.items()}
    with Run(lake, run_id, "train", config, model_hashes=hashes, tables_read=versions, on_error=warn) as run:
        driver = _Driver(writer, claim, base, run, uri, stop, progress, summary)
        driver.train(record, chosen)
        run.status = summary.status
        summary.seconds = run.timings["seconds"] = time.monotonic() - started
    return summary


def _find_base(settings: TrainingSettings) -> _Base:
    if isinstance(settings, WorldTraining):
        folder, hashes = world_folder(
            WorldSettings(name=settings.model, revision=settings.revision, image_size=settings.image_size)
        )
        return _Base(folder, hashes, settings)
    assert isinstance(settings, DynamicsTraining)
    resolved = resolve(model_settings(settings), "cpu")
    hashes = {
        name.removeprefix("file:"): str(digest)
        for name, digest in resolved.identity.items()
        if name.startswith("file:")
    }
    found = {name: getattr(resolved.settings, name) for name in ("prompt", "image_size", "pair_layout")}
    return _Base(resolved.folder, hashes, settings.model_copy(update=found))


def _pin(lake: Lake, settings: TrainingSettings) -> dict[str, int]:
    # Triples first: a video that a triple names is in a later version of `videos` too.
    return {
        "triples": at_version(lake, "triples", settings.triples_version).version(),
        "videos": lake.table("videos").version(),
    }


def _read_record(storage: StorageConfig, uri: str) -> _Record | None:
    content = storage.get(join(uri, _RECORD))
    try:
        return _Record(**json.loads(content)) if content is not None else None
    except (TypeError, ValueError):
        raise Refused(f"{join(uri, _RECORD)} is not a record of a run: use another --run, or remove {uri}") from None


def _refuse_elsewhere(lake: Lake, before: RunState, uri: str) -> None:
    """Two folders for one run would be two runs; one that ended before it wrote its record has none."""
    if before.kind != "train":
        raise Refused(f"run {before.run_id} of this lake is not a training run: use another --run")
    place = before.config["uri"]
    if place != uri and _read_record(lake.storage, place):
        raise Refused(f"run {before.run_id} of this lake is at {place}: give its --out, or another --run")


def _refuse_other(run_id: str, record: _Record, base: _Base, lake: Lake) -> None:
    """Two trainings under one name would be neither."""
    if record.lake != lake.uri:
        raise Refused(f"run {run_id} was begun on the lake {record.lake}, not {lake.uri}: use another --run or --out")
    # As the record has them: with what the model decides (image size, layout) filled in.
    wanted, found = json.loads(json.dumps(base.settings.identity())), record.identity
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise Refused(
            f"run {run_id} was begun with {name} {found.get(name)!r}, not {wanted.get(name)!r}: "
            "use the settings it had, or another --run"
        )
    if base.hashes != record.base:
        raise Refused(
            f"run {run_id} was begun from another model than the one in {base.folder} is now: "
            "bring that model back, or use another --run"
        )


class _Driver:
    """The moving parts of one run."""

    def __init__(
        self,
        writer: Writer,
        claim: Claim,
        base: _Base,
        run: Run,
        uri: str,
        stop: threading.Event,
        progress: Progress,
        summary: Summary,
    ) -> None:
        self._writer, self._claim = writer, claim
        self._lake, self._base, self._run, self._uri = writer.lake, base, run, uri
        self._stop, self._progress, self._summary = stop, progress, summary
        self._settings = base.settings

    def train(self, record: _Record | None, chosen: Chosen) -> None:
        versions = self._run.tables_read
        # A `forget` that is under way has entombed what it has yet to delete, and a pinned version may hold it, too.
        chosen = chosen.without(entombed(self._lake, versions["triples"]))
        start_ray()
        gpus = refuse_too_few(self._settings)
        if isinstance(self._settings, WorldTraining) and not self._make_tokens(chosen):
            self._summary.status = "drained"
            return
        chosen, rows = self._read(chosen)
        if record is None:
            precision = _precision(self._settings, gpus)
            record = _Record(self._lake.uri, self._settings.identity(), self._base.hashes, versions, precision)
            self._claim.check()
            content = json.dumps(vars(record), indent=2).encode()
            if not self._lake.storage.put_new(join(self._uri, _RECORD), content):
                raise Superseded(f"another process has begun run {self._run.run_id}: run the same command again")
        self._settings = self._settings.model_copy(update={"precision": record.precision})
        self._follow(self._job(chosen, rows), gpus)

    def _make_tokens(self, chosen: Chosen) -> bool:
        """Fill the table `tokens`, unless this run has pinned it before; False when asked to stop."""
        versions = self._run.tables_read
        if "tokens" in versions:
            return True
        make_tokens(
            self._writer,
            chosen.table["triple_id"].combine_chunks(),
            versions["triples"],
            self._base.folder,
            self._settings.image_size,
            self._run.run_id,
            self._stop,
            self._tokenized,
        )
        if self._stop.is_set():
            return False
        versions["tokens"] = self._lake.table("tokens").version()
        # Pinned from here on: `maintain` goes by the record.
        self._run.record()
        return True

    def _tokenized(self, done: int) -> None:
        # Among the counts as well: a run whose counts stand still is taken for stuck.
        self._run.counts["tokenized"] = done
        self._progress({"tokenized": done})

    def _read(self, chosen: Chosen) -> tuple[Chosen, Rows]:
        """The rows that an epoch needs, read once: in Ray's shared memory, and on its disks where they are too many.

        Triples whose images cannot be read are left out: they are in `failures`.
        """
        ids, versions = chosen.table["triple_id"].combine_chunks(), self._run.tables_read
        if isinstance(self._settings, WorldTraining):
            images = load_image_tokenizer(self._base.folder, self._settings.image_size, "cpu")
            mine = pc.field("tokenizer_id") == tokenizer_id(images)
            rows = read(self._lake, "tokens", versions["tokens"], COLUMNS, ids, mine)
            decode: Any = decode_tokens
        else:
            rows = read(self._lake, "triples", versions["triples"], PAIR_COLUMNS, ids)
            rows = rows.map_batches(
                WithImages(self._lake, self._run.run_id, self._writer.fences),
                batch_size=None,
                batch_format="pyarrow",
            )
            assert self._settings.image_size is not None
            decode = DecodePairs(self._settings.image_size)
        rows = rows.materialize()
        there = pa.concat_tables(ray.get(rows.select_columns(["triple_id"]).to_arrow_refs()))["triple_id"]
        lost = ids.filter(pc.invert(pc.is_in(ids, value_set=there.combine_chunks())))
        self._run.counts["unreadable"] = len(lost)
        chosen = chosen.without(lost)
        return chosen, Rows(rows.to_arrow_refs(), ray.put(chosen.table["action"].combine_chunks()), decode)

    def _job(self, chosen: Chosen, rows: Rows) -> Job:
        settings = self._settings
        order = Order(chosen.sources, settings.seed)
        if order.epoch_length == 0:
            raise Refused(f"the factors leave no pair of {len(chosen.table):,} for an epoch: give a larger factor")
        steps = settings.steps or math.ceil(order.epoch_length * (settings.epochs or 1) / settings.batch_size)
        self._summary.triples, self._summary.steps = len(chosen.table), steps
        self._run.counts |= {"triples": len(chosen.table), "epoch length": order.epoch_length, "steps": steps}
        self._channel = new_channel()
        return Job(
            settings, self._base.folder, steps, order, rows, self._lake.storage, self._uri, self._channel, self._claim
        )

    def _follow(self, job: Job, gpus: int) -> None:
        """Run the workers, log what they report, and forward the stop request."""
        trainer = TrainerThread(job, gpus)
        with TrainLog(self._lake.storage, self._uri, self._claim, self._run.on_error) as train_log:
            checked = time.monotonic()
            while True:
                ended = trainer.wait(1.0)
                if time.monotonic() - checked >= _CLAIM_EVERY_S:
                    self._claim.check()
                    checked = time.monotonic()
                if self._stop.is_set():
                    self._channel.stop.remote()
                messages: Messages = ray.get(self._channel.take.remote())
                self._note(messages, train_log)
                if messages.refusal:
                    trainer.wait(None)
                    raise messages.refusal
                if ended:
                    break
        trainer.raise_error()
        self._summary.status = "finished" if self._exported else "drained"

    _exported = False

    def _note(self, messages: Messages, train_log: TrainLog) -> None:
        if messages.exported is not None:
            self._exported = True
            self._run.model_hashes |= {f"model/{name}": digest for name, digest in messages.exported.items()}
        if not messages.lines:
            return
        train_log.write(messages.lines)
        for line in messages.lines:
            self._progress({**line, "steps": self._summary.steps})
        last = messages.lines[-1]
        self._summary.last, self._summary.step = last, last["step"]
        self._run.counts["step"] = last["step"]
        self._run.timings |= {"samples_per_s": last["samples_per_s"], "data_wait": last["data_wait"]}


def _precision(settings: TrainingSettings, gpus: int) -> str:
    if settings.precision != "auto":
        return settings.precision
    if not gpus:
        return "float32"
    return "bfloat16" if settings.method == "lora" else "mixed"
