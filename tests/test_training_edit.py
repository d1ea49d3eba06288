"""The editor's stages: autoencoder, frozen and joint training, adapters; they learn, resume, and refuse bad starts."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from edit import EditPipeline
from training.edit import EditTask
from training.edit_folder import export_edits
from training.edit_report import edit_report
from training.recipe import RECIPES, RecipeError, load_recipe
from training.runs import run_stage
from training.vae import psnr, to_pictures, to_pixels
from training.world.edits import EDIT_FAMILIES, draw_edit

ROOT = Path(__file__).resolve().parents[1]
PAINTER = {
    "connector": {"num_attention_heads": 2, "attention_head_dim": 32, "pooled_projection_dim": 32},
    "transformer": {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32,
                    "joint_attention_dim": 64, "pooled_projection_dim": 32, "axes_dims_rope": [8, 12, 12]},
}  # fmt: skip


def _recipe(folder: Path, **stages):
    values = yaml.safe_load((RECIPES / "mini-smoke.yaml").read_text())
    kept = {}
    for name, changes in stages.items():
        kept[name] = values["stages"][name] | {"precision": "no"} | changes
        if name == "edit" and "editor" not in changes:
            kept[name] |= PAINTER | {"vision_language": str(ROOT / "checkpoints" / "mini")}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "test", "seed": 1, "model": values["model"], "stages": kept}))
    return load_recipe(str(path))


def _losses(stage: Path) -> list[float]:
    records = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(len(records))), "every step once, in order"
    return [r["loss"] for r in records]


@pytest.fixture(autouse=True, scope="module")
def quick_sheets():
    """The sheets that are drawn while training need not be good to look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.edit.SHEET_STEPS", 1)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished tiny editor, with its autoencoder."""
    folder = tmp_path_factory.mktemp("editor")
    recipe = _recipe(folder, vae={}, edit={})
    for stage in ("vae", "edit"):
        run_stage(recipe, stage, folder, workers=0)
    return folder


def test_pixels_come_back():
    pictures = [draw_edit(seed, "test").before for seed in range(3)]
    pixels = to_pixels(pictures, (128, 128))
    assert pixels.shape == (3, 3, 128, 128) and pixels.min() >= -1 and pixels.max() <= 1
    assert [p.tobytes() for p in to_pictures(pixels)] == [p.tobytes() for p in pictures]
    assert psnr(4.0) == 0 and psnr(0.04) == pytest.approx(20)


def test_the_autoencoder_learns_and_knows_its_latents(run):
    losses = _losses(run / "vae")
    assert losses[-1] < losses[0]
    config = json.loads((run / "vae" / "model" / "config.json").read_text())
    assert len(config["latents_mean"]) == len(config["latents_std"]) == config["latent_channels"] == 16
    assert all(deviation > 0 for deviation in config["latents_std"])
    assert (run / "vae" / "pictures.png").stat().st_size > 1000


def test_the_editor_can_be_loaded_and_used(run):
    pipeline = EditPipeline.from_pretrained(run / "edit" / "model")
    edit = draw_edit(3, "test", size=64)
    image = pipeline(edit.before, edit.instruction, num_inference_steps=2).images[0]
    assert image.size == (64, 64)
    assert (run / "edit" / "edits.png").stat().st_size > 1000
    # The model that sees is named, not copied.
    assert not (run / "edit" / "model" / "vision_language_model").exists()


def test_an_interrupted_run_goes_on_to_the_same_curve(run, tmp_path, monkeypatch):
    recipe = _recipe(tmp_path, edit={"vae": str(run / "vae" / "model"), "checkpoint_minutes": 1e-4})
    run_stage(recipe, "edit", tmp_path / "whole", workers=0)

    def interrupted(self, model, step, after_step=EditTask.after_step):
        after_step(self, model, step)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EditTask, "after_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_stage(recipe, "edit", tmp_path / "broken", workers=0)
    run_stage(recipe, "edit", tmp_path / "broken", workers=0)
    assert _losses(tmp_path / "broken" / "edit") == _losses(tmp_path / "whole" / "edit")
    first, second = (EditPipeline.from_pretrained(tmp_path / r / "edit" / "model").transformer.state_dict()
                     for r in ("whole", "broken"))  # fmt: skip
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_joint_training_moves_the_model_that_sees(run, tmp_path):
    recipe = _recipe(tmp_path, edit_joint={"editor": str(run / "edit" / "model"), "optimizer": {"learning_rate": 1e-3}})
    model = run_stage(recipe, "edit_joint", tmp_path, workers=0)
    before = EditPipeline.from_pretrained(run / "edit" / "model").vision_language_model.state_dict()
    after = EditPipeline.from_pretrained(model).vision_language_model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def _ten(tmp_path: Path) -> str:
    folder = tmp_path / "ten"
    export_edits(folder, count=10, split="easy", size=64)
    return str(folder)


def test_ten_pictures_are_learnt(run, tmp_path):
    recipe = _recipe(tmp_path, edit={"edits": _ten(tmp_path), "vae": str(run / "vae" / "model"), "steps": 40,
                                     "dropout": 0, "batch_size": 20, "optimizer": {"learning_rate": 4e-3}})  # fmt: skip
    run_stage(recipe, "edit", tmp_path, workers=0)
    losses = _losses(tmp_path / "edit")
    assert sum(losses[-5:]) / 5 < 0.75 * losses[0], losses[::10]


def test_adapters_are_saved_alone_and_change_the_picture(run, tmp_path):
    recipe = _recipe(tmp_path, edit={"edits": _ten(tmp_path), "editor": str(run / "edit" / "model"), "steps": 6,
                                     "lora": {"rank": 8, "alpha": 64, "targets": ["to_q", "proj_out"]},
                                     "optimizer": {"learning_rate": 1e-2}})  # fmt: skip
    adapters = run_stage(recipe, "edit", tmp_path, workers=0)
    assert [p.suffix for p in adapters.iterdir()] == [".safetensors"]
    pipeline = EditPipeline.from_pretrained(run / "edit" / "model")
    edit = draw_edit(3, "easy", size=64)

    def paint():
        generator = torch.Generator().manual_seed(0)
        return pipeline(edit.before, edit.instruction, num_inference_steps=2, generator=generator).images[0].tobytes()

    plain = paint()
    pipeline.load_lora_weights(adapters)
    assert paint() != plain


def test_the_report_has_every_family_and_the_ceiling(run, tmp_path):
    summary = edit_report(str(run / "edit" / "model"), samples=1, steps=1, out=tmp_path)
    for families in ("families", "held_out_families"):
        assert tuple(summary[families]) == EDIT_FAMILIES
        for figures in summary[families].values():
            assert figures["n"] == 1 and 0 <= figures["success"] <= 1 and 0 <= figures["preservation"] <= 1
            assert 0 <= figures["ceiling"] <= 1 and figures["ceiling_psnr"] > 0
    assert 0 <= summary["mean"] <= 1 and 0 <= summary["held_out_compositions"] <= 1
    assert (tmp_path / "edits.png").stat().st_size > 1000
    assert len((tmp_path / "edits.jsonl").read_text().splitlines()) == 2 * len(EDIT_FAMILIES)
    with pytest.raises(ValueError, match="no split named 'train'"):
        edit_report(str(run / "edit" / "model"), samples=1, splits=("train",))


def test_what_is_missing_is_named(run, tmp_path):
    values = yaml.safe_load((RECIPES / "mini-smoke.yaml").read_text())
    with pytest.raises(RecipeError, match="run `sft` first"):
        run_stage(load_recipe("mini-smoke"), "edit", tmp_path)
    with pytest.raises(RecipeError, match="run `edit` first"):
        run_stage(load_recipe("mini-smoke"), "edit_joint", tmp_path)
    for change, message in (({"families": ["dogs"]}, "dogs"), ({"lora": {}}, "names? .*editor|name it with `editor`")):
        values["stages"]["edit"] |= change
        path = tmp_path / "bad.yaml"
        path.write_text(yaml.safe_dump(values))
        with pytest.raises(RecipeError, match=message):
            load_recipe(str(path))
        del values["stages"]["edit"][next(iter(change))]


def test_a_cache_of_other_models_is_refused(run, tmp_path):
    stage = {"vae": str(run / "vae" / "model"), "steps": 1}
    run_stage(_recipe(tmp_path, edit=stage), "edit", tmp_path, workers=0)
    (tmp_path / "edit" / "model").rename(tmp_path / "earlier")
    with pytest.raises(ValueError, match="was made with another pairs"):
        run_stage(_recipe(tmp_path, edit=stage | {"pairs": 13}), "edit", tmp_path, workers=0)
