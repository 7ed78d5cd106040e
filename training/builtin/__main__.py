"""Train the builtin models on the sample world.

    python -m training.builtin generate           write the training pairs, in shards
    python -m training.builtin fit dynamics       train the dynamics model
    python -m training.builtin fit tokenizer      train the image tokenizer of the world model
    python -m training.builtin fit world          train the world model, on the codes of that tokenizer
    python -m training.builtin export dynamics    write a trained model as a weights folder; likewise world

Every step is seeded, and resumes where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from models.folders import BUILTIN
from models.world_loading import BUILTIN_WORLD
from training.builtin import data, dynamics, tokenizer, world
from training.builtin.train_loop import Recipe

_RECIPES = {
    "dynamics": (dynamics.fit, {"steps": 9000, "batch": 32, "peak": 1e-3, "every": 300}),
    "tokenizer": (tokenizer.fit, {"steps": 6000, "batch": 16, "peak": 1e-3, "every": 250}),
    "world": (world.fit, {"steps": 5000, "batch": 24, "peak": 1.5e-3, "every": 250}),
}
_EXPORTS = {"dynamics": (dynamics.export, BUILTIN), "world": (world.export, BUILTIN_WORLD)}


def main() -> None:
    """Read the command line and run one step."""
    parser = argparse.ArgumentParser(
        prog="python -m training.builtin",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, dest="command")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--folder", type=Path, default=Path("scratch/builtin"), help="folder of training pairs and checkpoints"
    )
    shards = argparse.ArgumentParser(add_help=False)
    shards.add_argument("--shards", type=int, default=40, help=f"shards of {data.CLIPS_PER_SHARD} clips")
    commands.add_parser("generate", parents=[shared, shards], help="write the shards that are missing")
    kinds = commands.add_parser("fit", help="train a model").add_subparsers(required=True, dest="kind")
    for kind, (_, defaults) in _RECIPES.items():
        fit = kinds.add_parser(kind, parents=[shared, shards], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        fit.add_argument("--steps", type=int, default=defaults["steps"], help="optimizer steps")
        fit.add_argument("--batch", type=int, default=defaults["batch"], help="pairs of a step")
        fit.add_argument("--peak", type=float, default=defaults["peak"], help="highest learning rate")
        fit.add_argument("--every", type=int, default=defaults["every"], help="steps between checkpoints")
        fit.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
        fit.add_argument("--threads", type=int, default=1, help="CPU threads")
    exporting = commands.add_parser("export", parents=[shared], help="write a trained model as a weights folder")
    exporting.add_argument("kind", choices=_EXPORTS, help="which model")
    exporting.add_argument("--weights", type=Path, help="the folder to write; default: the one that ships")
    _run(parser.parse_args())


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "generate":
        data.generate(arguments.folder / "data", arguments.shards)
    elif arguments.command == "fit":
        torch.set_num_threads(arguments.threads)
        recipe = Recipe(**{name: getattr(arguments, name) for name in Recipe.__dataclass_fields__})
        _RECIPES[arguments.kind][0](recipe)
    else:
        export, shipped = _EXPORTS[arguments.kind]
        export(arguments.folder, arguments.weights or shipped)


if __name__ == "__main__":
    main()
