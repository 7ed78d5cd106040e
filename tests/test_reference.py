"""docs/reference says what the code says, everything in it has a description, and the site builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate
from lake import schemas
from lake.scores import SCORES

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
_PAGE = re.compile(r"(?<![\w/.])docs/[\w/-]+\.(?:md|ipynb)")


@pytest.mark.parametrize("name", generate.PAGES)
def test_pages_say_what_the_code_says(name: str) -> None:
    assert (generate.REFERENCE / f"{name}.md").read_text() == generate.page(name), "run: make docs"


def test_every_command_and_option_has_a_description() -> None:
    lines = re.findall(r"^\* .*$", generate.cli(), flags=re.MULTILINE)
    assert len(lines) > 200
    assert [line for line in lines if not re.match(r"\* (`.+`|\[`.+`\]\(.+\)): [^*\s]", line)] == []


def test_every_key_of_a_settings_model_has_a_description() -> None:
    fields = [
        (model, name, field) for model in generate.settings_models() for name, field in model.model_fields.items()
    ]
    assert len(fields) > 50
    assert [f"{model.__name__}.{name}" for model, name, field in fields if not field.description] == []


def test_every_table_column_and_score_has_a_description() -> None:
    described = [*schemas.SPEC, *(column for table in schemas.SPEC for column in table), *SCORES]
    assert [one.name for one in described if not one.description] == []


def test_every_endpoint_and_parameter_has_a_description() -> None:
    endpoints = list(generate.operations())
    assert len(endpoints) > 20
    for method, path, operation in endpoints:
        assert operation.get("summary"), f"{method} {path}"
        for parameter in operation.get("parameters", []):
            assert generate.about(parameter), f"{method} {path}: {parameter['name']}"


def test_every_metric_has_a_description() -> None:
    assert [name for name, _, _, _, meaning in generate.metric_rows() if not meaning] == []


def test_pages_that_are_named_exist() -> None:
    """Links of pages outside the site, and pages that code, manifests and other pages name."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = {name: (ROOT / name).read_text() for name in tracked if name.endswith((".md", ".py", ".yaml", ".html"))}
    links = [(name, link) for name in texts if re.fullmatch(r"\w+\.md", name) for link in _LINK.findall(texts[name])]
    named = [(name, page) for name, text in texts.items() for page in _PAGE.findall(text)]
    assert len(links) > 20
    assert len(named) > 20
    assert [(name, target) for name, target in links + named if not (ROOT / target).exists()] == []


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    # With --quiet mkdocs counts no warnings.
    assert built.returncode == 0, built.stderr
    pages = {page.relative_to(tmp_path).as_posix() for page in tmp_path.rglob("*.html")}
    assert pages >= {f"reference/{name}.html" for name in generate.PAGES}
    # A reader without a network gets all of it.
    for page in tmp_path.rglob("*.html"):
        assert not re.findall(r'(?:src|<link[^>]* href)="https?://[^"]*"', page.read_text()), page
