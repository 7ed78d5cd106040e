"""A pytest plugin: where `WORLDLAKE_STRICT_SKIPS` is set, a skip for a reason that is not listed here is a failure.

Continuous integration sets it, so that a test for which a program is missing cannot go unnoticed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from typing import Any

import pytest

VARIABLE = "WORLDLAKE_STRICT_SKIPS"

# Beginnings of reasons.
EXPECTED = (
    "there is a GPU",
    "takes no video of two frames",
    # Tests run both with and without it; it changes which image processors are used.
    "the stock video processor needs torchvision",
    "the stock processors need torchvision",
    # From KubeRay's repository, in a folder that not every machine has.
    "WORLDLAKE_CRD_SCHEMAS names no folder",
    # In containers root may not mount, nor make network namespaces.
    "needs the right to mount a tmpfs",
    "needs root, to mount a small disk",
    "network namespaces need root",
    "PID namespaces need root",
    "needs root and debootstrap",
)


def is_expected(reason: str) -> bool:
    """Return whether a machine may lack what the test needs."""
    return reason.startswith(EXPECTED)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse(report)
    return report


def _refuse(report: Any) -> None:
    if not os.environ.get(VARIABLE) or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    _, _, said = report.longrepr
    reason = re.sub(r"^(Skipped: |could not import .*?: )", "", said)
    if not is_expected(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped, but tests/skips.py does not list the reason: {reason}"
