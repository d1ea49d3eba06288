"""The editor's stages: autoencoder, frozen and joint training, adapters; they learn, resume, and refuse bad starts."""

import hashlib
import json
import shutil
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from transformers import AutoProcessor

from edit import EditPipeline
from edit.conditioning import Conditioning
from edit.configuration import PRESETS, mini_editor
from edit.inputs import EditError
from edit.latents import encode, pack
from edit.loading import load_editor
from edit.thinking import _with_plan
from training.edit import Editor, EditSteps, EditTask, Foresight
from training.edit_folder import export_edits
from training.edit_pairs import EditCache, Pairs
from training.edit_publish import publish_editor
from training.edit_report import compare_edit_reports, edit_report, print_edit_report
from training.edit_thought import Thinking
from training.recipe import RECIPES, EditStage, RecipeError, VaeStage, load_recipe
from training.runs import run_stage, told_otherwise
from training.vae import LOOKED_AT, Pictures, VaeTask, psnr, to_pictures, to_pixels
from training.world.edits import EDIT_FAMILIES, draw_edit
from training.world.sample import stream
from vlm.answering import CHECKPOINTS_VARIABLE, load

ROOT = Path(__file__).resolve().parents[1]
CONDITIONING = Conditioning(**PRESETS["mini"]["pipeline"]["conditioning"])
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


def _knows_its_latents(folder: Path) -> None:
    """The painter meets latents of mean 0 and deviation 1, whatever the autoencoder makes of a picture."""
    pixels = to_pixels([draw_edit(seed, "train").before for seed in range(LOOKED_AT)], (64, 64))
    with torch.inference_mode():
        latents = encode(AutoencoderKL.from_pretrained(folder), pixels).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(1), torch.ones(16), atol=1e-3, rtol=0)


def test_the_autoencoder_learns_and_knows_its_latents(run):
    losses = _losses(run / "vae")
    assert losses[-1] < losses[0]
    config = json.loads((run / "vae" / "model" / "config.json").read_text())
    assert len(config["latents_mean"]) == len(config["latents_std"]) == config["latent_channels"] == 16
    _knows_its_latents(run / "vae" / "model")
    assert (run / "vae" / "pictures.png").stat().st_size > 1000


def test_an_autoencoder_goes_on_with_what_it_lacks(run, tmp_path):
    saved = {"autoencoder": str(run / "vae" / "model"), "families": ["background"], "other_pictures": 0}
    recipe = _recipe(tmp_path, vae=saved | {"steps": 2, "warmup_steps": 0, "vae": {}})
    stage, before = recipe.stages["vae"], AutoencoderKL.from_pretrained(run / "vae" / "model")
    started = VaeTask(stage, 0).model.vae.state_dict()
    assert all(torch.equal(weight, started[name]) for name, weight in before.state_dict().items())
    shown = []
    for rng in (stream("vae", 1, 0, i) for i in range(8)):
        rng.random()  # whether it is one of the other pictures
        edit = draw_edit(rng.getrandbits(48), "train", rng.choice(["background"]))
        shown.append(rng.choice((edit.before, edit.after)))
    assert torch.equal(
        to_pixels([Pictures(stage, 1)._draw(0, i) for i in range(8)], (64, 64)), to_pixels(shown, (64, 64))
    )
    folder = run_stage(recipe, "vae", tmp_path, workers=0)
    _knows_its_latents(folder)
    after = AutoencoderKL.from_pretrained(folder).state_dict()
    assert any(not torch.equal(weight, after[name]) for name, weight in before.state_dict().items())
    with pytest.raises(ValueError, match="a saved autoencoder has its own sizes"):
        VaeStage(steps=1, batch_size=1, autoencoder="there", vae={"latent_channels": 4})
    with pytest.raises(ValueError, match=r"no edit families named .*relation"):
        VaeStage(steps=1, batch_size=1, families=["relation"])


def test_the_changed_region_weighs_more(run):
    stage = _recipe(run, edit={}).stages["edit"]
    cache = EditCache(run / "edit" / "cache", stage.pairs)
    for item in map(cache.__getitem__, range(len(cache))):
        apart = (pack(item["target"][None]) - pack(item["reference"][None])).abs().mean(-1)[0]
        assert set(item["changed"].tolist()) <= {0.0, 1.0} and item["changed"].any()
        assert apart[item["changed"] > 0].mean() >= apart.mean() - 1e-6
    batch = EditSteps(stage, cache, None, CONDITIONING, 0)[0][0]
    changed = batch["weight"] > 1
    assert batch["weight"][changed].eq(3).all() and 0 < changed.sum() < changed.numel()
    # Fresh weights predict nothing, so that the error is the velocity's own square.
    parts = mini_editor(load("mini")[0], **PAINTER)
    editor = Editor(parts, CONDITIONING, False, 0)
    square = (pack(batch["noise"]) - pack(batch["target"])).square().mean(-1)
    expected = ((square * batch["weight"]).sum(1) / batch["weight"].sum(1)).sum()
    torch.testing.assert_close(editor(batch, 0.5), expected)


def test_foresight_is_learnt_from_the_places_and_first_alone(run):
    stage = _recipe(run, edit={}).stages["edit"]
    assert (stage.steps, stage.foresight_steps) == (6, 2)
    steps = EditSteps(stage, EditCache(run / "edit" / "cache", stage.pairs), None, CONDITIONING, 0)
    assert [batch["foresight_alone"] for step in range(4) for batch in steps[step]] == [True, True, False, False]

    foresight = Foresight(64, side=4, tokens=1, channels=64, weight=0.5)
    editor = Editor(mini_editor(load("mini")[0], **PAINTER), CONDITIONING, False, 0, foresight=foresight)
    first, later = steps[0][0], steps[2][0]
    editor(first, 0.5).backward()
    assert all(p.grad is None for p in editor.transformer.parameters())
    assert not editor.connector.token_refiner.proj_in.weight.grad.any()  # through a layer of zeros
    torch.nn.init.ones_(foresight.read[1].weight)
    editor(first, 0.5).backward()
    assert editor.connector.token_refiner.proj_in.weight.grad.any()
    # It is told of the place by that place's token alone, and of what changes there.
    torch.nn.init.zeros_(foresight.read[1].weight)
    change = pack(later["target"]) - pack(later["reference"])
    wrong = ((change.square().mean(-1) * later["weight"]).sum(1) / later["weight"].sum(1)).sum()
    foreseen = editor(later, 0.5)
    editor.foresight = None
    torch.testing.assert_close(foreseen - editor(later, 0.5), 0.5 * wrong)


@torch.no_grad()
def test_the_place_of_a_change_is_told_by_the_token_at_that_place():
    foresight = Foresight(8, side=2, tokens=4, channels=1, weight=1.0)
    foresight.read[1].weight.copy_(torch.ones(4, 8))
    text = torch.zeros(1, 9, 8)
    text[0, 1 + 2] = torch.tensor([2.0] * 4 + [1.0] * 4)  # the third place: bottom left
    change = torch.zeros(4, 4)
    change[2:, :2] = 1.0
    weight = torch.ones(1, 16)
    foresight.read[0] = torch.nn.Identity()
    foresight.read[1].weight.fill_(1 / 12)
    assert foresight(text, change.reshape(1, 16, 1), weight, 8, 8) < 1e-10
    assert foresight(text, change.T.reshape(1, 16, 1), weight, 8, 8) > 0.1


def test_foresight_needs_places(run, tmp_path):
    blind = {"conditioning": {"source": "words"}, "vae": str(run / "vae" / "model")}
    with pytest.raises(RecipeError, match="foresight needs a model that sees a picture in one square view"):
        run_stage(_recipe(tmp_path, edit=blind), "edit", tmp_path, workers=0)
    with pytest.raises(ValueError, match="give `foresight` a weight"):
        EditStage(steps=4, batch_size=1, foresight_steps=3)
    with pytest.raises(ValueError, match="of 3 steps 3 are to learn the foresight alone"):
        EditStage(steps=3, batch_size=1, foresight=1.0, foresight_steps=3)


def test_some_are_told_the_plan_and_batches_are_alike_in_length(run, tmp_path):
    ways = {"dropout": 0.2, "planned": 0.5, "batch_size": 12, "gradient_accumulation_steps": 3}
    recipe = _recipe(tmp_path, edit={"vae": str(run / "vae" / "model"), "steps": 1, **ways})
    model = run_stage(recipe, "edit", tmp_path, workers=0)
    stage = recipe.stages["edit"]
    steps = EditSteps(stage, EditCache(tmp_path / "edit" / "cache", stage.pairs, planned=True), None, CONDITIONING,
                      recipe.seed)  # fmt: skip
    drawn = [steps._sample(step, i) for step in range(20) for i in range(12)]
    told = {name: sum(torch.equal(d["embedding"], d[name]) for d in drawn) / len(drawn)
            for name in ("unconditional", "planned")}  # fmt: skip
    assert 0.12 < told["unconditional"] < 0.28 and 0.3 < told["planned"] < 0.5  # 0.2, and half of the others
    lengths = [[len(embedding) for embedding in batch["embeddings"]] for batch in steps[0]]
    assert [len(batch) for batch in lengths] == [4, 4, 4] and list(chain(*lengths)) == sorted(chain(*lengths))
    # The plan is told as the editor itself tells it.
    pipeline, pairs = EditPipeline.from_pretrained(model), Pairs(stage, recipe.seed)
    told = _with_plan(pipeline, pairs[5].before, pairs[5].instruction, pairs[5].plan)
    embedding = pipeline.encode_prompt([pairs[5].before], [told])[0]
    torch.testing.assert_close(embedding, steps.cache[5]["planned"], atol=0.01, rtol=0.01)
    with pytest.raises(ValueError, match="need the world's plans"):
        EditStage(steps=1, batch_size=1, planned=0.5, edits="folder")


def test_dense_pairs_are_told_their_many_steps_in_short():
    options = {"steps": 1, "batch_size": 1, "pairs": 60, "planned": 0.5}
    pairs = list(map(Pairs(EditStage(**options, dense=0.5), 0).__getitem__, range(60)))
    dense = [pair for pair in pairs if not pair.plan]
    assert 20 <= len(dense) <= 40
    assert all(pair.planned(CONDITIONING) == pair.instruction for pair in dense)
    assert sum(pair.instruction.count("; ") + 1 for pair in dense) / len(dense) > 4
    assert all(pair.plan for pair in map(Pairs(EditStage(**options), 0).__getitem__, range(20)))
    # The shipped editor reads the longest whole.
    tokenizer = AutoProcessor.from_pretrained(ROOT / "checkpoints" / "mini").tokenizer
    room = PRESETS["mini"]["pipeline"]["conditioning"]["max_tokens"] - 30  # a picture and the turn's ends
    assert max(len(tokenizer(pair.instruction)["input_ids"]) for pair in dense) < room


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


def test_thinking_is_reported_with_its_cost(run, tmp_path, monkeypatch):
    monkeypatch.setattr("training.edit_report.EDIT_FAMILIES", ("remove",))

    def answers(pipeline):  # the plan; then a number for each of two candidates, and a verdict on the better one
        script = iter(["nothing", "3", "7", "retry", "9", "1", "accept"] * 2)
        return lambda conversation: next(script)

    monkeypatch.setattr("training.edit_thought.own_model", answers)
    thinking = Thinking(plan=True, candidates=2, reflections=2)
    summary = edit_report(str(run / "edit" / "model"), 2, ("test",), 1, None, 1, tmp_path, thinking)
    figures = summary["test_thinking"]
    assert figures["painted_per_edit"] == 4 and figures["seconds_per_edit"] > 0 and figures["plans_right"] == 0
    assert figures["verdicts"] == {"accept": 2, "retry": 2}
    rows = [json.loads(line) for line in (tmp_path / "edits.jsonl").read_text().splitlines()]
    assert [(row["plan"], row["painted"]) for row in rows] == [("nothing", 4)] * 2
    # What a faultless judge would reach is at least what was reached.
    assert all(row["any"] >= row["success"] for row in rows)
    print_edit_report(summary, as_json=False)


def test_thinking_about_nothing_is_the_plain_report(run):
    assert not Thinking().asked and Thinking(plan=True).asked and Thinking(candidates=2).asked
    with pytest.raises(EditError, match="seeds is 0"):
        edit_report(str(run / "edit" / "model"), 1, ("test",), 1, thinking=Thinking(candidates=0))


@pytest.fixture(scope="module")
def told(run) -> dict[str, Path]:
    """The same editor on each of the three kinds of embeddings, by the one switch."""
    recipe = _recipe(run, vae={}, edit={"steps": 2, "vae": str(run / "vae" / "model")})
    editors = {"picture": run / "edit" / "model"}
    for source in ("instruction", "words"):
        changed, stage = told_otherwise(recipe, source)
        editors[source] = run_stage(changed, stage, run, workers=0)
    return editors


def test_what_the_painter_is_told_is_one_switch(told, run):
    assert told["words"] == run / "edit_words" / "model"
    recipe = _recipe(run, edit={})
    assert told_otherwise(recipe, "picture") == (recipe, "edit")
    embeddings = {}
    for source, folder in told.items():
        pipeline = EditPipeline.from_pretrained(folder)
        assert pipeline.conditioning.source == source and bool(pipeline.conditioning.view_side) == (source == "picture")
        pictures = [draw_edit(seed, "test", size=64).before for seed in range(2)]
        embeddings[source] = pipeline.encode_prompt(pictures, ["make the star red"] * 2)
    assert len(embeddings["picture"][0]) > len(embeddings["words"][0]) == len(embeddings["instruction"][0])
    for source, (one, other) in embeddings.items():
        assert torch.allclose(one, other, atol=1e-4) == (source != "picture"), source
    assert not torch.allclose(embeddings["instruction"][0], embeddings["words"][0], atol=0.1)


def test_editors_are_compared_in_one_table(told, capsys):
    arguments = (1, ("test",), 1, None, 12)
    summary = edit_report(str(told["picture"]), *arguments)
    summary |= compare_edit_reports([str(told["instruction"]), str(told["words"])], *arguments)
    assert [summary["source"], *(other["source"] for other in summary["against"])] == [
        "picture",
        "instruction",
        "words",
    ]
    print_edit_report(summary, as_json=True)
    printed = capsys.readouterr().out
    assert "success by what the editor is told" in printed
    read = json.loads(printed.splitlines()[-1])
    assert all(tuple(other["families"]) == EDIT_FAMILIES for other in read["against"])


def test_an_editor_is_shipped_beside_its_model(run, tmp_path, monkeypatch):
    recipe = _recipe(run, vae={}, edit={})
    shutil.copytree(ROOT / "checkpoints" / "mini", tmp_path / "mini", ignore=shutil.ignore_patterns("editor", "vae"))
    report = tmp_path / "report.txt"
    report.write_text("a table\n" + json.dumps(edit_report(str(run / "edit" / "model"), 1, ("test",), 1)) + "\n")
    out = publish_editor(recipe, run, tmp_path / "mini" / "editor", report)
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path))
    shipped, original = load_editor("mini"), EditPipeline.from_pretrained(run / "edit" / "model")
    for name in ("transformer", "connector", "vae"):
        for a, b in zip(getattr(shipped, name).parameters(), getattr(original, name).parameters(), strict=True):
            assert torch.equal(a, b.bfloat16().float())
    card = (out / "README.md").read_text()
    weights = out / "transformer" / "diffusion_pytorch_model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card
    assert "`python -m training edit --recipe test`" in card and "| recolour |" in card and "12 pairs" in card

    # Nothing is left behind, nor is what was there lost, where there is too much to ship.
    monkeypatch.setattr("training.publish.MOST_BYTES", 18_000_000)
    with pytest.raises(RecipeError, match=r"would hold 1[89]\.\d MB, at most 18 MB"):
        publish_editor(recipe, run, out)
    assert weights.exists() and not (tmp_path / "mini" / "editor.partial").exists()


def test_an_editor_that_cannot_be_shipped_is_refused(run, tmp_path):
    recipe = _recipe(run, vae={}, edit={})
    with pytest.raises(RecipeError, match="no editor's stage 'sft'; it has edit"):
        publish_editor(recipe, run, tmp_path / "mini" / "editor", stage="sft")
    with pytest.raises(RecipeError, match="finish `python -m training edit --recipe test`"):
        publish_editor(recipe, tmp_path, tmp_path / "mini" / "editor")
    with pytest.raises(RecipeError, match="Publish that first"):
        publish_editor(recipe, run, tmp_path / "mini" / "editor")
    model, processor = load("mini")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "mini")
    with pytest.raises(RecipeError, match="trained with another model"):
        publish_editor(recipe, run, tmp_path / "mini" / "editor")


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
