"""The verifying stage: scores and a policy become a verdict, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from labeling.policy import Policy
from labeling.stream import VERIFIED
from lake.metrics import STAGE_SECONDS
from lake.scores import NAMES


@dataclass(frozen=True)
class Verify:
    """Adds `reasons`: the verifiers that reject the pair; an empty list means accepted."""

    policy: Policy

    def __call__(self, labeled: pa.Table) -> pa.Table:
        """`LABELED` rows in, `VERIFIED` rows out, in order."""
        with STAGE_SECONDS.timed(stage="verify", source="label"):
            scores = labeled.select(["dataset", *NAMES]).to_pylist()
            reasons = [self.policy.reasons(row, row.pop("dataset")) for row in scores]
        return labeled.append_column("reasons", pa.array(reasons, VERIFIED.field("reasons").type))
