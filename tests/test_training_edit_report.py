"""Reports of an editor, their comparison by what it was told, and how it is shipped."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from edit_recipe import ROOT, small_recipe
from PIL import Image

from edit import EditPipeline
from edit.inputs import EditError
from edit.loading import load_editor
from training.edit_places import INDEX, describe
from training.edit_publish import publish_editor
from training.edit_report import compare_edit_reports, edit_report, embed_edits, print_edit_report
from training.edit_said import SPOT_TOLERANCE, SPOTS, is_right, said_right
from training.edit_thought import Thinking
from training.foreign import print_foreign
from training.foreign_edits import TOOLS, foreign_edits, redraw_edit
from training.runs import run_stage, told_otherwise
from training.schedule import RecipeError
from training.world.edits import EDIT_FAMILIES, draw_edit
from vlm.answering import CHECKPOINTS_VARIABLE, load


@pytest.fixture(autouse=True, scope="module")
def quick_sheets():
    """The sheets that are drawn while training need not be good to look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.edit.SHEET_STEPS", 1)
        yield


def test_the_report_has_every_family_and_the_ceiling(small_run, tmp_path):
    summary = edit_report(str(small_run / "edit" / "model"), samples=1, steps=1, out=tmp_path)
    for families in ("families", "held_out_families"):
        assert tuple(summary[families]) == EDIT_FAMILIES
        for figures in summary[families].values():
            assert figures["n"] == 1 and 0 <= figures["success"] <= 1 and 0 <= figures["preservation"] <= 1
            assert 0 <= figures["ceiling"] <= 1 and figures["ceiling_psnr"] > 0 and 0 <= figures["said"] <= 1
    assert 0 <= summary["mean"] <= 1 and 0 <= summary["held_out_compositions"] <= 1
    assert (tmp_path / "edits.png").stat().st_size > 1000
    assert len((tmp_path / "edits.jsonl").read_text().splitlines()) == 2 * len(EDIT_FAMILIES)
    with pytest.raises(ValueError, match="no split named 'train'"):
        edit_report(str(small_run / "edit" / "model"), samples=1, splits=("train",))


def test_what_the_editor_is_told_is_what_it_paints(small_run, monkeypatch):
    """By plan its words are the world's own; by numbers no word counts."""
    monkeypatch.setattr("training.edit_report.EDIT_FAMILIES", ("remove", "text"))
    editor, given = str(small_run / "edit" / "model"), []
    read = EditPipeline.encode_prompt

    def encode_prompt(pipeline, pictures, instructions, *options):
        given.append(instructions)
        return read(pipeline, pictures, instructions, *options)

    monkeypatch.setattr(EditPipeline, "encode_prompt", encode_prompt)
    summary = edit_report(editor, 2, ("test",), 1, told="plan")
    size = max(load_editor(editor).config.size_levels)
    edits = [draw_edit(seed, "test", "remove", size=size) for seed in range(2)]
    how = load_editor(editor).conditioning
    assert summary["told"] == "plan" and given[0] == [how.with_plan(e.instruction, "; ".join(e.steps)) for e in edits]
    assert len(given) == 2  # each family once, for the painting and for what is said
    given.clear()
    summary = edit_report(editor, 3, ("test",), 1, None, 2, told="numbers")
    assert summary["told"] == "numbers" and summary["families"]["remove"]["n"] == 3 and not given
    assert summary["families"]["remove"]["said"] is None
    for wrong in ({"told": "hints"}, {"told": "plan", "thinking": Thinking(candidates=2)}):
        with pytest.raises(ValueError, match="give one of instruction, plan, numbers, and the first"):
            edit_report(editor, 1, ("test",), 1, **wrong)
    monkeypatch.setattr("training.edit_report.NUMBERS", 10**6)
    with pytest.raises(ValueError, match="tell numbers to an editor that began with `edit_primer`"):
        edit_report(editor, 1, ("test",), 1, told="numbers")


def test_what_the_connector_says_is_judged_by_itself(small_run):
    edits = [draw_edit(seed, "test", family) for seed, family in enumerate(("move", "count", "text"))]
    for edit in edits:
        truth = torch.from_numpy(describe(*edit.pages))
        assert is_right(truth, truth) and is_right(truth * 0.6 + 0.2 * (truth > 0), truth)
        wrong = truth.clone()
        wrong[3, INDEX["new ground", "white"]] = 0.6
        assert not is_right(wrong, truth)
    moved = torch.from_numpy(describe(*edits[0].pages))
    for off, right in ((0.9, True), (1.1, False)):
        said = moved.clone()
        said[:, SPOTS] += off * SPOT_TOLERANCE
        assert is_right(said, moved) == right
    shipped = load_editor("mini")
    easy = [draw_edit(seed, "test", "remove") for seed in range(6)]
    told = embed_edits(shipped, easy)
    right = said_right(shipped, easy, told, 4)
    assert len(right) == 6 and sum(right) >= 4
    other = shipped.encode_prompt([e.before for e in easy], ["make the background black"] * 6)
    assert not any(said_right(shipped, easy, other))
    small = load_editor(str(small_run / "edit" / "model"))
    small.conditioning = small.conditioning.replaced(view_side=0, only_places=False)
    with pytest.raises(ValueError, match="train it with `foresight`"):
        said_right(small, easy, told)


@pytest.mark.parametrize("tool", ("matplotlib", "photo"))
def test_edits_are_redrawn_by_other_tools(tool):
    for seed, family in enumerate(TOOLS[tool]):
        native = draw_edit(seed, "test", family)
        edit = redraw_edit(native, tool)
        assert edit.before.size == edit.after.size == edit.parts.shape[::-1] != native.before.size
        assert set(np.unique(edit.parts)) == set(np.unique(native.parts)), "every change is there to be judged"
        assert edit.verifier(edit.after).success and not edit.verifier(edit.before).success
    again = redraw_edit(native, tool)
    assert (again.before.tobytes(), again.after.tobytes()) == (edit.before.tobytes(), edit.after.tobytes())


def test_an_editor_is_judged_on_foreign_pictures(small_run, tmp_path, capsys):
    editor = str(small_run / "edit" / "model")
    results = foreign_edits(editor, 1, tmp_path)
    assert set(results) == set(TOOLS) and (tmp_path / "photo.png").stat().st_size > 1000
    assert results["matplotlib"]["foreign"]["n"] == results["matplotlib"]["native"]["n"] == 1
    print_foreign(results | {"svg": {"skipped": "no cairo"}}, as_json=True, figure="success")
    printed = capsys.readouterr().out
    assert "The same edits" in printed and "no cairo" in printed
    assert json.loads(printed.splitlines()[-1])["photo"] == results["photo"]
    with pytest.raises(ValueError, match="samples is 0"):
        foreign_edits(editor, 0)


def test_thinking_is_reported_with_its_cost(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("training.edit_report.EDIT_FAMILIES", ("remove",))

    def answers(pipeline):  # the plan; then a number for each of two candidates, and a verdict on the better one
        script = iter(["nothing", "3", "7", "retry", "9", "1", "accept"] * 2)
        return lambda conversation: next(script)

    monkeypatch.setattr("training.edit_thought.own_model", answers)
    thinking = Thinking(plan=True, candidates=2, reflections=2)
    summary = edit_report(str(small_run / "edit" / "model"), 2, ("test",), 1, None, 1, tmp_path, thinking)
    figures = summary["test_thinking"]
    assert figures["painted_per_edit"] == 4 and figures["seconds_per_edit"] > 0 and figures["plans_right"] == 0
    assert figures["verdicts"] == {"accept": 2, "retry": 2}
    rows = [json.loads(line) for line in (tmp_path / "edits.jsonl").read_text().splitlines()]
    assert [(row["plan"], row["painted"]) for row in rows] == [("nothing", 4)] * 2
    # What a faultless judge would reach is at least what was reached.
    assert all(row["any"] >= row["success"] for row in rows)
    print_edit_report(summary, as_json=False)


def test_thinking_about_nothing_is_the_plain_report(small_run):
    assert not Thinking().asked and Thinking(plan=True).asked and Thinking(candidates=2).asked
    with pytest.raises(EditError, match="seeds is 0"):
        edit_report(str(small_run / "edit" / "model"), 1, ("test",), 1, thinking=Thinking(candidates=0))


@pytest.fixture(scope="module")
def told(small_run) -> dict[str, Path]:
    """The same editor on each of the three kinds of embeddings, by the one switch."""
    recipe = small_recipe(small_run, vae={}, edit={"steps": 2, "vae": str(small_run / "vae" / "model")})
    editors = {"picture": small_run / "edit" / "model"}
    for source in ("instruction", "words"):
        changed, stage = told_otherwise(recipe, source)
        editors[source] = run_stage(changed, stage, small_run, workers=0)
    return editors


def test_what_the_painter_is_told_is_one_switch(told, small_run):
    assert told["words"] == small_run / "edit_words" / "model"
    recipe = small_recipe(small_run, edit={})
    assert told_otherwise(recipe, "picture") == (recipe, "edit")
    embeddings = {}
    for source, folder in told.items():
        pipeline = EditPipeline.from_pretrained(folder)
        assert pipeline.conditioning.source == source and pipeline.conditioning.view_side
        pictures = [draw_edit(seed, "test", size=64).before for seed in range(2)]
        embeddings[source] = pipeline.encode_prompt(pictures, ["make the star red"] * 2)
    assert len({len(told[0]) for told in embeddings.values()}) == 1, "they differ in what is told, not in how much"
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


def test_an_editor_is_shipped_beside_its_model(small_run, tmp_path, monkeypatch):
    recipe = small_recipe(small_run, vae={}, edit={"families": ["add", "count", "add"]})
    shutil.copytree(ROOT / "checkpoints" / "mini", tmp_path / "mini", ignore=shutil.ignore_patterns("editor", "vae"))
    report = tmp_path / "report.txt"
    summary = edit_report(str(small_run / "edit" / "model"), 1, ("test",), 1, out=tmp_path)
    report.write_text("a table\n" + json.dumps(summary) + "\n")
    out = publish_editor(recipe, small_run, tmp_path / "mini" / "editor", report, sheet=tmp_path / "edits.png")
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path))
    shipped, original = load_editor("mini"), EditPipeline.from_pretrained(small_run / "edit" / "model")
    for name in ("transformer", "connector", "vae"):
        for a, b in zip(getattr(shipped, name).parameters(), getattr(original, name).parameters(), strict=True):
            assert torch.equal(a, b.bfloat16().float())
    assert not [path for path in out.rglob("*.json") if str(tmp_path.parent) in path.read_text()], "a machine's path"
    card = (out / "README.md").read_text()
    weights = out / "transformer" / "diffusion_pytorch_model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card
    assert "`python -m training edit --recipe test`" in card and "| recolour |" in card
    assert "12 pairs of add (2 times), count, " in card and "](edits.webp)" in card
    with Image.open(out / "edits.webp") as shown, Image.open(tmp_path / "edits.png") as drawn:
        assert shown.size == drawn.size
    assert hashlib.sha256((out / "edits.webp").read_bytes()).hexdigest() in card

    # Another painter for the editor that is there.
    primed = small_recipe(tmp_path / "primed", edit_primer={})
    painter = EditPipeline.from_pretrained(out).transformer
    with torch.no_grad():
        painter.proj_out.bias.fill_(0.5)
    painter.save_pretrained(tmp_path / "primed" / "edit_primer" / "model")
    with pytest.raises(RecipeError, match=r"no editor in .*elsewhere.*publish `--stage edit` there first"):
        publish_editor(primed, tmp_path / "primed", tmp_path / "mini" / "elsewhere", stage="edit_primer")
    publish_editor(primed, tmp_path / "primed", out, stage="edit_primer")
    again = load_editor("mini")
    assert (again.transformer.proj_out.bias == 0.5).all()
    assert torch.equal(again.transformer.proj_out.weight, shipped.transformer.proj_out.weight)
    for a, b in zip(again.connector.parameters(), shipped.connector.parameters(), strict=True):
        assert torch.equal(a, b) or not a.any()
    assert "full pages told by numbers" in (out / "README.md").read_text()
    assert not (out / "edits.webp").exists() and "edits.webp" not in (out / "README.md").read_text(), "another's edits"

    # Nothing is left behind, nor is what was there lost, where there is too much to ship.
    monkeypatch.setattr("training.publish.MOST_BYTES", 19_000_000)
    with pytest.raises(RecipeError, match=r"would hold 20\.\d MB, at most 19 MB"):
        publish_editor(recipe, small_run, out)
    assert weights.exists() and not (tmp_path / "mini" / "editor.partial").exists()


def test_an_editor_that_cannot_be_shipped_is_refused(small_run, tmp_path):
    recipe = small_recipe(small_run, vae={}, edit={})
    with pytest.raises(RecipeError, match="no editor's stage 'sft'; it has edit"):
        publish_editor(recipe, small_run, tmp_path / "mini" / "editor", stage="sft")
    with pytest.raises(RecipeError, match="finish `python -m training edit --recipe test`"):
        publish_editor(recipe, tmp_path, tmp_path / "mini" / "editor")
    with pytest.raises(RecipeError, match="Publish that first"):
        publish_editor(recipe, small_run, tmp_path / "mini" / "editor")
    (tmp_path / "edits.png").write_text("no picture")
    with pytest.raises(RecipeError, match=r"edits.png is no picture .*give edits.png of `report --edits --out DIR`"):
        publish_editor(recipe, small_run, tmp_path / "mini" / "editor", sheet=tmp_path / "edits.png")
    model, processor = load("mini")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "mini")
    with pytest.raises(RecipeError, match="trained with another model"):
        publish_editor(recipe, small_run, tmp_path / "mini" / "editor")
