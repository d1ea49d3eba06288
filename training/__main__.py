"""The command line of training: `python -m training STAGE --recipe NAME`, also under `accelerate launch -m`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training.recipe import RecipeError, load_recipe
from training.runs import run_all, run_stage
from vlm.answering import ModelError


@dataclass
class Pretrain:
    """One stage of the recipe: pre-training, nothing frozen, next-token loss."""

    recipe: str = "mini"
    """A shipped recipe's name (mini, mini-smoke, 10b) or a YAML file."""
    out: Path | None = None
    """Where runs are kept; runs/RECIPE by default. An interrupted run goes on from there."""
    trackers: str | None = None
    """An Accelerate tracker: tensorboard, wandb, comet_ml, mlflow ..."""
    workers: int = 1
    """Processes that draw and pack batches ahead."""


@dataclass
class Sft(Pretrain):
    """One stage of the recipe: supervised fine-tuning, its mixtures in turn, loss on the assistant's tokens."""

    model: str | None = None
    """What to fine-tune: a folder or hub id; by default what `pretrain` left in the run."""


@dataclass
class All(Pretrain):
    """Every stage of the recipe in order; what is done is skipped, what was interrupted goes on."""


@dataclass
class Report:
    """Evaluate a model on the world: accuracy by family with 95 % intervals, held-out compositions, the hard split."""

    model: str = "mini"
    """mini, a folder, or a hub id."""
    samples: int = 200
    """Questions a family and split."""
    splits: tuple[str, ...] = ("test", "held_out", "hard")
    """test, held_out, hard."""
    batch_size: int = 50
    """Questions answered at once."""
    json: bool = False
    """End with one JSON line."""
    out: Path | None = None
    """A folder for every answer (answers.jsonl) to be read."""
    max_new_tokens: int = 384
    """Where an answer is cut off, reasoning included."""


@dataclass
class Sheet:
    """Draw a contact sheet of the world: a row a family, with questions and answers, as a PNG to look at."""

    out: tyro.conf.Positional[Path]
    split: str = "test"
    columns: int = 6
    seed: int = 0


@dataclass
class Export:
    """Write samples of the world as a `datasets` folder of conversations, the form any stage trains from."""

    out: tyro.conf.Positional[Path]
    split: str = "train"
    count: int = 1000
    family: str | None = None
    modality: str = "picture"


@dataclass
class Speed:
    """Measure training speed: samples/s, the share of this machine's matrix-product peak, where the time goes."""

    recipe: str = "mini"
    steps: int = 10
    json: bool = False
    """End with one JSON line."""


@dataclass
class Foreign:
    """Accuracy on scenes drawn by other tools (SVG through cairo, matplotlib, a warped and compressed photo-like
    view), beside the native drawing of the same scenes."""

    model: str = "mini"
    samples: int = 60
    """Scenes a tool."""
    out: Path | None = None
    """A folder for the pictures."""
    json: bool = False
    """End with one JSON line."""


@dataclass
class Publish:
    """Write a finished run as a checkpoint to ship: bfloat16 weights, processor, and a card with data and scores."""

    recipe: str = "mini"
    run: Path | None = None
    """The run's folder; runs/RECIPE by default."""
    out: Path | None = None
    """checkpoints/RECIPE by default."""
    stage: str | None = None
    """Whose model; by default the recipe's last stage."""
    report: Path | None = None
    """A file that ends with the JSON line of `report --json`, for the card's scores."""


Command = (
    Annotated[Pretrain, tyro.conf.subcommand("pretrain")]
    | Annotated[Sft, tyro.conf.subcommand("sft")]
    | Annotated[All, tyro.conf.subcommand("all")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Sheet, tyro.conf.subcommand("sheet")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Speed, tyro.conf.subcommand("speed")]
    | Annotated[Foreign, tyro.conf.subcommand("foreign")]
    | Annotated[Publish, tyro.conf.subcommand("publish")]
)


def run(command) -> None:
    """Carries out one parsed command. What only some commands need is imported where it is needed."""
    match command:
        case All():
            run_all(load_recipe(command.recipe), command.out, trackers=command.trackers, workers=command.workers)
        case Pretrain():
            stage = "sft" if isinstance(command, Sft) else "pretrain"
            run_stage(load_recipe(command.recipe), stage, command.out, getattr(command, "model", None),
                      trackers=command.trackers, workers=command.workers)  # fmt: skip
        case Report():
            from training.report import print_report, report

            summary = report(command.model, command.samples, command.splits, command.batch_size, command.out,
                             command.max_new_tokens)  # fmt: skip
            print_report(summary, as_json=command.json)
        case Sheet():
            from training.world.sheet import contact_sheet

            contact_sheet(command.split, command.columns, command.seed).save(command.out)
        case Export():
            from training.conversations import export_world

            export_world(command.out, command.split, command.count, command.family, command.modality)
        case Speed():
            from training.speed import print_speed, speed

            print_speed(speed(load_recipe(command.recipe), command.steps), as_json=command.json)
        case Foreign():
            from training.foreign import foreign, print_foreign

            print_foreign(foreign(command.model, command.samples, command.out), as_json=command.json)
        case Publish():
            from training.publish import publish

            recipe = load_recipe(command.recipe)
            run_folder = command.run or Path("runs") / recipe.name
            out = command.out or Path("checkpoints") / recipe.name
            print(publish(recipe, run_folder, out, command.report, command.stage))


def main() -> None:
    command = tyro.cli(Command, prog="python -m training", description=__doc__)
    try:
        run(command)
    except (RecipeError, ModelError, ValueError, FloatingPointError) as error:
        print(f"training: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
