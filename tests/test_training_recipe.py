"""Recipes: the shipped ones load; bad ones are refused at once with the field, the value and the remedy."""

import pytest
import torch
import yaml

from edit.configuration import build
from training.publish import MOST_BYTES
from training.recipe import RECIPES, load_recipe
from training.schedule import RecipeError
from vlm.answering import checkpoints


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.yaml")))
def test_shipped_recipes_load(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    # What goes on from a checkpoint begins with `sft`, from a primer with `edit_primer`, and adapters with `edit`.
    assert next(iter(recipe.stages)) in ("pretrain", "sft", "vae", "edit_primer", "edit")
    assert recipe.model or "pretrain" not in recipe.stages


def test_minis_editor_is_of_one_size():
    """Its autoencoder, its painter and the world's pictures; and its weights can be shipped with the model's."""
    stages = load_recipe("mini").stages
    assert stages["vae"].size == stages["edit"].size == stages["edit_joint"].size == 128
    with torch.device("meta"):
        parts = build("mini", connector=stages["edit"].connector, transformer=stages["edit"].transformer,
                      vae=stages["vae"].vae)  # fmt: skip
    parameters = sum(p.numel() for name in ("connector", "transformer", "vae") for p in parts[name].parameters())
    shipped = sum(f.stat().st_size for f in (checkpoints() / "mini").iterdir() if f.is_file())
    assert 2 * parameters + shipped < 0.97 * MOST_BYTES


def test_the_papers_values_at_the_papers_scale():
    recipe = load_recipe("10b")
    assert recipe.fsdp and recipe.stages["pretrain"].steps == 370_000
    first, second = recipe.stages["sft"].phases
    assert [s.weight for s in first.mixture] == [9, 1] and [s.weight for s in second.mixture] == [1, 1]
    assert recipe.stages["sft"].row_length == 32_768


def _changed(**changes) -> dict:
    values = yaml.safe_load((RECIPES / "mini-smoke.yaml").read_text())
    values["stages"]["pretrain"].update(changes)
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (_changed(batch_sise=3), r"stages\.pretrain\.batch_sise: Extra inputs are not permitted \(got 3\)"),
        (_changed(batch_size=0), r"stages\.pretrain\.batch_size: .*greater than 0 \(got 0\)"),
        (_changed(phases=[]), r"stages\.pretrain\.phases"),
        (_changed(phases=[{"steps": 1, "mixture": [{"weight": 1}]}]), "exactly one of `world` and `dataset`"),
        (_changed(phases=[{"steps": 1, "mixture": [{"weight": 1, "world": {"families": ["dogs"]}}]}]), "dogs"),
        (_changed(phases=[{"steps": 1, "mixture": [{"weight": 1, "world": {"split": "test"}}]}]), "train"),
        ({"name": "x", "model": {}, "stages": {}}, "exactly one of `preset` and `from_pretrained`"),
        (_changed() | {"model": None}, "`pretrain` needs `model`"),
        ("not a mapping", "recipe"),
    ],
    ids=[
        "unknown key",
        "zero",
        "no phase",
        "no source",
        "unknown family",
        "test split",
        "no start",
        "no model",
        "text",
    ],
)
def test_bad_recipes_are_refused(tmp_path, values, message):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


def test_a_missing_or_broken_recipe_is_named(tmp_path):
    with pytest.raises(RecipeError, match="mini-smoke"):
        load_recipe("nope")
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(str(tmp_path / "x.yaml"))
