"""`/v1/runs`: who did what when, and which run built on which."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Annotated, Any

import pyarrow.compute as pc
from fastapi import APIRouter, Depends, Path, Query

from lake.cached_tables import CachedLake
from lake.runs import RunState, states
from lake.tables import Lake
from serve.auth import Guard
from serve.lake_schemas import Lineage, RunDetail, RunOut, RunsPage
from serve.problems import Problem, responses
from serve.queries import AFTER, Limit, Reading, page_after

_MOST_READERS = 50


def router(guard: Guard, reading: Reading) -> APIRouter:
    """Return the endpoints."""
    api = APIRouter(tags=["lake"], dependencies=[Depends(guard.require("read"))])
    errors = responses(401, 403, 422, 429, 503)

    @api.get("/v1/runs", summary="Runs, newest first", responses=errors)
    async def runs(
        after: Annotated[str | None, Query(max_length=200, description=AFTER)] = None,
        limit: Limit = None,
        kind: Annotated[str | None, Query(max_length=200, description="a kind of run, such as label or train")] = None,
    ) -> RunsPage:
        limit = reading.page(limit)
        found = await reading.ask(lambda: newest(reading.lake))
        found = [run for run in found if kind in (None, run.kind)]
        page, last = page_after(found, lambda run: run.run_id, after, limit)
        return RunsPage(runs=page, next=last)

    @api.get("/v1/runs/{run_id}", summary="One run and its lineage", responses=errors | responses(404))
    async def run(run_id: Annotated[str, Path(description="a run id")]) -> RunDetail:
        return await reading.ask(lambda: _detail(reading.lake, run_id))

    return api


def newest(lake: Lake) -> list[RunOut]:
    """Return all runs, newest first."""
    return [RunOut(**_common(state)) for state in reversed(states(lake))]


def _common(state: RunState) -> dict[str, Any]:
    seconds = (state.heartbeat_at - state.started_at).total_seconds()
    pairs = sum(count for name in ("accepted", "rejected") if isinstance(count := state.counts.get(name), int))
    return {
        "run_id": state.run_id,
        "kind": state.kind,
        "status": "killed" if state.status == "running" and not state.live else state.status,
        "labeler_id": state.labeler_id,
        "started_at": state.started_at,
        "seconds": round(seconds, 1),
        "pairs": pairs,
        "pairs_per_s": round(pairs / seconds, 2) if seconds > 0 and pairs else None,
    }


def _detail(lake: CachedLake, run_id: str) -> RunDetail:
    every = states(lake)
    state = next((one for one in every if one.run_id == run_id), None)
    if state is None:
        raise Problem(HTTPStatus.NOT_FOUND, "not-found", "there is no run of this id in this lake")
    columns = ["recorded_at", "code_version", "model_hashes", "tables_written"]
    events = lake.read("runs", columns, pc.field("run_id") == run_id).to_pylist()
    last = max(events, key=lambda event: event["recorded_at"])
    mine = pc.field("run_id") == run_id
    written = {name: lake.dataset(name).count_rows(filter=mine) for name in ("triples", "rejections", "failures")}
    return RunDetail(
        **_common(state),
        policy_id=state.policy_id,
        code_version=last["code_version"],
        host=state.host,
        config=state.config,
        counts=state.counts,
        timings=state.timings,
        model_hashes=json.loads(last["model_hashes"] or "{}"),
        tables_read=state.tables_read,
        tables_written=json.loads(last["tables_written"] or "{}"),
        **written,
        sources=_sources(lake, state, every),
        readers=_readers(lake, state, every),
    )


def _sources(lake: CachedLake, state: RunState, every: list[RunState]) -> list[Lineage]:
    version = state.tables_read.get("triples")
    if version is None:
        return []
    kinds = {one.run_id: one.kind for one in every}
    return [
        Lineage(run_id=run_id, kind=kinds.get(run_id, "unknown"), version=version, triples=count)
        for run_id, count in lake.writers(version).most_common()
    ]


def _readers(lake: CachedLake, state: RunState, every: list[RunState]) -> list[Lineage]:
    found = []
    later = [one for one in every if one.started_at >= state.started_at and "triples" in one.tables_read]
    for one in later[-_MOST_READERS:]:
        version = one.tables_read["triples"]
        if count := lake.writers(version)[state.run_id]:
            found.append(Lineage(run_id=one.run_id, kind=one.kind, version=version, triples=count))
    return found
