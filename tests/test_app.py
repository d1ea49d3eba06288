"""The panel Ask: its events called directly, with a model whose text is written in `scripted_model.py`."""

import asyncio
import io
import socket
from types import SimpleNamespace
from urllib.request import urlopen

import gradio as gr
import pytest
from PIL import Image, ImageDraw
from scripted_backend import ScriptedBackend, failing
from scripted_model import ANSWER, picture_file

import app
import pacore.panel as ask_panel
import vlm.page as page_parts
from pacore import Adaptive, Plan, panel_answers
from training.world import draw_sample
from vlm.pictures import open_picture

HERE = SimpleNamespace(session_hash="here")


@pytest.fixture
def panel(script, tmp_path, monkeypatch) -> app.AskPanel:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return app.AskPanel(app.Models(), app.MINI, samples=[draw_sample(seed, family="count") for seed in range(2)])


OFF = ("off", False, False, 100, 0)  # rounds, views, adaptive, quorum in percent, seed


def ask(panel, kept=None, drawing=None, drawing_chosen=False, question="How many?", truth=None, answers=(),
        parallel=OFF, at_each=lambda update: None):  # fmt: skip
    """Every (answers, notice, tree) of a question."""

    async def all_of() -> list[tuple]:
        updates = []
        given = (kept, drawing, drawing_chosen, question, truth, "mini", list(answers))
        async for update in panel.ask(*given, *parallel, HERE):
            updates.append(update)
            at_each(update)
        return updates

    return asyncio.run(all_of())


def line(update) -> str:
    """The notice of an update; empty when the update hides it."""
    return update.value if update.visible else ""


# Pictures


@pytest.mark.parametrize("kind", ["png", "cmyk", "palette", "sixteen", "rgba", "animated", "rotated"])
def test_uploads_are_shown_as_the_model_sees_them(panel, tmp_path, kind):
    if kind == "sixteen":
        path = tmp_path / "grey.png"
        Image.new("I;16", (40, 30), 65535).save(path)
    elif kind == "rotated":
        exif = Image.Exif()
        exif[274] = 6
        path = picture_file(tmp_path, "photo.jpg", exif=exif)
    elif kind == "animated":
        frames = [Image.new("RGB", (40, 30), "green")]
        path = picture_file(tmp_path, "film.gif", save_all=True, append_images=frames)
    else:
        name = "print.jpg" if kind == "cmyk" else "scene.png"
        path = picture_file(tmp_path, name, {"cmyk": "CMYK", "palette": "P", "rgba": "RGBA"}.get(kind, "RGB"))
    shown, kept, truth, notice = panel.take_picture(str(path), None)
    assert shown == kept and truth is None and not line(notice)
    with Image.open(shown) as picture:
        assert picture.mode == "RGB"
        assert picture.size == ((30, 40) if kind == "rotated" else (40, 30))
        assert (picture.getpixel((2, 2)) == (255, 255, 255)) == (kind == "sixteen")
        assert picture.tobytes() == open_picture(path).tobytes()


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "huge"])
def test_a_bad_upload_is_one_line_and_the_earlier_picture_stays(panel, tmp_path, kind):
    path = tmp_path / "bad.png"
    data = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(data, "PNG")
    if kind == "huge":  # the declared size stands in bytes 16 to 24
        data = data.getvalue()[:16] + (20000).to_bytes(4) * 2 + data.getvalue()[24:]
    else:
        data = {"text": b"no picture at all", "empty": b"", "truncated": data.getvalue()[:3000]}[kind]
    path.write_bytes(data)
    shown, kept, truth, notice = panel.take_picture(str(path), "earlier.png")
    assert shown == kept == "earlier.png"
    assert truth == gr.skip()
    assert "bad.png" in line(notice) and str(tmp_path) not in line(notice) and "\n" not in line(notice)


def test_the_component_hands_over_the_file_unread(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no picture at all")
    payload = SimpleNamespace(path=str(broken), url=None)
    assert page_parts.picture_input("picture", "A picture").preprocess(payload) == str(broken)
    assert page_parts.picture_input("picture", "A picture").preprocess(None) is None


def test_a_sketch_counts_once_something_is_drawn(panel):
    blank, drawn = Image.new("RGBA", (512, 512)), Image.new("RGBA", (512, 512))
    ImageDraw.Draw(drawn).ellipse((100, 100, 300, 300), fill="red")
    composite = Image.alpha_composite(ask_panel.WHITE.convert("RGBA"), drawn)
    assert page_parts.drawn_picture(None) is None
    assert page_parts.drawn_picture({"background": ask_panel.WHITE, "layers": [], "composite": ask_panel.WHITE}) is None
    assert (
        page_parts.drawn_picture({"background": ask_panel.WHITE, "layers": [blank], "composite": ask_panel.WHITE})
        is None
    )
    path = page_parts.drawn_picture({"background": ask_panel.WHITE, "layers": [drawn], "composite": composite})
    with Image.open(path) as picture:
        assert picture.getpixel((200, 200)) == (255, 0, 0) and picture.getpixel((5, 5)) == (255, 255, 255)


# Answers


def test_an_answer_streams_with_its_reasoning_folded(panel, script, tmp_path):
    path = str(picture_file(tmp_path))
    before = [{"role": "user", "content": "earlier"}]
    updates = ask(panel, path, answers=before, question="  How many? ")
    question, reasoning, answer = updates[-1][0][1:]
    assert updates[-1][0][0] == before[0]
    assert question["content"] == [{"path": path, "alt_text": "The picture"}, "How many?"]
    assert reasoning["metadata"] == {"title": "Reasoning", "status": "done"}
    assert "# . # &lt;b&gt;" in reasoning["content"]
    assert answer == {"role": "assistant", "content": ANSWER}
    statuses = [message["metadata"]["status"] for update in updates for message in update[0] if "metadata" in message]
    assert statuses[0] == "pending" and statuses == sorted(statuses, reverse=True)
    [[turn]] = script.asked
    assert [part["type"] for part in turn["content"]] == ["image", "text"]
    assert turn["content"][0]["image"].tobytes() == open_picture(path).tobytes()
    assert turn["content"][1]["text"] == "How many?"


def test_the_sketch_is_asked_about_while_its_tab_is_open(panel, script, tmp_path):
    drawn = Image.new("RGBA", (512, 512), "green")
    drawing = {"background": ask_panel.WHITE, "layers": [drawn], "composite": drawn}
    ask(panel, str(picture_file(tmp_path)), drawing, drawing_chosen=True)
    assert script.asked[0][0]["content"][0]["image"].getpixel((9, 9)) == (0, 128, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "no picture yet"),
        ({"drawing_chosen": True, "kept": "PICTURE"}, "no picture yet"),
        ({"kept": "PICTURE", "question": " \n"}, "no question yet"),
        ({"kept": "vanished.png"}, "vanished.png"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_line(panel, script, tmp_path, changes, words):
    if changes.get("kept") == "PICTURE":
        changes = {**changes, "kept": str(picture_file(tmp_path))}
    before = [{"role": "user", "content": "earlier"}]
    [(answers, notice, tree)] = ask(panel, answers=before, **changes)
    assert answers == before and words in line(notice) and tree == gr.skip() and not script.asked


def test_a_prompt_too_long_for_the_model_is_one_line(panel, script, tmp_path, monkeypatch):
    def too_long(*args, **kwargs):
        raise ValueError("the prompt takes 9000 tokens; shorten it.")
        yield

    monkeypatch.setattr(panel_answers, "stream_answer", too_long)
    *_, (answers, notice, _) = ask(panel, str(picture_file(tmp_path)))
    assert answers == [] and "9000 tokens" in line(notice)


def test_stop_keeps_what_was_written(panel, tmp_path):
    def stop(update):
        if len(update[0]) == 3:  # question, reasoning, the answer's beginning
            panel.stop(HERE)

    panel.start(HERE)
    *_, (answers, _, _) = ask(panel, str(picture_file(tmp_path)), at_each=stop)
    assert answers[-1]["content"].endswith("*Stopped.*")
    assert answers[-1]["content"].startswith("One") and "Answer" not in answers[-1]["content"]
    assert panel.finish(HERE)[0].interactive and not panel.stops


def test_stop_reaches_no_other_reader(panel):
    panel.start(HERE)
    panel.stop(SimpleNamespace(session_hash="elsewhere"))
    assert not panel.stops["here"].is_set()


def test_reasoning_without_an_answer_says_so():
    messages = panel_answers.answer_messages("1: -", "", finished=True)
    assert messages[1]["content"].startswith("*No answer came")


def test_growing_text_is_whole_at_the_end_and_not_sent_too_often():
    shown = list(panel_answers.growing(iter("abcdef"), seconds=60))
    assert shown == ["abcdef"]
    assert list(panel_answers.growing(iter("ab"), seconds=0))[-1] == "ab"
    assert list(panel_answers.growing(iter(""), seconds=0)) == [""]


def test_a_sample_brings_its_question_and_the_scenes_answer(panel):
    sample = panel.samples[1]
    path, kept, truth, question, *_ = panel.take_sample(SimpleNamespace(index=1))
    assert path == kept and question == sample.prompt
    assert ask(panel, kept, question=question, truth=truth)[-1][0][-1]["content"].endswith(f"says: {sample.answer}*")
    assert ask(panel, kept, question="Another one?", truth=truth)[-1][0][-1]["content"] == ANSWER


# Parallel reasoning


@pytest.fixture
def scripted(panel, monkeypatch):
    """Puts a backend that says what a function tells it to in the place of the model's."""

    def put(say, delay=lambda call: 0.0) -> ScriptedBackend:
        backend = ScriptedBackend(say, delay)
        monkeypatch.setattr(ask_panel, "Rollout", lambda model, processor: None)
        monkeypatch.setattr(ask_panel, "LocalBackend", lambda engine, name: backend)
        monkeypatch.setattr(panel_answers, "TREE_SECONDS", 0.01)
        return backend

    return put


TITLES = ["Beginning", "Round 1 of 2", "Round 2 of 2", "Writing the "]


def test_rounds_end_in_an_answer_above_their_tree(panel, scripted, tmp_path):
    backend = scripted(lambda conversation, sampling, call: f"Answer: {min(call, 3)}", lambda call: 0.05)
    updates = ask(panel, str(picture_file(tmp_path)), truth=("How many?", "3"), parallel=("3,2", *OFF[1:]))
    assert len(backend.calls) == 6
    titles = [answers[1]["metadata"]["title"] for answers, _, _ in updates if "metadata" in answers[-1]]
    assert list(dict.fromkeys(title[:12] for title in titles)) == TITLES
    answers, notice, tree = updates[-1]
    assert [answer["content"] for answer in answers[1:]] == ["Answer: 3", "*The scene itself says: 3*"]
    assert not line(notice) and "2 of 2 agree: 3" in tree and "6 trajectories" in tree
    assert updates[0][2] == "", "an earlier tree does not stand below another question"


def test_one_answer_has_no_tree(panel, tmp_path):
    assert {tree for _, _, tree in ask(panel, str(picture_file(tmp_path)))} == {""}


@pytest.mark.parametrize(
    ("parallel", "plan"),
    [
        (("low", False, False, 100, 0), Plan((4,))),
        ((" High ", False, False, 100, None), Plan((32, 4))),
        (("16, 4", True, True, 75, 7), Plan((16, 4), quorum=0.75, adaptive=Adaptive(), views=True, seed=7)),
        (("", True, True, 75, 7), None),
        ((None, False, False, None, 0), None),
        (("2", False, False, None, 0), Plan((2,))),
    ],
)
def test_choices_make_a_plan(parallel, plan):
    assert ask_panel.parallel_plan(*parallel) == plan


@pytest.mark.parametrize(("rounds", "quorum"), [("16,x", 100), ("0", 100), ("5000", 100), ("4,-1", 100), ("[8", 100),
                                                (",".join("1" * 17), 100), ("4", 0), ("4", 900)])  # fmt: skip
def test_a_plan_that_cannot_be_is_one_line(panel, tmp_path, rounds, quorum):
    before = [{"role": "user", "content": "earlier"}]
    path = str(picture_file(tmp_path))
    [(answers, notice, tree)] = ask(panel, path, answers=before, parallel=(rounds, False, False, quorum, 0))
    assert answers == before and " use " in line(notice) and "\n" not in line(notice) and tree == gr.skip()


def test_a_model_that_fails_is_one_line_above_what_there_was(panel, scripted, tmp_path):
    scripted(lambda conversation, sampling, call: "fine" if call < 3 else failing("<b>no memory</b>"))
    before = [{"role": "user", "content": "earlier"}]
    updates = ask(panel, str(picture_file(tmp_path)), answers=before, parallel=("3", *OFF[1:]))
    answers, notice, tree = updates[-1]
    assert answers == before and "&lt;b&gt;no memory" in line(notice) and tree == gr.skip()
    assert "3 of 3 in" in updates[-2][2] and "failed: &lt;b&gt;no memory" in updates[-2][2]


def test_a_run_that_failed_at_once_has_no_messages():
    assert panel_answers.coordinated_messages([], Plan((3,)), over=True, stopped=False) == []


def test_stop_cancels_every_trajectory_and_keeps_the_tree(panel, scripted, tmp_path):
    backend = scripted(lambda conversation, sampling, call: "Answer: 1", lambda call: 0.0 if call < 2 else 3600.0)

    def stop(update):
        if "2 of 5 in" in update[2]:
            panel.stop(HERE)

    panel.start(HERE)
    *_, (answers, _, tree) = ask(panel, str(picture_file(tmp_path)), parallel=("5", *OFF[1:]), at_each=stop)
    assert backend.cancelled == 3 and backend.running == 0
    assert answers[-1]["content"].strip() == "*Stopped.*"
    assert "2 of 5 in, 3 cancelled" in tree and "running" not in tree


def test_nothing_works_on_behind_an_answer_that_nobody_takes(panel, scripted, tmp_path):
    backend = scripted(lambda conversation, sampling, call: "Answer: 1", lambda call: 3600.0)

    async def leave_in_the_middle():
        given = (str(picture_file(tmp_path)), None, False, "How many?", None, "mini", [])
        answers = panel.ask(*given, "4", *OFF[1:], HERE)
        while backend.running < 4:
            await anext(answers)
        await answers.aclose()

    asyncio.run(leave_in_the_middle())
    assert backend.cancelled == 4 and backend.running == 0


# Models


def test_choosing_a_model(panel):
    loading, chosen = panel.choose_model(" other ", "mini")
    assert loading[:2] == ("other", "mini") and "Loading" in loading[2]
    assert chosen[:2] == ("other", "other") and "1.0 million parameters" in chosen[2] and not line(chosen[3])


@pytest.mark.parametrize(("name", "words"), [("nowhere", "nowhere"), ("", "No model was named"), (None, "No model")])
def test_a_model_that_cannot_be_loaded_leaves_the_earlier_one(panel, name, words):
    loaded = panel.models.get("mini")
    *_, (shown, used, about, notice) = panel.choose_model(name, "mini")
    assert shown == used == "mini" and about == app.ABOUT_MINI and words in line(notice)
    assert panel.models.get("mini") is loaded


def test_a_notice_is_text_not_markup():
    assert "<img" not in line(page_parts.warn("<img src=x>"))


def test_a_page_that_comes_slowly_is_served(monkeypatch):
    """What Gradio takes for an address that cannot be reached."""
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Markdown("It is here.")
    with socket.socket() as any_free:
        any_free.bind(("127.0.0.1", 0))
        port = any_free.getsockname()[1]
    address = app.launch(page, "127.0.0.1", port, prevent_thread_lock=True)
    try:
        with urlopen(address, timeout=60) as answer:
            assert b"It is here." in answer.read()
    finally:
        page.close(verbose=False)


def test_an_unusable_port_is_one_line(script, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port} .* --port"):
            app.main(port=port)
