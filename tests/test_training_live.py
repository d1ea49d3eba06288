"""Stages that learn from what is drawn while they learn, and stages that end by the clock."""

import json
import time

import pytest
import torch
from edit_recipe import ROOT, small_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from training.edit_live import DrawnPairs, EncodedPairs, pair_batches
from training.edit_pairs import Pair, Pairs, PrimerPairs, Reader
from training.edit_stages import EditStage, PrimerStage, VaeStage
from training.edit_start import start
from training.live import Newest, live_steps
from training.loop import _attention
from training.recipe import Stage
from training.runs import run_stage
from training.schedule import Schedule

CPU = torch.device("cpu")
CHUNK = 24


def _log(folder, stage) -> list[dict]:
    return [json.loads(line) for line in (folder / stage / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.live.CHUNK", CHUNK)
        patch.setattr("training.edit_live.READ_AT_ONCE", 8)
        yield


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_the_newest_are_held(capacity, counts):
    newest, put = Newest(capacity, CPU), []
    for count in counts:
        rows = torch.arange(len(put), len(put) + count)
        newest.put({"number": rows, "half": rows.float()})
        put += rows.tolist()
    chosen = newest.choose(400, torch.Generator().manual_seed(0))
    assert set(chosen["number"].tolist()) <= set(put[-capacity:]) and newest.held == min(capacity, len(put))
    assert torch.equal(chosen["number"].float(), chosen["half"]), "a row stays together"
    if newest.held < 20:
        assert set(chosen["number"].tolist()) == set(put[-capacity:]), "each is chosen some time"


@pytest.fixture(scope="module")
def live_run(tmp_path_factory):
    """All three stages of a tiny editor, live; of the connector the foresight alone."""
    folder = tmp_path_factory.mktemp("live")
    recipe = small_recipe(
        folder,
        vae={"live": 200, "crop": 0, "squared_weight": 2.0, "batch_size": 8},
        edit_primer={"live": 200, "text": 0.5, "layout": {"packing": 2}},
        edit={"live": 200, "steps": 10, "layout": {"packing": 2}, "families": ["remove", "text"], "dropout": 0.2,
              "batch_size": 16, "optimizer": {"name": "adamw", "learning_rate": 3e-3}},
    )  # fmt: skip
    stage = recipe.stages["edit"]
    recipe.stages["edit"] = EditStage.model_validate(stage.model_dump() | {"foresight_steps": 10, "foresight": 1.0})
    for name in recipe.stages:
        run_stage(recipe, name, folder, workers=0)
    return folder, recipe


def test_all_stages_learn_without_a_cache(live_run):
    folder, _ = live_run
    for stage, steps in (("vae", 8), ("edit_primer", 4), ("edit", 10)):
        assert len(_log(folder, stage)) == steps and (folder / stage / "model").is_dir()
        assert not (folder / stage / "cache").exists()
    losses = [record["loss"] for record in _log(folder, "edit")]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_with_the_painter_too_and_with_workers(live_run):
    folder, recipe = live_run
    stage = recipe.stages["edit"].model_dump() | {"foresight_steps": 1, "steps": 3, "planned": 0.5, "batch_size": 3}
    recipe.stages["edit_joint"] = EditStage.model_validate(stage | {"editor": str(folder / "edit" / "model"),
                                                                    "layout": {}})  # fmt: skip
    run_stage(recipe, "edit_joint", folder, workers=1)
    assert len(_log(folder, "edit_joint")) == 3


def test_what_is_read_is_what_a_cache_would_hold(live_run):
    folder, recipe = live_run
    stage = recipe.stages["edit"].model_copy(update={"dropout": 0.0})
    begun, pairs = start(stage, folder, 0), Pairs(stage, 3)
    reader = Reader(begun.model, begun.processor, begun.conditioning)
    rows = EncodedPairs(begun.parts["vae"], reader)(DrawnPairs(pairs, reader, 8)[2])
    own = sorted((pairs[2 * CHUNK + k] for k in range(CHUNK)), key=lambda pair: len(pair.instruction))
    for k, read in enumerate(reader(own)):
        known, length = read["embedding"].float(), int(rows["length"][k])
        assert torch.equal(rows["places"][k].float(), torch.from_numpy(own[k].places).half().float())
        torch.testing.assert_close(rows["hidden"][k, :length].float(), known, atol=2e-2, rtol=2e-2)
        assert not rows["hidden"][k, length:].any()
    assert rows["target"].shape == rows["reference"].shape == (CHUNK, 16, 8, 8)


def test_an_empty_instruction_has_nothing_to_foresee(live_run):
    folder, recipe = live_run
    stage = recipe.stages["edit"].model_copy(update={"dropout": 0.5})
    begun = start(stage, folder, 0)
    reader = Reader(begun.model, begun.processor, begun.conditioning)
    chunk = DrawnPairs(Pairs(stage, 3), reader, 8)[0]
    rows = EncodedPairs(None, reader)(chunk)
    assert 0.3 < chunk["unsaid"].float().mean() < 0.7 and "target" not in rows
    assert torch.equal(rows["places"].isnan().all(2).all(1), chunk["unsaid"])
    batches = pair_batches(stage.model_copy(update={"gradient_accumulation_steps": 3}), True)(
        rows, 0, torch.Generator()
    )
    assert sum(len(batch["hidden"]) for batch in batches) == CHUNK
    assert [batch["mask"].sum(1).max() for batch in batches] == [batch["hidden"].shape[1] for batch in batches]
    assert batches[0]["hidden"].shape[1] < batches[-1]["hidden"].shape[1], "alike in length"


def test_pages_of_the_primer_may_be_lines_of_text():
    pairs = PrimerPairs(PrimerStage(steps=1, batch_size=1, size=64, text=1.0), 0)
    told: list[Pair] = [pairs[i] for i in range(4)]
    assert all(pair.places[:, -36:].any() and not pair.places[:, :-36].any() for pair in told)
    shapes = PrimerPairs(PrimerStage(steps=1, batch_size=1, size=64), 0)
    assert not any(shapes[i].places[:, -36:].any() for i in range(4))


def test_what_goes_wrong_in_drawing_is_raised_where_the_step_is_made():
    class Broken(torch.utils.data.Dataset):
        def __getitem__(self, i):
            if i:
                raise OSError("the disk is full")
            return {"x": torch.zeros(2)}

    stage = VaeStage(steps=1, batch_size=4, live=10)
    steps = live_steps(
        stage, Broken(), dict, lambda rows, *_: [rows], CPU, seed=0, first=0, workers=0, rank=0, world_size=1
    )
    with pytest.raises(OSError, match="the disk is full"):
        next(steps)
    whole = live_steps(
        stage, Broken(), dict, lambda rows, *_: [rows], CPU, seed=0, first=0, workers=0, rank=0, world_size=3
    )
    with pytest.raises(ValueError, match="batch_size 4 does not divide by 3"):
        next(whole)


def test_a_stage_ends_by_the_clock_and_goes_on_with_the_time_that_is_left(tmp_path, monkeypatch):
    vae = {"minutes": 0.2, "steps": 10**6, "warmup_steps": 0, "checkpoint_minutes": 1e-9}
    recipe = small_recipe(tmp_path, vae=vae)
    begun = time.monotonic()
    run_stage(recipe, "vae", tmp_path / "whole", workers=0)
    log = _log(tmp_path / "whole", "vae")
    assert 10 < time.monotonic() - begun < 60 and 1 < len(log) < 10**5
    assert log[0]["factor"] > 0.9 > 0.3 > log[-1]["factor"], "the cosine follows the clock"

    def stop(self, model, step):
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.vae.VaeTask.after_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run_stage(recipe, "vae", tmp_path / "again", workers=0)
    # As if those steps had taken nearly all of the time.
    path = tmp_path / "again" / "vae" / "log.jsonl"
    lines = [json.loads(line) | {"elapsed": 10.5} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_stage(recipe, "vae", tmp_path / "again", workers=0)
    log = _log(tmp_path / "again", "vae")
    assert log[2]["elapsed"] == 10.5 <= log[3]["elapsed"] and log[3]["factor"] < 0.1


def test_the_stage_says_which_attention():
    query = torch.randn(1, 1, 4, 8)
    with _attention(VaeStage(steps=1, batch_size=1, attention="efficient")):
        assert not torch.backends.cuda.flash_sdp_enabled() and not torch.backends.cuda.cudnn_sdp_enabled()
        ours = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    with _attention(VaeStage(steps=1, batch_size=1)):
        assert torch.backends.cuda.flash_sdp_enabled()
        torch.testing.assert_close(torch.nn.functional.scaled_dot_product_attention(query, query, query), ours)


def test_what_cannot_be_live_is_named():
    edit = {"steps": 4, "batch_size": 1, "live": 10}
    for stage in (VaeStage, PrimerStage, EditStage):
        with pytest.raises(ValueError, match="live is 10 and batch_size 11; hold at least what a step takes"):
            stage(steps=1, batch_size=11, live=10)
    with pytest.raises(ValueError, match="`live` pairs are the world's"):
        EditStage(**edit, edits="some/folder")
    with pytest.raises(ValueError, match="`live` pairs are the world's"):
        EditStage(**edit, train_vision_language=True)
    with pytest.raises(ValueError, match="leave out `crop`"):
        VaeStage(steps=1, batch_size=1, live=10, crop=32)
    with pytest.raises(ValueError, match="either all steps learn the foresight alone or none"):
        EditStage(steps=4, batch_size=1, foresight=1.0, foresight_steps=2, minutes=1.0)
    phases = [{"steps": 1, "mixture": [{"weight": 1, "world": {}}]}] * 2
    with pytest.raises(ValueError, match="phases are counted in steps"):
        Stage(batch_size=1, phases=phases, minutes=1.0)
    with pytest.raises(ValueError, match="greater than 0"):
        Schedule(batch_size=1, minutes=0)
    assert (ROOT / "training" / "recipes" / "mini-live.yaml").is_file()
