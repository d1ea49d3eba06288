"""The command line of training: `python -m training STAGE --recipe NAME`, also under `accelerate launch -m`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging

from training.recipe import load_recipe
from training.runs import run_all, run_stage, told_otherwise
from training.schedule import RecipeError
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
class Vae(Pretrain):
    """One stage of the recipe: the editor's autoencoder."""


@dataclass
class EditPrimer(Pretrain):
    """One stage of the recipe: the editor's transformer alone learns to draw, told by numbers what becomes of each
    place."""


@dataclass
class Edit(Pretrain):
    """One stage of the recipe: the editor, on what `sft` and `vae` left in the run or on what the recipe names."""

    source: Literal["picture", "instruction", "words"] | None = None
    """What the painter is told: hidden states of picture and instruction, of the instruction alone, or the embeddings
    of its words; by default the recipe's. Another one is trained beside it, in edit_SOURCE."""


@dataclass
class EditJoint(Pretrain):
    """One stage of the recipe: the editor again, together with the model that sees if the recipe says so."""


@dataclass
class All(Pretrain):
    """Every stage of the recipe in order; what is done is skipped, what was interrupted goes on."""


@dataclass
class Report:
    """Evaluate on the world: a model's answers, or an editor's edits, by family with 95 % intervals, on new scenes, on
    held-out compositions and on the hard split."""

    edits: bool = False
    """Judge edits instead of answers."""
    model: str | None = None
    """mini (the default), a folder, or a hub id; with --edits, mini or the folder of an editor."""
    against: tuple[str, ...] = ()
    """More editors on the same edits (edits only): one table of success by family."""
    samples: int = 200
    """Questions, or edits, a family and split."""
    splits: tuple[str, ...] = ("test", "held_out", "hard")
    """test, held_out, hard."""
    batch_size: int = 50
    """Questions answered, or pictures painted, at once."""
    json: bool = False
    """End with one JSON line."""
    out: Path | None = None
    """A folder for every answer (answers.jsonl), or for every score and a sheet of edits."""
    max_new_tokens: int = 384
    """Where an answer is cut off, reasoning included."""
    steps: int | None = None
    """Of sampling (edits only); the editor's own by default."""
    guidance: float | None = None
    """Of sampling (edits only); the editor's own by default."""
    plan: bool = False
    """The model that sees writes a plan first (edits only; like the next two, one edit at a time)."""
    candidates: int = 1
    """Pictures painted for each edit, of which the model keeps the best (edits only)."""
    reflections: int = 0
    """Results the model inspects at most, to accept, retry or roll back (edits only)."""
    told: Literal["instruction", "plan", "numbers"] = "instruction"
    """What the editor is told: the instruction, the world's own plan, or numbers, by which the painter alone is judged
    (edits only)."""


@dataclass
class Sheet:
    """Draw a contact sheet of the world: a row a family, with questions and answers, as a PNG to look at."""

    out: tyro.conf.Positional[Path]
    edits: bool = False
    """Edits instead of questions: before, after and the instruction."""
    split: str = "test"
    columns: int = 6
    seed: int = 0


@dataclass
class Export:
    """Write samples of the world as a `datasets` folder of conversations, the form any stage trains from; or edits in
    the form that Step1X-Edit is fine-tuned from (metadata.json)."""

    out: tyro.conf.Positional[Path]
    edits: bool = False
    """Pairs of pictures with instructions instead of questions."""
    split: str = "train"
    count: int = 1000
    family: str | None = None
    modality: str = "picture"
    """picture or text (questions only)."""
    language: str | None = None
    """en or zh (edits only); both by default."""
    size: int = 128
    """Pixels a side (edits only)."""


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
    view), beside the native drawing of the same scenes; or an editor's success on them."""

    edits: bool = False
    """Judge edits instead of answers."""
    model: str = "mini"
    """mini, a folder, or a hub id; with --edits, mini or the folder of an editor."""
    samples: int = 60
    """Scenes a tool."""
    out: Path | None = None
    """A folder for the pictures, or for a sheet of the edits."""
    json: bool = False
    """End with one JSON line."""


@dataclass
class Publish:
    """Write a finished run as a checkpoint to ship: bfloat16 weights, processor, and a card with data and scores. With
    `--stage edit` the editor, into the folder `editor` beside the model that sees."""

    recipe: str = "mini"
    run: Path | None = None
    """The run's folder; runs/RECIPE by default."""
    out: Path | None = None
    """checkpoints/RECIPE by default."""
    stage: str | None = None
    """Whose model: pretrain, sft, edit or edit_joint, or edit_primer's transformer for the editor that is there; by
    default the last of the first two that the recipe has."""
    report: Path | None = None
    """A file that ends with the JSON line of `report --json` (or `report --edits --json`), for the card's scores."""
    sheet: Path | None = None
    """The edits.png of `report --edits --out DIR`, for the card of an editor."""


Command = (
    Annotated[Pretrain, tyro.conf.subcommand("pretrain")]
    | Annotated[Sft, tyro.conf.subcommand("sft")]
    | Annotated[Vae, tyro.conf.subcommand("vae")]
    | Annotated[EditPrimer, tyro.conf.subcommand("edit-primer")]
    | Annotated[Edit, tyro.conf.subcommand("edit")]
    | Annotated[EditJoint, tyro.conf.subcommand("edit-joint")]
    | Annotated[All, tyro.conf.subcommand("all")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Sheet, tyro.conf.subcommand("sheet")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Speed, tyro.conf.subcommand("speed")]
    | Annotated[Foreign, tyro.conf.subcommand("foreign")]
    | Annotated[Publish, tyro.conf.subcommand("publish")]
)


STAGES = {Pretrain: "pretrain", Sft: "sft", Vae: "vae", EditPrimer: "edit_primer", Edit: "edit",
          EditJoint: "edit_joint"}  # fmt: skip


def run(command) -> None:
    """Carries out one parsed command. What only some commands need is imported where it is needed."""
    match command:
        case All():
            run_all(load_recipe(command.recipe), command.out, trackers=command.trackers, workers=command.workers)
        case Pretrain():
            stage = STAGES[type(command)]
            recipe = load_recipe(command.recipe)
            if source := getattr(command, "source", None):
                recipe, stage = told_otherwise(recipe, source)
            run_stage(recipe, stage, command.out, getattr(command, "model", None),
                      trackers=command.trackers, workers=command.workers)  # fmt: skip
        case Report(edits=True):
            from training.edit_report import compare_edit_reports, edit_report, print_edit_report
            from training.edit_thought import Thinking

            thinking = Thinking(command.plan, command.candidates, command.reflections)
            how = (command.samples, command.splits, command.steps, command.guidance, command.batch_size)
            summary = edit_report(command.model or "mini", *how, command.out, thinking, command.told)
            summary |= compare_edit_reports(command.against, *how, None, thinking, command.told)
            print_edit_report(summary, as_json=command.json)
        case Report():
            from training.report import print_report, report

            summary = report(command.model or "mini", command.samples, command.splits, command.batch_size, command.out,
                             command.max_new_tokens)  # fmt: skip
            print_report(summary, as_json=command.json)
        case Sheet():
            from training.world.sheet import contact_sheet, edit_sheet

            draw = edit_sheet if command.edits else contact_sheet
            draw(command.split, command.columns, command.seed).save(command.out)
        case Export(edits=True):
            from training.edit_folder import export_edits

            export_edits(command.out, command.split, command.count, command.family, command.language, command.size)
        case Export():
            from training.conversations import export_world

            export_world(command.out, command.split, command.count, command.family, command.modality)
        case Speed():
            from training.speed import print_speed, speed

            print_speed(speed(load_recipe(command.recipe), command.steps), as_json=command.json)
        case Foreign(edits=True):
            from training.foreign import print_foreign
            from training.foreign_edits import foreign_edits

            results = foreign_edits(command.model, command.samples, command.out)
            print_foreign(results, as_json=command.json, figure="success")
        case Foreign():
            from training.foreign import foreign, print_foreign

            print_foreign(foreign(command.model, command.samples, command.out), as_json=command.json)
        case Publish():
            from training.edit_publish import STAGES as OF_THE_EDITOR
            from training.edit_publish import publish_editor
            from training.publish import publish

            recipe = load_recipe(command.recipe)
            run_folder = command.run or Path("runs") / recipe.name
            out = command.out or Path("checkpoints") / recipe.name
            stage = (command.stage or "").replace("-", "_")
            if stage in OF_THE_EDITOR:
                print(publish_editor(recipe, run_folder, out / "editor", command.report, stage, command.sheet))
            else:
                print(publish(recipe, run_folder, out, command.report, command.stage))


def main() -> None:
    logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    command = tyro.cli(Command, prog="python -m training", description=__doc__)
    try:
        run(command)
    except (RecipeError, ModelError, ValueError, FloatingPointError, OSError) as error:
        print(f"training: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
