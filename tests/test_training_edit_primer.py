"""The primer: a transformer learns to draw from what becomes of each place, and an editor begins with it."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from edit_recipe import PAINTER, small_recipe
from PIL import Image

from edit import EditPipeline
from edit.configuration import PRESETS
from training.edit_batches import Painting
from training.edit_pairs import PrimerPairs
from training.edit_places import NUMBERS, SHARPENED, describe
from training.edit_primer import PrimerTask, paint_by_places
from training.edit_stages import PrimerStage
from training.edit_start import start
from training.runs import run_stage
from training.schedule import RecipeError
from training.world.edits import draw_edit


@pytest.fixture(scope="module")
def primed(small_run, tmp_path_factory):
    """A folder with an autoencoder and a primer trained on it, and the recipe."""
    folder = tmp_path_factory.mktemp("primed")
    shutil.copytree(small_run / "vae" / "model", folder / "vae" / "model")
    recipe = small_recipe(folder, edit_primer={"steps": 30, "optimizer": {"name": "adamw", "learning_rate": 3e-3}},
                          edit={})  # fmt: skip
    run_stage(recipe, "edit_primer", folder, workers=0)
    return folder, recipe


def _losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "edit_primer" / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_shows_what_it_draws(primed):
    losses = _losses(primed[0])
    assert len(losses) == 30 and sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert (primed[0] / "edit_primer" / "edits.png").stat().st_size > 1000


def test_its_pages_are_full_and_mostly_changed():
    pairs = PrimerPairs(PrimerStage(steps=1, batch_size=1, things=(10, 14), changes=(8, 12), size=64), 0)
    told = [pairs[i] for i in range(12)]
    assert all(pair.instruction == "" for pair in told)
    changed = [(pair.places[:, :2] > 0).any(1).sum() for pair in told]
    assert sum(changed) / len(changed) > 6
    pages = [draw_edit(seed, "train", "multi", steps=8, things=12).pages[0] for seed in range(8)]
    assert sum(len(page.items) for page in pages) / 8 > 7
    assert [p.places.tobytes() for p in told] == [pairs[i].places.tobytes() for i in range(12)]


def test_what_it_draws_follows_what_it_is_told(primed):
    folder, _ = primed
    transformer = FluxTransformer2DModel.from_pretrained(folder / "edit_primer" / "model")
    edits = [draw_edit(seed, "test", "recolour", size=64) for seed in (1, 2)]
    begun = start(primed[1].stages["edit"], folder, 0)
    painting = Painting.of(PRESETS["mini"]["pipeline"])

    def paint(order):
        drawn = paint_by_places(transformer, begun.parts["vae"], begun.parts["scheduler"], painting, order, 1)
        return [picture.tobytes() for picture in drawn]

    assert paint(edits) == paint(edits) and all(picture.size == (64, 64) for picture in (e.before for e in edits))
    # Each from noise of its own, whoever is beside it; the sums of two pictures differ from one's in the last bit.
    alone = np.asarray(Image.frombytes("RGB", (64, 64), paint(edits[1:])[0]), np.int16)
    assert np.abs(alone - np.asarray(Image.frombytes("RGB", (64, 64), paint(edits)[1]), np.int16)).max() <= 2
    other = edits[0].__class__(**vars(edits[0]) | {"pages": (edits[0].pages[0], edits[0].pages[0])})
    assert (describe(*other.pages) == 0).all() and paint([other, edits[1]])[0] != paint(edits)[0]


def test_an_editor_begins_with_it(primed, tmp_path):
    folder, recipe = primed
    primer = FluxTransformer2DModel.from_pretrained(folder / "edit_primer" / "model").state_dict()
    parts = start(recipe.stages["edit"], folder, 0).parts
    taken = parts["transformer"].state_dict()
    assert torch.equal(taken["context_embedder.weight"][:, :NUMBERS], primer["context_embedder.weight"][:, :NUMBERS])
    # What the primer did not tell is not heard, until it is learnt.
    assert not taken["context_embedder.weight"][:, NUMBERS:].any()
    assert not parts["connector"].pooled_projection.weight.any()
    assert all(torch.equal(primer[name], taken[name]) for name in primer if name != "context_embedder.weight")
    assert tuple(map(tuple, parts["connector"].config.sharpened)) == SHARPENED
    model = run_stage(recipe, "edit", folder, workers=0)
    assert EditPipeline.from_pretrained(model).transformer.config.in_channels == 512
    # A trained editor can be given another painter, and keeps what it reads.
    trained = EditPipeline.from_pretrained(model)
    again = recipe.stages["edit"].model_copy(
        update={"editor": str(model), "primer": str(folder / "edit_primer" / "model")}
    )
    given = start(again, folder, 0).parts
    assert all(torch.equal(given["transformer"].state_dict()[name], taken[name]) for name in taken)
    read = given["connector"].state_dict()
    assert all(
        torch.equal(read[n], own)
        for n, own in trained.connector.token_refiner.state_dict(prefix="token_refiner.").items()
    )
    # In a run with a primer of its own that is the one; but an editor of the same run keeps what both have learnt.
    update = {"editor": str(model), "primer": None, "vision_language": None, "vae": None}
    again = again.model_copy(update=update)
    kept = start(again, folder, 0).parts["transformer"].state_dict()
    assert all(torch.equal(kept[name], value) for name, value in trained.transformer.state_dict().items())
    shutil.copytree(folder / "edit_primer" / "model", tmp_path / "edit_primer" / "model")
    given = start(again, tmp_path, 0).parts["transformer"].state_dict()
    assert all(torch.equal(given[name], taken[name]) for name in taken)


def test_an_interrupted_primer_goes_on_to_the_same_curve(primed, tmp_path, monkeypatch):
    shutil.copytree(primed[0] / "vae", tmp_path / "vae")
    recipe = small_recipe(tmp_path, edit_primer={"steps": 5, "checkpoint_minutes": 1e-4})
    monkeypatch.setattr("training.edit_primer.SHEET_STEPS", 1)

    def interrupted(self, model, step, after_step=PrimerTask.after_step):
        after_step(self, model, step)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PrimerTask, "after_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_stage(recipe, "edit_primer", tmp_path, workers=0)
    run_stage(recipe, "edit_primer", tmp_path, workers=0)
    broken = _losses(tmp_path)
    shutil.rmtree(tmp_path / "edit_primer")
    run_stage(recipe, "edit_primer", tmp_path, workers=0)
    assert broken == _losses(tmp_path)


def test_what_does_not_fit_is_named(primed, tmp_path):
    folder, recipe = primed
    with pytest.raises(RecipeError, match=r"run `vae` first, or name `vae`"):
        run_stage(recipe, "edit_primer", tmp_path, workers=0)
    narrow = {"transformer": PAINTER["transformer"] | {"joint_attention_dim": 64}, "vae": str(folder / "vae" / "model")}
    with pytest.raises(RecipeError, match="text stream has 64 channels; what becomes of a place takes 113"):
        run_stage(small_recipe(tmp_path, edit_primer=narrow), "edit_primer", tmp_path, workers=0)
    stage = recipe.stages["edit"].model_copy(update={"transformer": PAINTER["transformer"] | {"num_single_layers": 1}})
    with pytest.raises(RecipeError, match="has num_single_layers 2, the stage wants 1"):
        start(stage, folder, 0)
    other = {"primer": str(folder / "edit_primer" / "model"), "transformer": stage.transformer,
             "vae": str(folder / "vae" / "model")}  # fmt: skip
    with pytest.raises(RecipeError, match="has num_single_layers 2, the stage wants 1"):
        run_stage(small_recipe(tmp_path, edit_primer=other), "edit_primer", tmp_path, workers=0)
    for wrong in ({"things": (0, 4)}, {"things": (5, 4)}, {"changes": (1, 4)}, {"changes": (4, 99)}):
        with pytest.raises(ValueError, match="give least and most"):
            PrimerStage(steps=1, batch_size=1, **wrong)
    with pytest.raises(ValueError, match="`released` weights have their own"):
        type(stage).model_validate(stage.model_dump() | {"primer": "there", "released": "here"})
    for things in (0, 17):
        with pytest.raises(ValueError, match=f"things is {things} for steps 4"):
            draw_edit(0, "train", "multi", steps=4, things=things)
    with pytest.raises(ValueError, match="things is 5 for steps None"):
        draw_edit(0, "train", "multi", things=5)
