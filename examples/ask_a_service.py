"""Ask a running service what happened between two images, and what an action would lead to.

    worldlake serve --lake LAKE --world builtin
    python examples/ask_a_service.py URL before.jpg after.jpg

URL is the address that the service prints; where the lake has keys, set WORLDLAKE_KEY.
"""

import base64
import os
import sys
from pathlib import Path

from worldlake import Client


def main(url: str, before: Path, after: Path) -> None:
    """Label, predict, query."""
    with Client(url, os.environ.get("WORLDLAKE_KEY")) as client:
        (label,) = client.label([(before.read_bytes(), after.read_bytes())]).labels
        print(f"{label.action} ({label.verdict})")
        predicted = client.predict(before.read_bytes(), label.action, n=4)
        Path("predicted.png").write_bytes(base64.b64decode(predicted.best.image))
        print("see predicted.png")
        (count,) = client.sql("SELECT count(*) FROM triples").rows[0]
        print(f"{count} triples in the lake")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
