"""Label a folder of videos, and print what happens in them.

    python examples/label_a_folder.py /data/videos /data/lake

Run it again to resume, or to label what was added to the folder.
"""

import sys

from worldlake import Refused, ingest, label, query


def main(videos: str, lake: str) -> None:
    """Catalog, label, query."""
    found = ingest(lake, videos).videos
    print(f"{found.new} new videos, {found.known} known")
    for row in query(lake, "SELECT uri, message FROM failures WHERE stage IN ('probe', 'list')").to_pylist():
        print(f"cannot be read: {row['uri']} ({row['message']})")
    print(label(lake, progress=lambda done, counts: print(f"{done} done, {counts['accepted']} accepted")).text())
    print(query(lake, "SELECT action, count(*) AS pairs FROM triples GROUP BY ALL ORDER BY ALL").to_pandas())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except Refused as error:
        # One line says what is wrong and what to do.
        sys.exit(str(error))
