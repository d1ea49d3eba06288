"""Foresight: what changes at a place is first learnt from that place's token."""

import pytest
import torch
from edit_recipe import CONDITIONING, OPTIONS, PAINTER, small_recipe

from edit.configuration import mini_editor
from training.edit import Editor, EditSteps, Foresight
from training.edit_pairs import EditCache
from training.recipe import EditStage, RecipeError
from training.runs import run_stage
from vlm.answering import load


def test_foresight_is_learnt_from_the_places_and_first_alone(small_run):
    stage = small_recipe(small_run, edit={}).stages["edit"]
    assert (stage.steps, stage.foresight_steps) == (6, 2)
    steps = EditSteps(stage, EditCache(small_run / "edit" / "cache", stage.pairs), None, CONDITIONING, 0)
    assert [batch["foresight_alone"] for step in range(4) for batch in steps[step]] == [True, True, False, False]

    foresight = Foresight(64, side=4, count=4, channels=16, weight=0.5)
    editor = Editor(mini_editor(load("mini")[0], **PAINTER), OPTIONS, False, foresight)
    first, later = steps[0][0], steps[2][0]
    editor(first, 0.5).backward()
    assert all(p.grad is None for p in editor.transformer.parameters())
    assert not editor.connector.token_refiner.proj_in.weight.grad.any()  # through a layer of zeros
    torch.nn.init.ones_(foresight.read[1].weight)
    editor(first, 0.5).backward()
    assert editor.connector.token_refiner.proj_in.weight.grad.any()
    # It is told of the place by that place's token alone, and of what changes there.
    torch.nn.init.zeros_(foresight.read[1].weight)
    change = (later["target"] - later["reference"]).square().mean(1)
    wrong = ((change * later["weight"]).sum((1, 2)) / later["weight"].sum((1, 2))).sum()
    foreseen = editor(later, 0.5)
    editor.foresight = None
    torch.testing.assert_close(foreseen - editor(later, 0.5), 0.5 * wrong)


@torch.no_grad()
def test_the_place_of_a_change_is_told_by_the_token_at_that_place():
    foresight = Foresight(8, side=2, count=4, channels=1, weight=1.0)
    foresight.read[1].weight.copy_(torch.ones(4, 8))
    text = torch.zeros(1, 9, 8)
    text[0, 1 + 2] = torch.tensor([2.0] * 4 + [1.0] * 4)  # the third place: bottom left
    change = torch.zeros(4, 4)
    change[2:, :2] = 1.0
    weight = torch.ones(1, 4, 4)
    foresight.read[0] = torch.nn.Identity()
    foresight.read[1].weight.fill_(1 / 12)
    assert foresight(text, change[None, None], weight) < 1e-10
    assert foresight(text, change.T[None, None], weight) > 0.1


def test_foresight_needs_places(small_run, tmp_path):
    blind = {"conditioning": {"source": "words"}, "vae": str(small_run / "vae" / "model")}
    with pytest.raises(RecipeError, match="foresight needs a model that sees a picture in one square view"):
        run_stage(small_recipe(tmp_path, edit=blind), "edit", tmp_path, workers=0)
    with pytest.raises(ValueError, match="give `foresight` a weight"):
        EditStage(steps=4, batch_size=1, foresight_steps=3)
    with pytest.raises(ValueError, match="of 3 steps 3 are to learn the foresight alone"):
        EditStage(steps=3, batch_size=1, foresight=1.0, foresight_steps=3)
