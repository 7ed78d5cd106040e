"""Train a world model on the verified triples of a lake, and compare it with the one that it began as.

    python examples/train.py /data/lake 200

Run it again to resume.
"""

import sys

from worldlake import Source, WorldSettings, WorldTraining, evaluate, query, train


def main(lake: str, steps: int) -> None:
    """Train on the labeler that has the most triples; evaluate on those of the split test."""
    found = query(lake, "SELECT labeler_id FROM triples GROUP BY ALL ORDER BY count(*) DESC LIMIT 1")
    labeler = found["labeler_id"][0].as_py()
    settings = WorldTraining(steps=steps, batch_size=16, sources=(Source(labelers=(labeler,)),), floor=0.3)
    trained = train(lake, settings, progress=print)
    print(trained.text())
    for world in (WorldSettings(), WorldSettings(adapter=trained.model)):
        outcome = evaluate(lake, world=world, n=4, labelers=[labeler])
        print(outcome.figures["best of 4"]["changed_psnr_db"], "dB over pixels that change,", outcome.text())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]))
