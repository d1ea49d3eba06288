"""A run is a folder: `RUN/STAGE/` holds a stage's checkpoints, log, curves and, when it is done, its `model/`."""

from pathlib import Path

from training.curves import draw_curves
from training.edit import edit
from training.pretrain import pretrain
from training.recipe import Recipe, RecipeError
from training.sft import sft
from training.vae import vae


def run_stage(recipe: Recipe, stage: str, out: Path | None = None, model: str | None = None, **options) -> Path:
    """Runs one stage, or finds it done; returns the folder of its model.

    Args:
        out: the run's folder, `runs/NAME` by default.
        model: what `sft` starts from, by default what `pretrain` left in the run.

    Raises:
        RecipeError: the recipe has no such stage, or there is nothing to start from.
    """
    if stage not in recipe.stages:
        raise RecipeError(f"recipe {recipe.name!r} has no stage {stage!r}; it has {', '.join(recipe.stages)}.")
    run = out or Path("runs") / recipe.name
    done = run / stage / "model"
    if done.is_dir():
        print(f"{stage}: done already, see {done}; remove {run / stage} to train it again.")
        return done
    if stage == "pretrain":
        return pretrain(recipe, run / stage, **options)
    if stage == "vae":
        return vae(recipe, run / stage, **options)
    if stage in ("edit", "edit_joint"):
        return edit(recipe, stage, run, **options)
    start_from = model or run / "pretrain" / "model"
    if model is None and not start_from.is_dir():
        raise RecipeError(f"sft needs a model: {start_from} is missing; run `pretrain` first or give --model.")
    return sft(recipe, str(start_from), run / stage, **options)


def run_all(recipe: Recipe, out: Path | None = None, **options) -> Path:
    """Every stage of the recipe in order, skipping what is done; the folder of the last model."""
    run = out or Path("runs") / recipe.name
    last = None
    for stage in recipe.stages:
        last = run_stage(recipe, stage, run, **options)
    draw_curves([log for stage in recipe.stages if (log := run / stage / "log.jsonl").exists()], run / "curves.png")
    return last
