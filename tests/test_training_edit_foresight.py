"""Foresight: the tokens of the places are first taught to spell what becomes of each."""

import pytest
import torch
from edit_recipe import OPTIONS, PAINTER, small_recipe

from edit import EditPipeline
from edit.configuration import mini_editor
from training.edit import Editor, EditSteps, Foresight
from training.edit_pairs import EditCache
from training.edit_places import INDEX, NUMBERS, PLACES
from training.edit_stages import EditStage
from training.edit_start import start
from training.runs import run_stage
from training.schedule import RecipeError
from vlm.answering import load


def test_foresight_is_learnt_from_the_places_and_first_alone(small_run):
    stage = small_recipe(small_run, edit={}).stages["edit"]
    assert (stage.steps, stage.foresight_steps) == (6, 2)
    steps = EditSteps(stage, EditCache(small_run / "edit" / "cache", stage.pairs, ("embedding",)), 0)
    assert [batch["foresight_alone"] for step in range(4) for batch in steps[step]] == [True, True, False, False]

    editor = Editor(mini_editor(load("mini")[0], **PAINTER), OPTIONS, False, Foresight(0.5, emphasis=2.0))
    first, later = steps[0][0], steps[2][0]
    editor(first, 0.5).backward()
    assert all(p.grad is None for p in editor.transformer.parameters())
    assert editor.connector.token_refiner.proj_in.weight.grad.any()
    # Then it is added to the painter's own.
    both = editor(later, 0.5)
    later["foresight_alone"] = True
    alone = editor(later, 0.5)
    later["foresight_alone"] = False
    editor.foresight = None
    torch.testing.assert_close(both - editor(later, 0.5), alone)


def test_a_trained_editor_goes_on_with_the_words_behind_the_states(small_run, tmp_path):
    recipe = small_recipe(tmp_path, edit={"editor": str(small_run / "edit" / "model"), "steps": 2,
                                          "conditioning": {"with_words": True}})  # fmt: skip
    begun, before = start(recipe.stages["edit"], tmp_path, 0), start(small_recipe(tmp_path / "x", edit={
        "editor": str(small_run / "edit" / "model")}).stages["edit"], tmp_path, 0)  # fmt: skip
    connector, known = begun.parts["connector"], before.parts["connector"]
    width = known.config.in_channels
    assert connector.config.in_channels == 2 * width and connector.config.num_layers == known.config.num_layers
    hidden, level = torch.randn(2, 20, 2 * width), torch.rand(2)
    with torch.no_grad():
        for own, old in zip(connector(hidden, level), known(hidden[..., :width], level), strict=True):
            torch.testing.assert_close(own, old)  # of what is new it knows nothing
    model = run_stage(recipe, "edit", tmp_path, workers=0)
    learnt = EditPipeline.from_pretrained(model)
    assert learnt.conditioning.with_words and learnt.connector.token_refiner.proj_in.weight[:, width:].any()
    # And fresh, one is made as wide.
    fresh = small_recipe(tmp_path / "fresh", edit={"vae": str(small_run / "vae" / "model"),
                                                   "conditioning": {"with_words": True}})  # fmt: skip
    assert start(fresh.stages["edit"], tmp_path / "fresh", 0).parts["connector"].config.in_channels == 2 * width
    again = recipe.stages["edit"].model_copy(update={"editor": str(model), "conditioning": {"with_words": False}})
    with pytest.raises(RecipeError, match=f"makes {width} channels, the editor's connector reads {2 * width}; leave"):
        start(again, tmp_path, 0)


def test_what_becomes_of_a_place_is_spelled_by_its_own_token():
    foresight = Foresight(2.0, emphasis=3.0)
    places = torch.zeros(3, PLACES, NUMBERS)
    places[0, 5, 7] = 1.0
    places[2] = torch.nan  # of a pair from elsewhere nothing is known
    text = torch.randn(3, 1 + PLACES + 4, NUMBERS + 3)
    text[:, 1 : 1 + PLACES, :NUMBERS] = places.nan_to_num()
    text[2] += 1
    assert foresight(text, places) == 0, "the opening mark, the words and other channels are free"
    text[0, 1 + 5, 7] = 0.0
    assert foresight(text, places) == pytest.approx(2.0 * (1 + 3) / (PLACES + 3))  # one wrong place of weight 4
    text[1, 1, 0] = 1.0
    assert foresight(text, places) == pytest.approx(2.0 * (4 / (PLACES + 3) + 1 / PLACES))
    # A spot is told as well as read, to fractions of a pixel: a fifth of the way off is a wrong yes.
    text[1, 1, 0], text[1, 1, INDEX["spot", "down"]] = 0.0, 0.2
    assert foresight(text, places) == pytest.approx(2.0 * (4 / (PLACES + 3) + 1 / PLACES))


def test_foresight_needs_places(small_run, tmp_path):
    vae = str(small_run / "vae" / "model")
    narrow = {"connector": PAINTER["connector"] | {"attention_head_dim": 32},
              "transformer": PAINTER["transformer"] | {"joint_attention_dim": 64}}  # fmt: skip
    for name, change in (("unplaced", {"conditioning": {"view_side": 0, "only_places": False}}), ("narrow", narrow)):
        recipe = small_recipe(tmp_path / name, edit={"vae": vae})
        stage = recipe.stages["edit"]
        recipe.stages["edit"] = EditStage.model_validate(stage.model_dump() | change)
        with pytest.raises(RecipeError, match="foresight needs a model that sees a picture in one view of 16 tokens"):
            run_stage(recipe, "edit", tmp_path / name, workers=0)
    with pytest.raises(ValueError, match="give `foresight` a weight"):
        EditStage(steps=4, batch_size=1, foresight_steps=3)
    with pytest.raises(ValueError, match="of 3 steps 4 are to learn the foresight alone"):
        EditStage(steps=3, batch_size=1, foresight=1.0, foresight_steps=4)
    assert EditStage(steps=3, batch_size=1, foresight=1.0, foresight_steps=3).part(2) == (0, 3)
