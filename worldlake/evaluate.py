"""`worldlake evaluate dynamics|world`: options, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from worldlake import console
from worldlake.options import Config, Endpoint, Json, LakeUri, Profile, Region, filled, open_lake, storage

if TYPE_CHECKING:
    from worldlake.evaluation import Outcome

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Say how good a model is on pairs whose action is known, with intervals and a report of pictures.",
)

Split = Annotated[str, typer.Option(help="train, validation, test or all.")]
Datasets = Annotated[list[str] | None, typer.Option("--dataset", help="Data set; may be repeated. Default: all.")]
Labelers = Annotated[
    list[str] | None,
    typer.Option("--labeler", help="Whose labels are the truth; may be repeated. Default: people's (human:...)."),
]
Where = Annotated[
    str | None, typer.Option(help='SQL condition on the columns of triples and class_label, e.g. "motion > 0.1".')
]
Limit = Annotated[int, typer.Option(min=1, help="Evaluate at most so many pairs, always the same ones.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the random actions, and of what a world model draws.")]
Model = Annotated[
    str, typer.Option(help="Dynamics model: builtin, hf:<folder>, hf:<owner>/<repository> or s3://<folder>.")
]
Adapter = Annotated[str | None, typer.Option(callback=filled, help="LoRA adapter of the dynamics model.")]
Prompt = Annotated[
    str | None, typer.Option(help="What the dynamics model is asked; default: as it was trained, or as labeling asks.")
]
ImageSize = Annotated[int | None, typer.Option(help="Side of the images it sees in pixels; default: the model's.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="auto (bfloat16 on GPU, float32 on CPU), float32 or bfloat16."),
]
BatchSize = Annotated[int, typer.Option(min=1, max=4096, help="Pairs that a model sees at once.")]
Report = Annotated[Path | None, typer.Option(help="HTML file to write: figures, and samples as pictures.")]


@app.command()
def dynamics(
    lake: LakeUri,
    model: Model = "builtin",
    adapter: Adapter = None,
    prompt: Prompt = None,
    image_size: ImageSize = None,
    dtype: Dtype = "auto",
    batch_size: BatchSize = 16,
    split: Split = "test",
    dataset: Datasets = None,
    labeler: Labelers = None,
    where: Where = None,
    limit: Limit = 1000,
    seed: Seed = 0,
    report: Report = None,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Name the action of labeled pairs: exact match, ROUGE, BLEU, and whether the truth is preferred to four others.

    The others are a random action, a counterfactual one, the two frames swapped, and the first frame twice. Every
    figure has a 95 % interval and the number of pairs behind it. The figures also go to the table runs.
    """
    from worldlake.evaluation import evaluate_dynamics, model_settings
    from worldlake.evaluation_pairs import Choice

    outcome = evaluate_dynamics(
        open_lake(lake, storage(endpoint_url, region, profile)),
        Choice.of(split, dataset, labeler, where, limit, seed, batch_size),
        model_settings(model, adapter, dtype, batch_size, image_size=image_size, prompt=prompt),
        report,
    )
    return _say(outcome, json)


@app.command()
def world(
    lake: LakeUri,
    world: Annotated[str, typer.Option(help="World model, named as --model is.")] = "builtin",
    world_adapter: Annotated[str | None, typer.Option(callback=filled, help="LoRA adapter of the world model.")] = None,
    n: Annotated[
        int, typer.Option("-n", min=1, max=1024, help="Candidates of each pair, of which --model chooses one.")
    ] = 8,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="Of drawing; 0: always the likeliest.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest image tokens.")] = None,
    top_p: Annotated[float, typer.Option(min=0.001, max=1, help="Draw from the likeliest of this share.")] = 1.0,
    model: Model = "builtin",
    adapter: Adapter = None,
    referee: Annotated[
        str | None,
        typer.Option(help="Another dynamics model, to name what the predictions show; with -n 1 default: --model."),
    ] = None,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="The videos are of the sample world: let its oracle say what is shown.")
    ] = False,
    features: Annotated[
        list[str] | None, typer.Option(help="CLIP or DINO model to compare images by, hf:<folder>; may be repeated.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Endpoint of a judge, https://host/v1 (key: OPENAI_API_KEY).")
    ] = None,
    judge_model: Annotated[str, typer.Option(help="What the endpoint calls the judge.")] = "gpt-4o",
    dtype: Dtype = "auto",
    batch_size: BatchSize = 16,
    split: Split = "test",
    dataset: Datasets = None,
    labeler: Labelers = None,
    where: Where = None,
    limit: Limit = 1000,
    seed: Seed = 0,
    report: Report = None,
    endpoint_url: Endpoint = None,
    region: Region = None,
    profile: Profile = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Predict what labeled actions lead to: the best of n candidates by the dynamics model, against what happened.

    Beside it stand one sample, a copy of obs, and the true next_obs as the model's tokenizer shows it. Every figure has
    a 95 % interval and the number of pairs behind it. The figures also go to the table runs.
    """
    from worldlake.evaluation import WorldOptions, evaluate_world, model_settings, world_settings
    from worldlake.evaluation_pairs import Choice

    outcome = evaluate_world(
        open_lake(lake, storage(endpoint_url, region, profile)),
        Choice.of(split, dataset, labeler, where, limit, seed, batch_size),
        WorldOptions(
            world_settings(world, world_adapter, dtype, batch_size, temperature, top_k, top_p),
            model_settings(model, adapter, dtype, batch_size),
            n,
            referee=model_settings(referee, None, dtype, batch_size) if referee else None,
            oracle=oracle,
            features=tuple(features or ()),
            judge=judge,
            judge_model=judge_model,
        ),
        report,
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
