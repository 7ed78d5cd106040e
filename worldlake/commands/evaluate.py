"""`worldlake evaluate dynamics|world`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from lake.storage import StorageConfig
from models.settings import ModelSettings
from worldlake import console
from worldlake.api import evaluate
from worldlake.options import (
    SELECTION,
    ConfigFile,
    Json,
    LakeUri,
    Model,
    ModelOptions,
    Storage,
    World,
    WorldModelOptions,
    filled,
    number,
    open_lake,
)

if TYPE_CHECKING:
    from worldlake.evaluation import Outcome

_JUDGING = Group("Judging", sort_key=4)

Split = Annotated[str, Parameter(group=SELECTION, help="train, validation, test or all.")]
Datasets = Annotated[
    list[str] | None, Parameter(name="--dataset", group=SELECTION, help="Data set; repeat for several. Default: all.")
]
Labelers = Annotated[
    list[str] | None,
    Parameter(
        name="--labeler",
        group=SELECTION,
        help="Whose labels are the truth; repeat for several. Default: people's (human:...).",
    ),
]
Where = Annotated[
    str | None,
    Parameter(
        group=SELECTION,
        validator=filled,
        help='SQL condition on the columns of triples and class_label, such as "motion > 0.1".',
    ),
]
Limit = Annotated[
    int, Parameter(group=SELECTION, validator=number(1), help="Evaluate at most N pairs, always the same ones.")
]
Seed = Annotated[int, Parameter(validator=number(0), help="Seed of random actions, and of what a world model draws.")]
Report = Annotated[Path | None, Parameter(help="HTML file to write: figures, and samples as pictures.")]


def dynamics(
    *,
    lake: LakeUri,
    model: Model = ModelOptions(),
    split: Split = "test",
    dataset: Datasets = None,
    labeler: Labelers = None,
    where: Where = None,
    limit: Limit = 1000,
    seed: Seed = 0,
    report: Report = None,
    storage: Storage = StorageConfig(),
    json: Json = False,
    config: ConfigFile = None,
) -> int:
    """Name the action of labeled pairs: exact match, ROUGE, BLEU, and whether the truth is preferred to four others.

    The others are a random action, a counterfactual one, the two frames swapped, and the first frame twice. Every
    figure has a 95 % interval and the number of pairs behind it. The figures also go to the table runs.
    """
    outcome = evaluate(
        open_lake(lake, storage),
        model,
        split=split,
        datasets=dataset or (),
        labelers=labeler or (),
        where=where,
        limit=limit,
        seed=seed,
        report=report,
    )
    return _say(outcome, json)


def world(
    *,
    lake: LakeUri,
    world: World = WorldModelOptions(),
    n: Annotated[
        int, Parameter(name="-n", validator=number(1, 1024), help="Candidates per pair, of which --model chooses one.")
    ] = 8,
    model: Model = ModelOptions(),
    referee: Annotated[
        str | None,
        Parameter(
            group=_JUDGING,
            validator=filled,
            help="Another dynamics model, to name what the predictions show. Default with -n 1: --model.",
        ),
    ] = None,
    oracle: Annotated[
        bool, Parameter(group=_JUDGING, help="The videos are of the sample world: let its oracle say what is shown.")
    ] = False,
    features: Annotated[
        list[str] | None,
        Parameter(group=_JUDGING, help="CLIP or DINO model to compare images by, hf:<folder>; repeat for several."),
    ] = None,
    judge: Annotated[
        str | None,
        Parameter(group=_JUDGING, validator=filled, help="Endpoint of a judge, https://host/v1 (key: OPENAI_API_KEY)."),
    ] = None,
    judge_model: Annotated[str, Parameter(group=_JUDGING, help="Name of the judge at its endpoint.")] = "gpt-4o",
    split: Split = "test",
    dataset: Datasets = None,
    labeler: Labelers = None,
    where: Where = None,
    limit: Limit = 1000,
    seed: Seed = 0,
    report: Report = None,
    storage: Storage = StorageConfig(),
    json: Json = False,
    config: ConfigFile = None,
) -> int:
    """Predict what labeled actions lead to: the best of n candidates by the dynamics model, against what happened.

    Beside it stand one sample, a copy of obs, and the true next_obs as the model's tokenizer shows it. Every figure has
    a 95 % interval and the number of pairs behind it. The figures also go to the table runs.
    """
    other = model.model_dump(include={"dtype", "batch_size"})
    outcome = evaluate(
        open_lake(lake, storage),
        model,
        world=world,
        n=n,
        split=split,
        datasets=dataset or (),
        labelers=labeler or (),
        where=where,
        limit=limit,
        seed=seed,
        referee=ModelSettings(name=referee, **other) if referee else None,
        oracle=oracle,
        features=features or (),
        judge=judge,
        judge_model=judge_model,
        report=report,
    )
    return _say(outcome, json)


def _say(outcome: Outcome, json: bool) -> int:
    if json:
        console.print_json(outcome.plain())
        return 0
    for title, columns, rows in outcome.tables():
        console.print_table(title, columns, rows)
    console.out.print(outcome.text(), markup=False)
    return 0
