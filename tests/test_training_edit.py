"""The editor's stages: autoencoder, frozen and joint training, adapters; they learn, resume, and refuse bad starts."""

import json
import shutil
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from edit_recipe import CONDITIONING, OPTIONS, PAINTER, ROOT, small_recipe
from safetensors.torch import load_file
from transformers import AutoProcessor

from edit import EditPipeline
from edit.configuration import PRESETS, mini_editor
from edit.latents import encode
from edit.thinking import _with_plan
from training.edit import Editor, EditSteps, EditTask
from training.edit_folder import export_edits
from training.edit_pairs import EditCache, Pairs
from training.edit_stages import EditStage, VaeStage
from training.recipe import RECIPES, load_recipe
from training.runs import run_stage
from training.schedule import RecipeError
from training.vae import LOOKED_AT, Pictures, VaeTask, psnr, to_pictures, to_pixels
from training.world.edits import draw_edit
from training.world.sample import stream
from vlm.answering import load


@pytest.fixture(autouse=True, scope="module")
def quick_sheets():
    """The sheets that are drawn while training need not be good to look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.edit.SHEET_STEPS", 1)
        yield


def _losses(stage: Path) -> list[float]:
    records = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(len(records))), "every step once, in order"
    return [r["loss"] for r in records]


def test_pixels_come_back():
    pictures = [draw_edit(seed, "test").before for seed in range(3)]
    pixels = to_pixels(pictures, (128, 128))
    assert pixels.shape == (3, 3, 128, 128) and pixels.min() >= -1 and pixels.max() <= 1
    assert [p.tobytes() for p in to_pictures(pixels)] == [p.tobytes() for p in pictures]
    assert psnr(4.0) == 0 and psnr(0.04) == pytest.approx(20)


def _knows_its_latents(folder: Path) -> None:
    """The painter meets latents of mean 0 and deviation 1, whatever the autoencoder makes of a picture."""
    pixels = to_pixels([draw_edit(seed, "train").before for seed in range(LOOKED_AT)], (64, 64))
    with torch.inference_mode():
        latents = encode(AutoencoderKL.from_pretrained(folder), pixels).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(1), torch.ones(16), atol=1e-3, rtol=0)


def test_the_autoencoder_learns_and_knows_its_latents(small_run):
    losses = _losses(small_run / "vae")
    assert losses[-1] < losses[0]
    config = json.loads((small_run / "vae" / "model" / "config.json").read_text())
    assert len(config["latents_mean"]) == len(config["latents_std"]) == config["latent_channels"] == 16
    _knows_its_latents(small_run / "vae" / "model")
    assert (small_run / "vae" / "pictures.png").stat().st_size > 1000


def test_an_autoencoder_goes_on_with_what_it_lacks(small_run, tmp_path):
    saved = {"autoencoder": str(small_run / "vae" / "model"), "families": ["background"], "other_pictures": 0}
    recipe = small_recipe(tmp_path, vae=saved | {"steps": 2, "warmup_steps": 0, "vae": {}})
    stage, before = recipe.stages["vae"], AutoencoderKL.from_pretrained(small_run / "vae" / "model")
    started = VaeTask(stage, 0).model.vae.state_dict()
    assert all(torch.equal(weight, started[name]) for name, weight in before.state_dict().items())
    shown = []
    for rng in (stream("vae", 1, 0, i) for i in range(8)):
        rng.random()  # whether it is one of the other pictures
        edit = draw_edit(rng.getrandbits(48), "train", rng.choice(["background"]))
        shown.append(rng.choice((edit.before, edit.after)))
    assert torch.equal(
        to_pixels([Pictures(stage, 1).draw(0, i) for i in range(8)], (64, 64)), to_pixels(shown, (64, 64))
    )
    folder = run_stage(recipe, "vae", tmp_path, workers=0)
    _knows_its_latents(folder)
    after = AutoencoderKL.from_pretrained(folder).state_dict()
    assert any(not torch.equal(weight, after[name]) for name, weight in before.state_dict().items())
    with pytest.raises(ValueError, match="a saved autoencoder has its own sizes"):
        VaeStage(steps=1, batch_size=1, autoencoder="there", vae={"latent_channels": 4})
    with pytest.raises(ValueError, match=r"no edit families named .*relation"):
        VaeStage(steps=1, batch_size=1, families=["relation"])


def test_the_changed_region_weighs_more(small_run):
    stage = small_recipe(small_run, edit={}).stages["edit"]
    cache = EditCache(small_run / "edit" / "cache", stage.pairs, ("embedding",))
    pairs = Pairs(stage, small_recipe(small_run, edit={}).seed)
    for i in range(len(cache)):
        pixels = pairs[i].changed.reshape(8, 8, 8, 8)  # an autoencoder of 8 pixels a latent
        assert torch.equal(cache[i]["changed"], torch.from_numpy(pixels.any((1, 3))).float())
    batch = EditSteps(stage, cache, 0)[0][0]
    changed = batch["weight"] > 1
    assert batch["weight"][changed].eq(3).all() and 0 < changed.sum() < changed.numel()
    # Fresh weights predict nothing, so that the error is the velocity's own square.
    parts = mini_editor(load("mini")[0], **PAINTER)
    editor = Editor(parts, OPTIONS | {"reference_skip": False}, False)
    square = (batch["noise"] - batch["target"]).square().mean(1)
    expected = ((square * batch["weight"]).sum((1, 2)) / batch["weight"].sum((1, 2))).sum()
    torch.testing.assert_close(editor(batch, 0.5), expected)


def test_some_are_told_the_plan_and_batches_are_alike_in_length(small_run, tmp_path):
    ways = {"dropout": 0.2, "planned": 0.5, "batch_size": 12, "gradient_accumulation_steps": 3}
    recipe = small_recipe(tmp_path, edit={"vae": str(small_run / "vae" / "model"), "steps": 1, **ways})
    model = run_stage(recipe, "edit", tmp_path, workers=0)
    stage = recipe.stages["edit"]
    cache = EditCache(tmp_path / "edit" / "cache", stage.pairs, ("embedding", "planned"))
    steps = EditSteps(stage, cache, recipe.seed)
    drawn = [steps._sample(step, i) for step in range(20) for i in range(12)]
    told = {name: sum(name in d and torch.equal(d["embedding"], d[name]) for d in drawn) / len(drawn)
            for name in ("unconditional", "planned")}  # fmt: skip
    with_one = sum("unconditional" in cache[i] for i in range(12))  # 0.8 of many
    assert 6 <= with_one < 12 and told["unconditional"] == pytest.approx(with_one / 12 / 4, abs=0.08)
    assert told["planned"] == pytest.approx((1 - told["unconditional"]) / 2, abs=0.1)
    lengths = [[len(embedding) for embedding in batch["embeddings"]] for batch in steps[0]]
    assert [len(batch) for batch in lengths] == [4, 4, 4] and list(chain(*lengths)) == sorted(chain(*lengths))
    # The plan is told as the editor itself tells it.
    pipeline, pairs = EditPipeline.from_pretrained(model), Pairs(stage, recipe.seed)
    told = _with_plan(pipeline, pairs[5].before, pairs[5].instruction, pairs[5].plan)
    embedding = pipeline.encode_prompt([pairs[5].before], [told])[0]
    torch.testing.assert_close(embedding, steps.cache[5]["planned"], atol=0.01, rtol=0.01)
    with pytest.raises(ValueError, match="need the world's plans"):
        EditStage(steps=1, batch_size=1, planned=0.5, edits="folder")


def test_dense_pairs_have_many_steps_told_in_sentences_or_in_short():
    options = {"steps": 1, "batch_size": 1, "pairs": 120, "planned": 0.5}
    pairs = list(map(Pairs(EditStage(**options, dense=0.6), 0).__getitem__, range(120)))
    short = [pair for pair in pairs if not pair.plan]
    assert 24 <= len(short) <= 48
    assert all(pair.planned(CONDITIONING) == pair.instruction for pair in short)
    assert sum(pair.instruction.count("; ") + 1 for pair in short) / len(short) > 3.5
    in_sentences = [pair for pair in pairs if pair.plan.count("; ") >= 3]  # a single edit has three steps at most
    assert len(in_sentences) >= 10 and all(pair.instruction != pair.plan for pair in in_sentences)
    assert all(pair.plan.count("; ") < 3 for pair in map(Pairs(EditStage(**options), 0).__getitem__, range(40)))
    # The shipped editor reads the longest whole.
    tokenizer = AutoProcessor.from_pretrained(ROOT / "checkpoints" / "mini").tokenizer
    room = PRESETS["mini"]["pipeline"]["conditioning"]["max_tokens"] - 30  # a picture and the turn's ends
    assert max(len(tokenizer(pair.instruction)["input_ids"]) for pair in short + in_sentences) < room


def test_the_editor_can_be_loaded_and_used(small_run):
    pipeline = EditPipeline.from_pretrained(small_run / "edit" / "model")
    edit = draw_edit(3, "test", size=64)
    image = pipeline(edit.before, edit.instruction, num_inference_steps=2).images[0]
    assert image.size == (64, 64)
    assert (small_run / "edit" / "edits.png").stat().st_size > 1000
    # The model that sees is named, not copied.
    assert not (small_run / "edit" / "model" / "vision_language_model").exists()


def test_an_interrupted_run_goes_on_to_the_same_curve(small_run, tmp_path, monkeypatch):
    recipe = small_recipe(tmp_path, edit={"vae": str(small_run / "vae" / "model"), "checkpoint_minutes": 1e-4})
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


def test_joint_training_moves_the_model_that_sees(small_run, tmp_path):
    recipe = small_recipe(
        tmp_path, edit_joint={"editor": str(small_run / "edit" / "model"), "optimizer": {"learning_rate": 1e-3}}
    )
    model = run_stage(recipe, "edit_joint", tmp_path, workers=0)
    before = EditPipeline.from_pretrained(small_run / "edit" / "model").vision_language_model.state_dict()
    after = EditPipeline.from_pretrained(model).vision_language_model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def _ten(tmp_path: Path, split: str = "easy") -> str:
    folder = tmp_path / f"ten-{split}"
    export_edits(folder, count=10, split=split, size=64)
    return str(folder)


def test_adapters_are_saved_alone_and_change_the_picture(small_run, tmp_path):
    recipe = small_recipe(
        tmp_path,
        edit={
            "edits": _ten(tmp_path),
            "editor": str(small_run / "edit" / "model"),
            "steps": 6,
            "lora": {"rank": 8, "alpha": 64, "targets": ["to_q", "proj_out"]},
            "optimizer": {"learning_rate": 1e-2},
        },
    )
    adapters = run_stage(recipe, "edit", tmp_path, workers=0)
    assert [p.suffix for p in adapters.iterdir()] == [".safetensors"]
    pipeline = EditPipeline.from_pretrained(small_run / "edit" / "model")
    edit = draw_edit(3, "easy", size=64)

    def paint():
        generator = torch.Generator().manual_seed(0)
        return pipeline(edit.before, edit.instruction, num_inference_steps=2, generator=generator).images[0].tobytes()

    plain = paint()
    pipeline.load_lora_weights(adapters)
    assert paint() != plain


def test_ten_pictures_are_learnt_by_heart(small_run, tmp_path):
    """By all weights; and ten others by adapters of what came of that, for nothing passes through fresh weights.

    The picture as it was is in the prediction (`reference_skip`): the error is what is not known of the change.
    """
    learnt = {"batch_size": 10, "dropout": 0.0, "warmup_steps": 5, "final_learning_rate": 0.02,
              "vae": str(small_run / "vae" / "model")}  # fmt: skip
    whole = {"edits": _ten(tmp_path), "steps": 130, "optimizer": {"name": "adamw", "learning_rate": 4e-3}}
    editor = run_stage(small_recipe(tmp_path, edit=learnt | whole), "edit", tmp_path / "whole", workers=0)
    adapters = {"edits": _ten(tmp_path, "train"), "steps": 200, "editor": str(editor),
                "lora": {"rank": 32, "alpha": 128}, "optimizer": {"name": "adamw", "learning_rate": 6e-3}}  # fmt: skip
    run_stage(small_recipe(tmp_path, edit=learnt | adapters), "edit", tmp_path / "adapters", workers=0)
    for run in ("whole", "adapters"):
        losses = _losses(tmp_path / run / "edit")
        assert sum(losses[-5:]) < 0.02 * sum(losses[:5])


def test_what_is_missing_is_named(small_run, tmp_path):
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


def _pairs_in(shard: dict) -> int:
    return sum(name.endswith(".target") for name in shard)


def test_a_cache_of_other_models_is_refused_and_one_of_fewer_pairs_goes_on(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("training.edit_pairs.SHARD", 8)
    stage = {"vae": str(small_run / "vae" / "model"), "steps": 1, "planned": 0.5, "dense": 0.5}

    def train(**changes):
        if (tmp_path / "edit" / "model").exists():
            shutil.rmtree(tmp_path / "edit" / "model")
        run_stage(small_recipe(tmp_path, edit=stage | changes), "edit", tmp_path, workers=0)
        shards = sorted((tmp_path / "edit" / "cache").glob("*.safetensors"))
        return [load_file(shard) for shard in shards], [shard.stat().st_mtime_ns for shard in shards]

    (first, _) = train(pairs=12)
    (more, made) = train(pairs=20)
    assert [_pairs_in(shard) for shard in first] == [8, 4] and [_pairs_in(shard) for shard in more] == [8, 8, 4]
    for before, after in zip(first, more, strict=False):
        for name, tensor in before.items():
            torch.testing.assert_close(after[name], tensor, atol=2e-3, rtol=2e-2, equal_nan=True)
    assert train(pairs=10)[1] == made, "there are enough"
    with pytest.raises(ValueError, match="was made with another dense"):
        train(dense=0.4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layout": {"paking": 2}}, "layout.paking"),
        ({"layout": {"packing": 0}}, "layout.packing"),
        ({"layout": {"packing": 2}, "editor": "there"}, "of the weights to go on from"),
    ],
)
def test_a_layout_is_that_of_a_fresh_editor(values, words):
    with pytest.raises(ValueError, match=words):
        EditStage(steps=1, batch_size=1, **values)
