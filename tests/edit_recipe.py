"""The stages of a tiny editor on the shipped model that sees: their recipe, and a run of them."""

from pathlib import Path

import yaml

from edit.conditioning import Conditioning
from edit.configuration import PRESETS
from training.recipe import RECIPES, Recipe, load_recipe
from training.runs import run_stage

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = PRESETS["mini"]["pipeline"]
CONDITIONING = Conditioning(**OPTIONS["conditioning"])
PAINTER = {
    "connector": {"num_attention_heads": 2, "attention_head_dim": 64, "pooled_projection_dim": 32},
    "transformer": {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32,
                    "joint_attention_dim": 128, "pooled_projection_dim": 32, "axes_dims_rope": [8, 12, 12]},
}  # fmt: skip


def small_recipe(folder: Path, **stages) -> Recipe:
    """`mini-smoke` with these stages, each with these changes, and a painter of two narrow layers, in float32."""
    values = yaml.safe_load((RECIPES / "mini-smoke.yaml").read_text())
    kept = {}
    for name, changes in stages.items():
        kept[name] = values["stages"][name] | {"precision": "no"} | changes
        if name == "edit" and "steps" in changes:
            kept[name] |= {"foresight_steps": 0}
        if "edits" in changes:
            kept[name] |= {"foresight": 0.0, "foresight_steps": 0}
        if name == "edit" and "editor" not in changes:
            kept[name] |= PAINTER | {"vision_language": str(ROOT / "checkpoints" / "mini")}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "test", "seed": 1, "model": values["model"], "stages": kept}))
    return load_recipe(str(path))


def train_small_editor(folder: Path) -> Path:
    """A finished tiny editor, with its autoencoder."""
    recipe = small_recipe(folder, vae={}, edit={})
    for stage in ("vae", "edit"):
        run_stage(recipe, stage, folder, workers=0)
    return folder
