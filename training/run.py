"""A training run: the driver that pins what is read, starts the workers, keeps the log and the books.

    <lake>/models/<run>/run.json        what decides the weights: settings, hashes of the model to start from, versions
                        checkpoint-*    see `training.checkpoint`
                        log/            see `training.journal`
                        model/          the trained model, or its adapter, as `models` loads it

The same command goes on where it stopped: from the newest checkpoint, at the versions of the tables that were pinned
when the run began.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from lake.errors import Refused
from lake.runs import Run, states
from lake.storage import StorageConfig, join, normalise
from lake.tables import Lake
from models.loading import resolve
from models.world_loading import WorldSettings, load_image_tokenizer, tokenizer_id, world_folder
from training.board import News, new_board
from training.data import Chosen, at_version, choose, read
from training.dynamics import PAIR_COLUMNS, DecodePairs, model_settings
from training.feed import Rows
from training.journal import Journal
from training.order import Order
from training.settings import DynamicsTraining, TrainingSettings, WorldTraining
from training.tokens import make_tokens, without_tokens
from training.worker import Job, work
from training.world import COLUMNS, decode_tokens

# Workers that die are replaced so often; then the run ends, and the same command goes on.
_FAILURES = 3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass
class Summary:
    """What a run did. `status` is `finished`, `drained` (asked to stop) or `nothing to do` (it had finished before)."""

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
        where = f"model in {self.model}" if self.status == "finished" else "the same command goes on from there"
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
    """`run.json`: what a run that goes on has in common with the one that began."""

    identity: dict[str, Any]
    base: dict[str, str]
    versions: dict[str, int]
    precision: str


def train(
    lake: Lake,
    settings: TrainingSettings,
    *,
    run: str | None = None,
    out: str | None = None,
    stop: threading.Event,
    start_cluster: Callable[[], None] = lambda: None,
    progress: Progress = lambda line: None,
    warn: Callable[[str], None] = lambda message: None,
) -> Summary:
    """Train a model on the triples of a lake, or go on where the run of this name stopped.

    `run` defaults to a name that the same settings always have, `out` to `<lake>/models`. Set `stop` to end after the
    step at hand, with a checkpoint. `start_cluster` connects to Ray.

    Raises:
        Refused, ModelRefused: no triple is chosen, a version is gone, the run was begun otherwise or is at work, the
            cluster is too small, the disk is full, or the loss is no number any more.
    """
    started = time.monotonic()
    run = run or settings.default_run()
    if not _NAME.fullmatch(run):
        raise Refused(f"--run {run!r}: use letters, digits, dots, dashes and underscores")
    uri = join(normalise(out) if out else join(lake.uri, "models"), run)
    summary = Summary(run, "nothing to do", settings.task, join(uri, "model"))
    before = {state.run_id: state for state in states(lake)}.get(run)
    if before and before.live:
        raise Refused(f"run {run} is at work on {before.host} (pid {before.pid}): wait for it, or use another --run")
    base = _find_base(settings)
    record = _read_record(lake.storage, uri)
    if record:
        _refuse_other(run, record, settings, base)
        if before and before.status == "finished":
            return summary
    elif before and before.config.get("uri") != uri:
        raise Refused(
            f"run {run} of this lake is at {before.config.get('uri')}: give the --out it had, or another --run"
        )
    versions = record.versions if record else _pin(lake, settings)
    config = settings.identity() | {"run": settings.model_dump(mode="json"), "uri": uri}
    hashes = {f"base/{name}": digest for name, digest in base.hashes.items()}
    with Run(lake, run, "train", config, model_hashes=hashes, tables_read=versions, on_error=warn) as books:
        driver = _Driver(lake, base, books, uri, stop, progress, summary)
        driver.train(record, start_cluster)
        books.status = summary.status
        summary.seconds = books.timings["seconds"] = time.monotonic() - started
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
    found = {"image_size": resolved.image_size, "pair_layout": resolved.settings.pair_layout}
    return _Base(resolved.folder, hashes, settings.model_copy(update=found))


def _pin(lake: Lake, settings: TrainingSettings) -> dict[str, int]:
    # Triples first: a video that a triple names is in a later version of `videos` too.
    return {
        "triples": at_version(lake, "triples", settings.version).version(),
        "videos": lake.table("videos").version(),
    }


def _read_record(storage: StorageConfig, uri: str) -> _Record | None:
    filesystem, path = storage.filesystem(join(uri, "run.json"))
    try:
        with filesystem.open_input_stream(path) as file:
            return _Record(**json.loads(file.read()))
    except FileNotFoundError:
        return None


def _write_record(storage: StorageConfig, uri: str, record: _Record) -> None:
    filesystem, path = storage.filesystem(uri)
    if filesystem.type_name == "local":
        Path(path).mkdir(parents=True, exist_ok=True)
    with filesystem.open_output_stream(join(path, "run.json")) as out:
        out.write(json.dumps(vars(record), indent=2).encode())


def _refuse_other(run: str, record: _Record, settings: TrainingSettings, base: _Base) -> None:
    """Two trainings under one name would be neither."""
    wanted, found = json.loads(json.dumps(settings.identity())), record.identity
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise Refused(
            f"run {run} was begun with {name} {found.get(name)!r}, not {wanted.get(name)!r}: "
            "use the settings it had, or another --run"
        )
    if base.hashes != record.base:
        raise Refused(
            f"run {run} was begun from another model than the one in {base.folder} is now: "
            "bring that model back, or use another --run"
        )


class _Driver:
    """The moving parts of one run."""

    def __init__(
        self,
        lake: Lake,
        base: _Base,
        books: Run,
        uri: str,
        stop: threading.Event,
        progress: Progress,
        summary: Summary,
    ) -> None:
        self._lake, self._base, self._books, self._uri = lake, base, books, uri
        self._stop, self._progress, self._summary = stop, progress, summary
        self._settings = base.settings

    def train(self, record: _Record | None, start_cluster: Callable[[], None]) -> None:
        versions = self._books.tables_read
        chosen = choose(self._lake, self._settings.sources, versions)
        start_cluster()
        gpus = _refuse_too_few(self._settings)
        if isinstance(self._settings, WorldTraining):
            if not self._make_tokens(chosen):
                self._summary.status = "drained"
                return
            chosen = self._with_tokens(chosen)
        record = record or _Record(
            self._settings.identity(), self._base.hashes, versions, _precision(self._settings, gpus)
        )
        _write_record(self._lake.storage, self._uri, record)
        self._settings = self._settings.model_copy(update={"precision": record.precision})
        self._follow(self._job(chosen), gpus)

    def _make_tokens(self, chosen: Chosen) -> bool:
        """Fill the table `tokens`, unless this run has pinned it before; False when asked to stop."""
        versions = self._books.tables_read
        if "tokens" in versions:
            return True
        make_tokens(
            self._lake,
            chosen.table["triple_id"].combine_chunks(),
            versions["triples"],
            self._base.folder,
            self._settings.image_size,
            self._books.run_id,
            self._stop,
            lambda done: self._progress({"tokenized": done}),
        )
        if self._stop.is_set():
            return False
        versions["tokens"] = self._lake.table("tokens").version()
        return True

    def _with_tokens(self, chosen: Chosen) -> Chosen:
        """Without the triples whose images could not be read: they are in `failures`."""
        images = load_image_tokenizer(self._base.folder, self._settings.image_size, "cpu")
        self._tokenizer = tokenizer_id(images)
        ids = chosen.table["triple_id"].combine_chunks()
        missing = without_tokens(self._lake, ids, self._tokenizer, self._books.tables_read["tokens"])
        self._books.counts["without tokens"] = len(missing)
        return chosen.without(missing)

    def _job(self, chosen: Chosen) -> Job:
        settings = self._settings
        order = Order(chosen.sources, settings.seed)
        steps = settings.steps or math.ceil(order.epoch_length * (settings.epochs or 1) / settings.batch_size)
        self._summary.triples, self._summary.steps = len(chosen.table), steps
        self._books.counts |= {"triples": len(chosen.table), "epoch length": order.epoch_length, "steps": steps}
        self._board = new_board()
        return Job(
            settings, self._base.folder, steps, order, self._rows(chosen), self._lake.storage, self._uri, self._board
        )

    def _rows(self, chosen: Chosen) -> Rows:
        """The rows that an epoch needs, read once: in Ray's shared memory, and on its disks where they are too many."""
        ids, versions = chosen.table["triple_id"].combine_chunks(), self._books.tables_read
        if isinstance(self._settings, WorldTraining):
            mine = pc.field("tokenizer_id") == self._tokenizer
            rows = read(self._lake, "tokens", versions["tokens"], COLUMNS, ids, mine)
            decode: Any = decode_tokens
        else:
            rows = read(self._lake, "triples", versions["triples"], PAIR_COLUMNS, ids)
            assert self._settings.image_size is not None
            decode = DecodePairs(self._settings.image_size)
        actions = ray.put(chosen.table["action"].combine_chunks())
        return Rows(rows.materialize().to_arrow_refs(), actions, decode)

    def _follow(self, job: Job, gpus: int) -> None:
        """Run the workers, write what they tell, and pass the wish to stop on."""
        fitting = _Fitting(job, gpus)
        asked = False
        with Journal(self._lake.storage, self._uri, self._books.on_error) as journal:
            while True:
                ended = fitting.wait(1.0)
                if self._stop.is_set() and not asked:
                    asked = bool(self._board.stop.remote())
                news: News = ray.get(self._board.take.remote())
                self._note(news, journal)
                if news.refusal:
                    fitting.wait(None)
                    raise Refused(news.refusal)
                if ended:
                    break
        fitting.raise_error()
        self._summary.status = "finished" if self._exported else "drained"

    _exported = False

    def _note(self, news: News, journal: Journal) -> None:
        if news.exported is not None:
            self._exported = True
            self._books.model_hashes |= {f"model/{name}": digest for name, digest in news.exported.items()}
        if not news.lines:
            return
        journal.write(news.lines)
        for line in news.lines:
            self._progress(line)
        last = news.lines[-1]
        self._summary.last, self._summary.step = last, last["step"]
        self._books.counts["step"] = last["step"]
        self._books.timings |= {"samples_per_s": last["samples_per_s"], "data_wait": last["data_wait"]}


class _Fitting:
    """Ray Train at work in a thread of its own, so that the driver can look around."""

    def __init__(self, job: Job, gpus: int) -> None:
        settings = job.settings
        resources = {"GPU": 1.0, "CPU": 0.5} if gpus else {"CPU": _cpus_each(settings)}
        # What Ray Train would keep there (it insists on a place) are checkpoints; ours go to the lake by
        # `training.checkpoint`, which waits for a store that is away where Ray Train ends the run.
        self._folder = tempfile.TemporaryDirectory()
        self._trainer = TorchTrainer(
            work,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=settings.workers, use_gpu=gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name="train",
                storage_path=self._folder.name,
                failure_config=FailureConfig(max_failures=_FAILURES),
                logging_config=LoggingConfig(log_level="CRITICAL"),
            ),
        )
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, name="ray train", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None) -> bool:
        """Whether it has ended, waiting so long for it."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def raise_error(self) -> None:
        """Raise what ended the workers, when it was an error."""
        if self._error is not None:
            raise _cause(self._error)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self._error = error
        finally:
            self._folder.cleanup()


def _refuse_too_few(settings: TrainingSettings) -> int:
    """GPUs that the workers use: none, or one each. Raises Refused where the cluster has too few."""
    resources = ray.cluster_resources()
    gpus, least = int(resources.get("GPU", 0)), settings.worker_range[0]
    if settings.device == "cpu" or (settings.device == "auto" and not gpus):
        return 0
    if gpus < least:
        raise Refused(f"{least} workers need a GPU each and the cluster has {gpus}: use fewer workers, or device cpu")
    return gpus


def _cpus_each(settings: TrainingSettings) -> float:
    # On a machine with fewer cores than workers they share them; a pool that grows must not.
    if not isinstance(settings.workers, int):
        return 1.0
    return min(1.0, float(ray.cluster_resources().get("CPU", 1.0)) / settings.workers)


def _precision(settings: TrainingSettings, gpus: int) -> str:
    if settings.precision != "auto":
        return settings.precision
    if not gpus:
        return "float32"
    return "bfloat16" if settings.method == "lora" else "mixed"


def _cause(error: BaseException) -> BaseException:
    """What went wrong on a worker in one line, out of what Ray Train wraps it in."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return error
    rank, failure = min(failures.items())
    line = str(failure).strip().splitlines()[-1] if str(failure).strip() else type(failure).__name__
    if "out of memory" in str(failure):
        return Refused(
            f"the model does not fit on worker {rank} ({line}): use a smaller micro_batch_size, "
            "activation_checkpointing, strategy fsdp2 on more GPUs, or method lora"
        )
    return RuntimeError(f"worker {rank} failed {_FAILURES + 1} times, at last with: {line}")
