"""Runs on a small lake with Ray in this process: what they leave behind, how they resume, and what they refuse."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from safetensors.numpy import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lake.commits import Claim
from lake.errors import Refused, Superseded
from lake.runs import states
from lake.tables import Lake, now
from lake.writer import Writer
from models.settings import WorldSettings
from models.world_loading import load_image_tokenizer, load_world, tokenizer_id
from tests.training.tiny import add_triples, picture, save_tiny_world
from training.checkpoint import Checkpoints
from training.data import choose
from training.order import Order
from training.run import Summary, train
from training.selection import BY_PEOPLE
from training.settings import Source, WorldTraining
from training.tokens import make_tokens

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

STEPS = 6
SETTINGS: dict[str, Any] = {
    "steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "peak_lr": 1e-2, "warmup_steps": 1, "method": "full",
    "floor": 0.3, "checkpoint_every": 2, "log_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_world(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    add_triples(lake, 10)
    return lake


def settings(folder: Path, **changes: Any) -> WorldTraining:
    return WorldTraining.model_validate({"model": f"hf:{folder}"} | SETTINGS | changes)


def run(lake: Lake, wanted: WorldTraining, name: str, **options: Any) -> Summary:
    return train(lake, wanted, run_id=name, stop=options.pop("stop", threading.Event()), **options)


def weights(lake: Lake, name: str, step: int = STEPS) -> dict[str, np.ndarray]:
    return load_file(Path(lake.uri) / "models" / name / f"checkpoint-0001-{step:08d}" / "weights.safetensors")


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], tolerance: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert np.abs(weight - other[name]).max() <= tolerance, name


@pytest.fixture(scope="module")
def undisturbed(lake: Lake, model: Path) -> Summary:
    return run(lake, settings(model), "undisturbed")


@pytest.mark.slow
def test_a_run_leaves_a_model_a_log_and_its_lineage(lake: Lake, model: Path, undisturbed: Summary) -> None:
    assert undisturbed.status == "finished"
    assert (undisturbed.triples, undisturbed.step, undisturbed.steps) == (10, STEPS, STEPS)
    trained = load_world(WorldSettings(name=f"hf:{undisturbed.model}"), "cpu")
    begun = load_world(WorldSettings(name=f"hf:{model}"), "cpu")
    # Its tokenizer is the one it began with, so the tokens that were made serve it too.
    assert tokenizer_id(trained.images) == tokenizer_id(begun.images)
    name = "model.text_model.layers.0.self_attn.q_proj.weight"
    assert np.array_equal(trained.model.state_dict()[name].numpy(), weights(lake, "undisturbed")[name])
    assert not np.allclose(trained.model.state_dict()[name].numpy(), begun.model.state_dict()[name].numpy())

    folder = Path(lake.uri) / "models" / "undisturbed"
    lines = [json.loads(line) for line in (folder / "log" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[0].keys() == {"step", "epoch", "loss", "lr", "grad_norm", "samples_per_s", "data_wait"}
    events = EventAccumulator(str(folder / "log"))
    events.Reload()
    assert [round(event.value, 4) for event in events.Scalars("train/loss")] == [round(x["loss"], 4) for x in lines]
    # The last two checkpoints are kept.
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
        "checkpoint-0001-00000004",
        "checkpoint-0001-00000006",
    ]

    [row] = [row for row in lake.read("runs", ["run_id", "kind", "status", "model_hashes", "tables_read", "config"])
             .to_pylist() if row["run_id"] == "undisturbed" and row["status"] == "finished"]  # fmt: skip
    assert row["kind"] == "train"
    read = json.loads(row["tables_read"])
    assert read["triples"] == lake.table("triples").version()
    assert read["tokens"] == lake.table("tokens").version()
    hashes = json.loads(row["model_hashes"])
    assert hashes["base/model.safetensors"] != hashes["model/model.safetensors"]
    assert json.loads(row["config"])["peak_lr"] == 1e-2


def test_a_finished_run_has_nothing_to_do(lake: Lake, model: Path, undisturbed: Summary) -> None:
    assert run(lake, settings(model), "undisturbed").status == "nothing to do"


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_in_the_middle_of_an_epoch(
    lake: Lake, model: Path, undisturbed: Summary
) -> None:
    stop = threading.Event()
    first = run(
        lake, settings(model), "stopped", stop=stop, progress=lambda line: stop.set() if "step" in line else None
    )
    if first.status == "drained":  # it may have been through before it was told
        assert f"step {first.step} of {STEPS}" in first.text()
        assert run(lake, settings(model), "stopped").status == "finished"
    assert_same(weights(lake, "stopped"), weights(lake, "undisturbed"))


@pytest.mark.slow
def test_two_workers_end_where_one_does(lake: Lake, model: Path, undisturbed: Summary) -> None:
    run(lake, settings(model, workers=2), "two")
    one, two = weights(lake, "undisturbed"), weights(lake, "two")
    for name, weight in one.items():
        # AdamW turns the rounding of a gradient near zero into its sign.
        assert np.abs(weight - two[name]).mean() <= 1e-4, name


@pytest.mark.slow
def test_an_adapter_is_what_models_load_and_unreadable_images_are_failures(tmp_path: Path, model: Path) -> None:
    lake = Lake(str(tmp_path))
    add_triples(lake, 5)
    bad = {"video_id": "v", "triple_id": "bad", "split": "train", "action": "a", "dataset": "one", "obs": b"no image"}
    Writer(lake).append("triples", [bad | {"next_obs": picture(0), "labeled_at": now()}])
    done = run(lake, settings(model, method="lora", lora_dropout=0.1), "lora")
    assert done.triples == 5
    [failure] = lake.read("failures", ["triple_id", "stage", "message"]).to_pylist()
    assert failure == {"triple_id": "bad", "stage": "tokenize", "message": "an image of a triple cannot be decoded"}

    adapted = load_world(WorldSettings(name=f"hf:{model}", adapter=done.model), "cpu")
    begun = load_world(WorldSettings(name=f"hf:{model}"), "cpu")
    name = "model.text_model.layers.1.mlp.up_proj.weight"
    a, b = (weights(lake, "lora")[f"model.text_model.layers.1.mlp.up_proj.lora_{part}.default.weight"] for part in "AB")
    change = adapted.model.state_dict()[name].numpy() - begun.model.state_dict()[name].numpy()
    assert np.allclose(change, 32 / 16 * b @ a, atol=1e-5)
    assert np.abs(change).max() > 1e-4
    assert all("lora" in key for key in weights(lake, "lora"))


@pytest.mark.slow
def test_a_run_that_failed_before_its_record_leaves_its_name_free(tmp_path: Path, model: Path) -> None:
    lake, stop = Lake(str(tmp_path / "lake")), threading.Event()
    add_triples(lake, 4)
    with pytest.raises(Refused, match="no triple is in"):
        run(lake, settings(model, sources=[{"datasets": ["nothing"]}]), "phantom")
    assert not states(lake)
    with pytest.raises(Refused, match="need a GPU each"):
        run(lake, settings(model, device="cuda"), "phantom")
    assert [(state.run_id, state.status) for state in states(lake)] == [("phantom", "failed")]
    stop.set()
    assert run(lake, settings(model), "phantom", out=str(tmp_path / "out"), stop=stop).status == "drained"


def test_a_source_without_labels_of_people_names_those_that_there_are(lake: Lake, tmp_path: Path) -> None:
    wanted = Source(where=BY_PEOPLE, splits=("test",))
    there = {name: lake.table(name).version() for name in ("triples", "videos")}
    with pytest.raises(Refused, match=r"of the split test was .*\(there are: human:test train 10\)$") as refused:
        choose(lake, [wanted], there)
    (text,) = re.findall(r"--source '(.*?)'", str(refused.value))
    source = WorldTraining.model_validate({"steps": 1, "sources": [text]}).sources
    assert len(choose(lake, source, there).table) == 10

    empty = Lake(str(tmp_path))
    empty.create()
    with pytest.raises(Refused, match="there is no triple to train on: label videos first"):
        choose(empty, [wanted], {name: empty.table(name).version() for name in ("triples", "videos")})


@pytest.mark.slow
def test_a_run_reads_the_versions_it_began_with(tmp_path: Path, model: Path) -> None:
    lake = Lake(str(tmp_path))
    add_triples(lake, 10)
    add_triples(lake, 10, first=10)
    stop = threading.Event()
    stop.set()
    # Asked to stop before its first step, it has pinned nothing.
    assert run(lake, settings(model, triples_version=1), "older", stop=stop).status == "drained"
    assert run(lake, settings(model, triples_version=1), "older").triples == 10
    with pytest.raises(Refused, match=r"run older of this lake is at .*/models/older: give its --out"):
        run(lake, settings(model, triples_version=1), "older", out=str(tmp_path / "elsewhere"))
    [read] = [state.tables_read for state in states(lake) if state.run_id == "older"]
    assert read["triples"] == 1


def test_tokens_are_made_once(lake: Lake, model: Path, undisturbed: Summary) -> None:
    rows = lake.read("tokens", ["triple_id", "tokenizer_id", "obs_codes", "distances"]).to_pylist()
    ids = lake.read("triples", ["triple_id", "obs", "next_obs"])
    assert sorted(row["triple_id"] for row in rows) == sorted(ids["triple_id"].to_pylist())
    images = load_image_tokenizer(model, None, "cpu")
    assert {row["tokenizer_id"] for row in rows} == {tokenizer_id(images)}
    version = lake.table("tokens").version()
    told: list[int] = []
    make_tokens(
        Writer(lake), ids["triple_id"].combine_chunks(), lake.table("triples").version(), model, None, "again",
        threading.Event(), told.append,
    )  # fmt: skip
    assert lake.table("tokens").version() == version
    assert not told


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_good(tmp_path: Path, model: Path) -> None:
    lake = Lake(str(tmp_path))
    ids = sorted(add_triples(lake, 20))
    wanted = settings(model, batch_size=2, steps=10)
    # The triple of the last place of step 4: its distances are infinite.
    poisoned = ids[int(Order([(np.arange(20), 1.0)], wanted.seed).between(7, 8)[0])]
    with pytest.raises(Refused, match=r"step 4: the loss is nan .*the checkpoint of step 2 is kept.*peak_lr"):
        run(_with_poison(lake, model, poisoned), wanted, "nan")
    checkpoints = Checkpoints(lake.storage, f"{lake.uri}/models/nan", Claim(lake, "train/nan"))
    assert checkpoints.newest().step == 2  # type: ignore[union-attr]
    assert [state.status for state in states(lake) if state.run_id == "nan"] == ["failed"]


def _with_poison(lake: Lake, model: Path, poisoned: str) -> Lake:
    ids = lake.read("triples", ["triple_id"])["triple_id"].combine_chunks()
    version, never = lake.table("triples").version(), threading.Event()
    make_tokens(Writer(lake), ids, version, model, None, "tokens", never, lambda done: None)
    rows = lake.read("tokens", lake.dataset("tokens").schema.names, pc.field("triple_id") == poisoned).to_pylist()
    # Of two rows of a triple the first counts, whichever that is: there must be one only.
    keep = lake.read("tokens", lake.dataset("tokens").schema.names, pc.field("triple_id") != poisoned).to_pylist()
    shutil.rmtree(lake.table_uri("tokens"))
    lake.create_table("tokens")
    Writer(lake).append("tokens", [*keep, *(row | {"distances": [float("inf")] * 64} for row in rows)])
    return lake


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture_is_refused(
    lake: Lake, undisturbed: Summary, tmp_path: Path, model: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(Path(lake.uri) / "models" / "undisturbed", out / "other")
    for checkpoint in (out / "other").glob("checkpoint-*"):
        path = checkpoint / "weights.safetensors"
        found = load_file(path)
        found["lm_head.weight"] = found["lm_head.weight"][:, ::2].copy()
        save_file(found, path)
        state = json.loads((checkpoint / "state.json").read_text())
        state["bytes"]["weights.safetensors"] = path.stat().st_size
        state["sha256"]["weights.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (checkpoint / "state.json").write_text(json.dumps(state))
    with pytest.raises(Refused, match=r"is of another model: 1 weights differ, such as lm_head.weight"):
        run(lake, settings(model), "other", out=str(out))


@pytest.mark.slow
def test_a_run_whose_name_another_process_claims_ends_with_its_next_checkpoint(lake: Lake, model: Path) -> None:
    claims: list[Claim] = []

    def overtake(line: dict[str, Any]) -> None:
        if not claims and line.get("step", 0) >= 1:
            claims.append(Claim(lake, "train/claimed"))

    with pytest.raises(Superseded, match="another process has taken over train/claimed"):
        run(lake, settings(model, steps=2000, checkpoint_every=5), "claimed", progress=overtake)
    folder = Path(lake.uri) / "models" / "claimed"
    assert {path.name[:15] for path in folder.glob("checkpoint-*")} <= {"checkpoint-0001"}
    assert not (folder / "model").exists()
    claims[0].check()


def test_a_checkpoint_that_was_interrupted_is_passed_over(lake: Lake, undisturbed: Summary, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(Path(lake.uri) / "models" / "undisturbed", out)
    checkpoints = Checkpoints(lake.storage, str(out), Claim(lake, "train/run"))
    assert checkpoints.newest().step == 6  # type: ignore[union-attr]
    (out / "checkpoint-0001-00000006" / "optimizer.safetensors").write_bytes(b"half")
    assert checkpoints.newest().step == 4  # type: ignore[union-attr]
    (out / "checkpoint-0001-00000004" / "state.json").unlink()
    assert checkpoints.newest() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peak_lr": 2e-2}, "was begun with peak_lr 0.01, not 0.02"),
        ({"steps": 7}, "was begun with steps 6, not 7"),
    ],
)
def test_a_run_goes_on_with_the_settings_it_was_begun_with(
    lake: Lake, model: Path, undisturbed: Summary, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused, match=message):
        run(lake, settings(model, **changes), "undisturbed")


def test_a_run_goes_on_from_the_model_it_was_begun_from(
    lake: Lake, model: Path, undisturbed: Summary, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "model")
    wanted = settings(tmp_path / "model")
    record = json.loads((Path(lake.uri) / "models" / "undisturbed" / "run.json").read_text())
    record["identity"]["model"] = wanted.model
    record["base"]["model.safetensors"] = "0" * 64
    (tmp_path / "out" / "changed").mkdir(parents=True)
    (tmp_path / "out" / "changed" / "run.json").write_text(json.dumps(record))
    with pytest.raises(Refused, match="was begun from another model"):
        run(lake, wanted, "changed", out=str(tmp_path / "out"))


def test_a_run_goes_on_with_the_lake_it_was_begun_on(
    lake: Lake, model: Path, undisturbed: Summary, tmp_path: Path
) -> None:
    other = Lake(str(tmp_path / "other"))
    add_triples(other, 4)
    with pytest.raises(Refused, match="was begun on the lake"):
        run(other, settings(model), "undisturbed", out=f"{lake.uri}/models")


def test_a_record_that_was_cut_off_is_refused_in_one_line(lake: Lake, model: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "run.json").write_text('{"lake": "')
    with pytest.raises(Refused, match="not a record of a run"):
        run(lake, settings(model), "cut", out=str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": [{"datasets": ["nothing"]}]}, "no triple is in .*nothing.*: worldlake sql"),
        ({"sources": [{"where": "no_such_column = 1"}]}, "no_such_column"),
        ({"triples_version": 99}, "no version 99: the newest is 1"),
        ({"device": "cuda"}, "1 workers need a GPU each and the cluster has 0"),
        ({"model": "hf:/nowhere"}, "no folder"),
        ({"workers": 3}, "3 workers share 2 micro-batches"),
        ({"batch_size": 3}, "not a multiple of `micro_batch_size`"),
        ({"epochs": 1}, "exactly one of `epochs` and `steps`"),
        ({"lora_rank": 8}, "`lora_rank` does nothing with `method` full"),
        ({"flor": 0.1}, "flor"),
        ({"steps": None, "epochs": math.inf}, "finite"),
        ({"sources": [{"factor": 0.001}]}, "larger factor"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(lake: Lake, model: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        run(lake, settings(model, **changes), "refused")
    assert "\n" not in str(refused.value)


def test_a_version_that_was_vacuumed_is_refused(tmp_path: Path, model: Path) -> None:
    lake = Lake(str(tmp_path))
    add_triples(lake, 4)
    add_triples(lake, 4, first=4)
    table = lake.table("triples")
    table.optimize.compact()
    assert table.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    with pytest.raises(Refused, match=r"(are gone|were vacuumed).*choose a newer version"):
        run(lake, settings(model, triples_version=1), "old")
