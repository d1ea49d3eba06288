"""The panel Edit: its events called directly, with an editor of a few thousand weights."""

import threading
from types import SimpleNamespace

import gradio as gr
import pytest
from PIL import Image
from small_editor import make_pipeline

import edit.panel
from edit.panel import Editors, EditPanel, Entry, show, told
from edit.thinking import Attempt, Thought, Verdict
from training.world.edits import draw_edit
from vlm.answering import ModelError

HERE = SimpleNamespace(session_hash="here")
CHOSEN = {"name": "mini", "strength": 1.0, "seed": 0, "seeds": 1, "plan": False, "reflect": False}


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


@pytest.fixture
def panel(pipeline, tmp_path, monkeypatch) -> EditPanel:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(edit.panel, "load_editor", lambda name: pipeline)
    return EditPanel(Editors(), [draw_edit(seed, "test") for seed in range(2)])


def edited(panel: EditPanel, history: list[Entry], instruction="Make it blue.", at_each=lambda update: None, **chosen):
    """Every update of an edit."""
    updates = []
    for update in panel.edit(history, instruction, *(CHOSEN | chosen).values(), HERE):
        updates.append(update)
        at_each(update)
    return updates


def uploaded(panel: EditPanel, tmp_path, size=(32, 24)) -> list[Entry]:
    path = tmp_path / "picture.png"
    Image.new("RGB", size, (200, 30, 30)).save(path)
    return panel.take_picture(str(path), [])[2]


def line(update) -> str:
    """The notice of an update; empty when the update hides it."""
    return update.value if update.visible else ""


def test_an_edit_shows_its_steps_and_then_stands_in_the_history(panel, tmp_path):
    history = uploaded(panel, tmp_path)
    *steps, (notice, progress, after, pair, past, download, undo) = edited(panel, history)
    assert [u[1] for u in steps if u[1].startswith("Step")] == ["Step 1 of 3", "Step 2 of 3", "Step 3 of 3"]
    previews = [u[3] for u in steps if isinstance(u[3], tuple)]
    assert previews and all(Image.open(preview).size == (32, 24) for _, preview in previews)
    assert len(after) == 2 and after[0] == history[0] and after[1].words == "Make it blue."
    assert pair == (after[0].path, after[1].path) and Image.open(pair[1]).size == (32, 24)
    assert past.visible and download.value["path"] == after[1].path and undo.interactive
    assert not line(notice) and not progress


def test_what_was_edited_is_edited_again_and_taken_back(panel, tmp_path):
    history = uploaded(panel, tmp_path)
    once = edited(panel, history)[-1][2]
    twice = edited(panel, once, "Make it green.")[-1][2]
    assert len(twice) == 3 and edited(panel, once, "Make it green.")[-1][3][0] == once[-1].path
    picture, kept, *_ = panel.undo(twice)
    assert kept == once and picture == once[-1].path
    assert panel.go_back(twice, SimpleNamespace(index=0))[1] == history
    assert panel.undo(history)[1] == history  # the picture itself stays


def test_a_seed_gives_its_picture_again_and_another_one_another(panel, tmp_path):
    history = uploaded(panel, tmp_path)
    first, again, other = (Image.open(edited(panel, history, seed=seed)[-1][3][1]).tobytes() for seed in (1, 1, 2))
    assert first == again != other


def test_stop_ends_the_edit_after_the_running_step(panel, tmp_path):
    history = uploaded(panel, tmp_path)
    panel.start(HERE)
    updates = edited(panel, history, at_each=lambda update: panel.stop(HERE))
    assert sum(u[1].startswith("Step") for u in updates) < 3 and "Stopped" in updates[-1][1]
    assert len(updates[-1][2]) == 2  # what it was becoming is there to be seen, and to be taken back


def test_whoever_leaves_ends_the_edit(panel, tmp_path):
    history = uploaded(panel, tmp_path)
    panel.start(HERE)
    running = panel.edit(history, "Make it blue.", *CHOSEN.values(), HERE)
    while not next(running)[1].startswith("Step"):
        pass
    running.close()
    assert "edit" not in [thread.name for thread in threading.enumerate() if thread.is_alive()]


def test_candidates_are_judged_by_the_thinking_handed_in(panel, tmp_path):
    asked = []

    def think(pipeline, trajectories):
        return lambda conversation: asked.append(conversation) or str(len(asked))

    panel.think = think
    progress = edited(panel, uploaded(panel, tmp_path), seeds=2)[-1][1]
    assert len(asked) == 2 and progress == "Scores: seed 0 1, seed 1 2"


@pytest.mark.parametrize(
    ("instruction", "name", "words"),
    [(" ", "mini", "no instruction"), ("Blue.", "/nowhere", "no folder"), ("blue " * 400, "mini", "tokens")],
)
def test_what_cannot_be_edited_is_one_line_and_changes_nothing(panel, tmp_path, monkeypatch, instruction, name, words):
    history = uploaded(panel, tmp_path)
    if name == "/nowhere":

        def missing(_):
            raise ModelError("there is no folder '/nowhere'; give 'mini' or the folder of a saved editor.")  # fmt: skip

        monkeypatch.setattr(edit.panel, "load_editor", missing)
    notice, _, *rest = edited(panel, history, instruction, name=name)[-1]
    assert words in line(notice) and "\n" not in line(notice)
    assert all(update == gr.skip() for update in rest)


def test_without_a_picture_there_is_nothing_to_edit(panel):
    assert "no picture yet" in line(edited(panel, [])[-1][0])


def test_a_broken_upload_leaves_the_picture_there(panel, tmp_path):
    history = uploaded(panel, tmp_path)
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    shown, notice, kept, *_ = panel.take_picture(str(broken), history)
    assert shown == history[-1].path and kept == history
    assert "broken.png" in line(notice) and str(tmp_path) not in line(notice)


def test_a_sample_brings_its_instruction(panel):
    path, instruction, _, history, *_ = panel.take_sample(SimpleNamespace(index=1))
    assert instruction == panel.samples[1].instruction and history[0].path == path
    assert Image.open(path).tobytes() == panel.samples[1].before.tobytes()


def test_nothing_edited_is_nothing_to_compare_or_to_take():
    _, pair, past, download, undo = show([Entry("a.png", "as it came")])
    assert pair is None and not past.visible and not download.interactive and not undo.interactive


def test_the_models_words_are_shown_as_they_are():
    verdict = Verdict("roll back", "<b>`no`</b>\nnever")
    thought = Thought(None, "", "# keep all", [Attempt(None, (0,), None, verdict)])
    assert told(thought, stopped=False) == "Plan: `# keep all`\n\nRoll back: `<b>'no'</b> never`"
