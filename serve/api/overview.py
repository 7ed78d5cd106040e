"""`/v1/overview`, `/v1/scores`, `/v1/kept`: what is in the lake, in numbers. No image is ever read for these."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from lake.scores import NAMES
from serve.api.runs import newest
from serve.auth import Guard
from serve.lake_schemas import ActionOut, DatasetOut, Histogram, Kept, KeptOut, OverviewOut, VerifierOut
from serve.problems import responses
from serve.queries import Filters, LabelerId, Reading, asker, checked
from serve.schemas import LabelerOut

_SCORES = ", ".join(NAMES)
_BINS = 40
_ACTIONS = 20
_RUNS = 30
_DECIDED = ("videos", "triples", "rejections", "failures")

# One statement, so that each table is read once; each common table is small beside those.
_OVERVIEW = f"""
WITH accepted AS MATERIALIZED (
        SELECT labeler_id, any_value(policy_id) AS policy_id, dataset, action, count(*) AS pairs
        FROM triples GROUP BY labeler_id, dataset, action),
    rejected AS MATERIALIZED (
        SELECT labeler_id, any_value(policy_id) AS policy_id, dataset, reasons, count(*) AS pairs
        FROM rejections GROUP BY labeler_id, dataset, reasons),
    labelers AS (
        SELECT labeler_id, any_value(policy_id) AS policy_id, sum(a) AS triples, sum(r) AS rejections
        FROM (SELECT labeler_id, policy_id, pairs AS a, 0 AS r FROM accepted
            UNION ALL SELECT labeler_id, policy_id, 0, pairs FROM rejected)
        GROUP BY labeler_id),
    datasets AS (
        SELECT dataset, sum(v) AS videos, sum(a) AS accepted, sum(r) AS rejected
        FROM (SELECT dataset, count(*) AS v, 0 AS a, 0 AS r FROM videos GROUP BY dataset
            UNION ALL SELECT dataset, 0, pairs, 0 FROM accepted WHERE $labeler IS NULL OR labeler_id = $labeler
            UNION ALL SELECT dataset, 0, 0, pairs FROM rejected WHERE $labeler IS NULL OR labeler_id = $labeler)
        GROUP BY dataset),
    verifiers AS (
        SELECT verifier, sum(pairs) AS rejected, coalesce(sum(pairs) FILTER (alone), 0) AS alone
        FROM (SELECT unnest(reasons) AS verifier, len(reasons) = 1 AS alone, pairs
            FROM rejected WHERE $labeler IS NULL OR labeler_id = $labeler)
        GROUP BY verifier),
    actions AS (
        SELECT coalesce(action, '') AS action, sum(pairs) AS triples
        FROM accepted WHERE $labeler IS NULL OR labeler_id = $labeler GROUP BY action)
SELECT (SELECT count(*) FROM failures WHERE $labeler IS NULL OR labeler_id = $labeler) AS failures,
    (SELECT count(*) FROM actions) AS distinct_actions,
    (SELECT list(one ORDER BY labeler_id) FROM labelers AS one) AS labelers,
    (SELECT list(one ORDER BY dataset) FROM datasets AS one) AS datasets,
    (SELECT list(one ORDER BY rejected DESC, verifier) FROM verifiers AS one) AS verifiers,
    (SELECT list(one) FROM (SELECT * FROM actions ORDER BY triples DESC, action LIMIT {_ACTIONS}) AS one) AS actions
"""

# The outer bins hold the outermost hundredth on either side, which would otherwise squeeze all others into one.
_HISTOGRAMS = f"""
WITH pairs AS (
        SELECT true AS accepted, {_SCORES} FROM triples WHERE {{sql}}
        UNION ALL SELECT false, {_SCORES} FROM rejections WHERE {{sql}}),
    scored AS (
        SELECT * FROM (UNPIVOT pairs ON {_SCORES} INTO NAME score VALUE value) WHERE isfinite(value)),
    ranges AS (
        SELECT score, quantile_cont(value, 0.01) AS low, quantile_cont(value, 0.99) AS high FROM scored GROUP BY score),
    binned AS (
        SELECT score, low, high, accepted, CASE WHEN high > low
            THEN greatest(0, least({_BINS - 1}, floor((value - low) / (high - low) * {_BINS})))::INT ELSE 0 END AS bin
        FROM scored JOIN ranges USING (score))
SELECT score, low, high, accepted, bin, count(*) AS pairs FROM binned GROUP BY ALL
"""
_KEPT = """
SELECT 'accepted' AS verdict, count(*) AS of, count(*) FILTER ({keep}) AS kept FROM triples WHERE {sql}
UNION ALL SELECT 'rejected', count(*), count(*) FILTER ({keep}) FROM rejections WHERE {sql}
"""


def router(guard: Guard, reading: Reading) -> APIRouter:
    """Return the endpoints."""
    api = APIRouter(tags=["lake"], dependencies=[Depends(guard.require("read"))])
    errors = responses(401, 403, 422, 429, 503)

    @api.get("/v1/overview", summary="Counts, acceptance, throughput and labels", responses=errors)
    async def overview(
        labeler: LabelerId = None,
    ) -> OverviewOut:
        found = await _kept(reading, labeler)
        # Active runs change without a commit.
        runs = await reading.ask(lambda: newest(reading.lake))
        deciding = [run for run in runs if run.pairs and labeler in (None, run.labeler_id)]
        return OverviewOut(lake=reading.lake.uri, runs=deciding[:_RUNS][::-1], **found)

    @api.get("/v1/scores", summary="How the scores of pairs are spread", responses=errors)
    async def scores(filters: Annotated[Filters, Depends()]) -> list[Histogram]:
        key = ("scores", filters.sql, *sorted(filters.parameters.items()))
        return await reading.unchanged(key, ("triples", "rejections"), lambda: _histograms(reading, filters))

    @api.get("/v1/kept", summary="What thresholds would keep", responses=errors)
    async def kept(
        request: Request,
        filters: Annotated[Filters, Depends()],
        keep: Annotated[
            str, Query(max_length=5000, description="a condition in SQL", examples=["confidence >= -0.02"])
        ],
    ) -> KeptOut:
        statement = _KEPT.format(sql=filters.sql, keep=checked(keep))
        found = await reading.rows(statement, filters.parameters, asker=asker(request))
        rows = {row["verdict"]: row for row in found}
        accepted, rejected = (Kept(of=rows[name]["of"], kept=rows[name]["kept"]) for name in ("accepted", "rejected"))
        return KeptOut(accepted=accepted, rejected=rejected)

    return api


async def prepare(reading: Reading) -> None:
    """Compute the overview and open the tables before the first request."""
    await _kept(reading, None)


async def _kept(reading: Reading, labeler: str | None) -> dict[str, Any]:
    return await reading.unchanged(("overview", labeler), _DECIDED, lambda: counted(reading, labeler))


async def counted(reading: Reading, labeler: str | None) -> dict[str, Any]:
    """Return everything of an overview but the runs."""
    found = (await reading.rows(_OVERVIEW, {"labeler": labeler}))[0]
    datasets = [DatasetOut(**row) for row in found["datasets"] or []]
    return {
        "videos": sum(one.videos for one in datasets),
        "triples": sum(one.accepted for one in datasets),
        "rejections": sum(one.rejected for one in datasets),
        "failures": found["failures"],
        "distinct_actions": found["distinct_actions"],
        "datasets": datasets,
        "verifiers": [VerifierOut(**row) for row in found["verifiers"] or []],
        "actions": [ActionOut(**row) for row in found["actions"] or []],
        "labelers": [LabelerOut(**row) for row in found["labelers"] or []],
    }


async def _histograms(reading: Reading, filters: Filters) -> list[Histogram]:
    made: dict[str, Histogram] = {}
    statement = _HISTOGRAMS.format(sql=filters.sql)
    for row in await reading.rows(statement, filters.parameters, asker=filters.asker):
        empty = Histogram(
            score=row["score"], low=row["low"], high=row["high"], accepted=[0] * _BINS, rejected=[0] * _BINS
        )
        found = made.setdefault(row["score"], empty)
        (found.accepted if row["accepted"] else found.rejected)[row["bin"]] = row["pairs"]
    return [made[name] for name in NAMES if name in made]
