"""The recipes of docs/extending.md, walked: their blocks make code that works, in one new file and one entry."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_PLACES = [path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "bench"]
_BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass
class Recipe:
    """A section of the page."""

    title: str
    text: str
    written: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    """Lines that a change adds, without imports."""

    def apply(self, tree: Path) -> None:
        for kind, name, block in _BLOCK.findall(self.text):
            path = tree / name
            if kind == "diff":
                self.changed.append(name)
                path.write_text(self._patched(path.read_text(), block, name))
            else:
                assert not path.exists(), name
                self.written.append(name)
                path.write_text(block)

    def _patched(self, before: str, block: str, name: str) -> str:
        lines = block.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert before.count(old) == 1, f"{name} no longer has the lines that the recipe changes:\n{old}"
        self.entries += [line for line in lines if line[0] == "+" and "import" not in line]
        return before.replace(old, new)


def recipes() -> list[Recipe]:
    sections = re.split(r"^## ", (ROOT / "docs/extending.md").read_text(), flags=re.MULTILINE)[1:]
    return [Recipe(*section.split("\n", 1)) for section in sections]


def run(tree: Path, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.title)
def test_a_recipe_works_and_is_one_file_and_one_entry(recipe: Recipe, tmp_path: Path) -> None:
    for place in _PLACES:
        shutil.copytree(ROOT / place, tmp_path / place, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    recipe.apply(tmp_path)
    code = [name for name in recipe.written if not name.startswith("tests/")]
    tests = [name for name in recipe.written if name.startswith("tests/")]
    # A column is an entry and no file.
    assert (len(code), len(set(recipe.changed)), len(recipe.entries), bool(tests)) in ((1, 1, 1, True), (0, 1, 1, True))
    run(tmp_path, "ruff", "check", *recipe.written, *recipe.changed)
    run(tmp_path, "ruff", "format", "--check", *recipe.written, *recipe.changed)
    run(tmp_path, "pytest", "-p", "no:cacheprovider", "-n0", *tests)
