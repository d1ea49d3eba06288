"""A run is a folder: `RUN/STAGE/` holds a stage's checkpoints, log, curves and, when it is done, its `model/`."""

from pathlib import Path

from training.curves import draw_curves
from training.edit import edit
from training.edit_primer import edit_primer
from training.edit_stages import EditStage, PrimerStage
from training.pretrain import pretrain
from training.recipe import Recipe
from training.schedule import RecipeError
from training.sft import sft
from training.vae import vae


def run_stage(recipe: Recipe, stage: str, out: Path | None = None, model: str | None = None, **options) -> Path:
    """Runs one stage, or finds it done; returns the folder of its model.

    Args:
        out: the run's folder, `runs/NAME` by default.
        model: what `sft` starts from, by default what `pretrain` left in the run or, where the recipe has no such
            stage, its own `model.from_pretrained`.

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
    if isinstance(recipe.stages[stage], PrimerStage):
        return edit_primer(recipe, stage, run, **options)
    if isinstance(recipe.stages[stage], EditStage):
        return edit(recipe, stage, run, **options)
    return sft(recipe, model or _start_of_sft(recipe, run), run / stage, **options)


def _start_of_sft(recipe: Recipe, run: Path) -> str:
    if "pretrain" not in recipe.stages and recipe.model and recipe.model.from_pretrained:
        return recipe.model.from_pretrained
    earlier = run / "pretrain" / "model"
    if not earlier.is_dir():
        raise RecipeError(f"sft needs a model: {earlier} is missing; run `pretrain` first or give --model.")
    return str(earlier)


def told_otherwise(recipe: Recipe, source: str) -> tuple[Recipe, str]:
    """The recipe with a stage `edit_SOURCE`, its `edit` on other embeddings, and that stage's name; the recipe itself
    where `edit` is told so already. Raises `RecipeError` where there is no `edit`."""
    own = recipe.stages.get("edit")
    if own is None:
        raise RecipeError(f"recipe {recipe.name!r} has no stage 'edit'; it has {', '.join(recipe.stages)}.")
    if own.conditioning.get("source", "picture") == source:
        return recipe, "edit"
    other = own.model_copy(update={"conditioning": own.conditioning | {"source": source}})
    name = f"edit_{source}"
    return recipe.model_copy(update={"stages": recipe.stages | {name: other}}), name


def run_all(recipe: Recipe, out: Path | None = None, **options) -> Path:
    """Every stage of the recipe in order, skipping what is done; the folder of the last model."""
    run = out or Path("runs") / recipe.name
    last = None
    for stage in recipe.stages:
        last = run_stage(recipe, stage, run, **options)
    draw_curves([log for stage in recipe.stages if (log := run / stage / "log.jsonl").exists()], run / "curves.png")
    return last
