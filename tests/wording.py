"""Find idioms that a reader has to translate: `python -m tests.wording`, in `make lint`.

Docs, comments, docstrings, and messages say it in the words on the right.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = {".py", ".md", ".yaml", ".yml", ".toml", ".js", ".html", ".sh", ".ipynb"}
SAY = {
    r"(?<!there )\b(is|are|was|were) no (?!longer\b|more\b|larger\b|older\b)": "is not a …",
    r"\b(go|goes|went|going) on\b": "continue, resume",
    r"\bat work\b": "running, live",
    r"\b(lie|lies)\b": "is, is stored",
    r"\bso many\b": "N, that many",
    r"\bwhoever\b": "everyone who, the client that",
    r"\bforetell(s|ing)\b|\b(to|not) foretell\b": "predict",
    r"\bmend(s|ed|ing)?\b(?![(),])": "fix, repair",
    r"\bbefall": "happen to, affect",
    r"\bthe books\b": "the accounting, the counts",
    r"\bat the door\b": "in the proxy",
    r"\bin good order\b": "gracefully",
    r'"""(What|Whether)\b': "Return …, or a noun",
}
_BANNED = re.compile("|".join(f"(?P<w{place}>{pattern})" for place, pattern in enumerate(SAY)), re.IGNORECASE)


def findings(text: str) -> list[tuple[int, str, str]]:
    """Return line, words, and remedy of every idiom."""
    remedies = list(SAY.values())
    return [
        (text.count("\n", 0, found.start()) + 1, found[0], remedies[int(str(found.lastgroup)[1:])])
        for found in _BANNED.finditer(text)
    ]


def main(paths: list[str]) -> int:
    """Print every idiom in the files of the repository, or of the given paths."""
    listed = subprocess.run(["git", "ls-files", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split() if Path(name).suffix in KINDS and "/vendor/" not in name]
    found = [
        (name, *one) for name in names if ROOT / name != Path(__file__) for one in findings((ROOT / name).read_text())
    ]
    for name, line, words, remedy in found:
        print(f"{name}:{line}: {words!r}: {remedy}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
