"""The page in a real browser: with a model whose text is written in `scripted_model.py`, and as a newcomer runs it."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from scripted_backend import ScriptedBackend, failing
from scripted_model import REASONING, picture_file

import app
import pacore.panel as ask_panel
from training.tokenizer import build_tokenizer
from training.world import draw_sample
from training.world.edits import draw_edit
from vlm import Step3VLConfig, Step3VLForConditionalGeneration, Step3VLProcessor

ROOT = Path(__file__).resolve().parents[1]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                      "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine: install Debian's chromium")
WINDOWS = {"laptop": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def address(script, tmp_path, monkeypatch):
    """Where the page with the scripted model is served."""
    yield from served_here(tmp_path, monkeypatch)


@pytest.fixture
def mini_address(tmp_path, monkeypatch):
    """Where the page with the shipped mini model is served, by this process."""
    needs_mini()
    yield from served_here(tmp_path, monkeypatch)


def served_here(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    samples = [draw_sample(app.SAMPLE_SEED, family=family) for family in app.FAMILIES]
    edits = [draw_edit(app.SAMPLE_SEED, family="remove", language="en")]
    page = app.build(app.Models(), samples=samples, edits=edits)
    yield app.launch(page, "127.0.0.1", free_port(), prevent_thread_lock=True)
    page.close(verbose=False)


def needs_mini() -> None:
    if not (ROOT / "checkpoints" / "mini" / "config.json").is_file():
        pytest.skip("no trained model in checkpoints/mini: make one with python -m training all --recipe mini")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def visit(browser, address: str, window: str = "laptop"):
    """The page in a window; what it asked of other hosts is in `page.strangers`."""
    page = browser.new_page(viewport=WINDOWS[window])
    page.set_default_timeout(180_000)  # a machine that trains at the same time is slow
    page.strangers = strangers = []
    at_home = (address, "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(at_home) or strangers.append(request.url))
    page.goto(address)
    page.locator("#ask").wait_for()
    return page


def answered(page) -> None:
    """Waits until the answer is complete: Ask can be pressed again."""
    page.locator("#ask:not([disabled])").wait_for()


@needs_chromium
@pytest.mark.parametrize("window", WINDOWS)
def test_upload_ask_and_read(browser, address, script, tmp_path, window):
    script.seconds_a_word = 0.05
    page = visit(browser, address, window)
    page.locator("#picture input[type=file]").set_input_files(picture_file(tmp_path))
    page.locator("#picture img").wait_for()
    page.locator("#question textarea").fill("How many moons?")
    page.locator("#ask").click()
    page.get_by_text("1: - - - 4 red moon").wait_for()  # open while it is written
    page.screenshot(path=tmp_path / f"{window}-reasoning.png", full_page=True)
    answered(page)
    page.get_by_text("Answer: 5").wait_for()
    reasoning = page.locator("#answers pre.reasoning")
    reasoning.wait_for(state="hidden")
    page.screenshot(path=tmp_path / f"{window}-answer.png", full_page=True)
    page.locator("#answers").get_by_text("Reasoning", exact=True).click()
    reasoning.wait_for(state="visible")
    assert reasoning.inner_text().strip() == REASONING
    asked = script.asked[0][0]["content"]
    assert asked[0]["image"].size == (40, 30) and asked[1]["text"] == "How many moons?"
    assert page.evaluate("document.documentElement.scrollWidth") <= WINDOWS[window]["width"]
    assert page.strangers == []
    page.close()


@needs_chromium
def test_a_bad_picture_says_so_and_loses_nothing(browser, address, script, tmp_path):
    page = visit(browser, address)
    page.locator("#samples button").nth(3).click()
    page.locator("#picture img").wait_for()
    question = page.locator("#question textarea").input_value()
    bad = tmp_path / "letter.png"
    bad.write_text("no picture at all")
    page.locator("#picture input[type=file]").first.set_input_files(bad)
    page.get_by_role("alert").wait_for()
    assert "letter.png" in page.get_by_role("alert").inner_text()
    page.screenshot(path=tmp_path / "bad-picture.png", full_page=True)
    assert page.locator("#picture img").is_visible()
    assert page.locator("#question textarea").input_value() == question
    page.locator("#ask").click()
    page.get_by_text("The scene itself says").wait_for()
    assert script.asked[0][0]["content"][0]["image"].size == draw_sample(app.SAMPLE_SEED, family="count").picture.size
    page.close()


@needs_chromium
def test_draw_ask_and_stop(browser, address, script, tmp_path):
    script.endless()
    page = visit(browser, address)
    page.get_by_role("tab", name="Draw").click()
    canvas = page.locator("#drawing canvas").first
    canvas.wait_for()
    box = canvas.bounding_box()
    page.wait_for_timeout(2000)  # the sheet is laid out by a script that gives no sign when it is done
    page.mouse.move(box["x"] + box["width"] * 0.45, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.6, steps=8)
    page.mouse.up()
    page.locator("#question textarea").fill("What is this?")
    page.locator("#ask").click()
    page.get_by_text("1: -").wait_for()
    page.locator("#stop").click()
    page.get_by_text("Stopped.").wait_for()
    answered(page)
    page.screenshot(path=tmp_path / "drawing.png", full_page=True)
    colours = {colour for _, colour in script.asked[0][0]["content"][0]["image"].getcolors(10_000)}
    assert {(255, 255, 255), (214, 39, 40)} <= colours
    page.close()


@needs_chromium
def test_closing_the_window_ends_the_answer(browser, address, script):
    script.endless()
    page = visit(browser, address)
    page.locator("#samples button").first.click()
    page.locator("#picture img").wait_for()
    page.locator("#ask").click()
    page.get_by_text("1: -").wait_for()
    page.close()
    assert script.stops[0].wait(timeout=180)


@needs_chromium
def test_the_model_picker_refuses_in_one_line(browser, address):
    page = visit(browser, address)
    picker = page.locator("#model input")
    picker.fill("nowhere/at-all")
    picker.press("Enter")
    page.get_by_role("alert").wait_for()
    assert "nowhere/at-all" in page.get_by_role("alert").inner_text()
    page.wait_for_function("document.querySelector('#model input').value == 'mini'")
    page.close()


# Parallel reasoning


# One round of what mini was taught to answer, at length, and more of it than is done before anybody stops it; how long
# it talks when it reads messages is another matter with every training.
LONG = "16, 16, 16, 16"  # rounds: of one alone all may be done before the page has shown the first
SOME_ARE_DONE = "#tree .pacore-one[data-state=done]"


def ask_in_parallel(page, rounds: str, sample: str = "existence") -> None:
    page.locator("#samples button", has_text=sample).click()
    page.locator("#picture img").wait_for()
    page.locator("#parallel input").fill(rounds)
    page.locator("#ask").click()  # leaving the field is enough, no Enter is needed


def engines() -> list[str]:
    """The threads that drive a model."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rollout")]


def wait_until_idle(seconds: float) -> None:
    end = time.monotonic() + seconds
    while engines():
        assert time.monotonic() < end, f"the engine still works after {seconds} s: {engines()}"
        time.sleep(0.02)


@needs_chromium
@pytest.mark.parametrize("window", WINDOWS)
def test_the_tree_of_rounds_grows_below_the_answer(browser, mini_address, tmp_path, window):
    page = visit(browser, mini_address, window)
    ask_in_parallel(page, "3")
    tree = page.locator("#tree")
    tree.locator(".pacore-round[data-state=running]").first.wait_for()
    answered(page)
    tree.get_by_text("3 of 3 in").wait_for()
    assert tree.locator(".pacore-one[data-state=done]").count() == 4
    assert "4 trajectories" in tree.locator(".pacore-cost").inner_text()
    tree.locator("summary").first.click()
    tree.locator("pre").first.wait_for()
    assert "Answer:" in tree.locator("pre").first.inner_text()
    page.screenshot(path=tmp_path / f"{window}-tree.png", full_page=True)
    answer = page.locator("#answers").bounding_box()
    assert answer["y"] + answer["height"] <= tree.bounding_box()["y"]
    assert page.evaluate("document.documentElement.scrollWidth") <= WINDOWS[window]["width"]
    assert page.strangers == [] and engines() == []
    page.close()


@needs_chromium
def test_stop_ends_the_work_and_keeps_the_conclusions(browser, mini_address):
    page = visit(browser, mini_address)
    ask_in_parallel(page, LONG)
    done = page.locator(SOME_ARE_DONE)
    done.first.wait_for()
    assert engines()
    page.locator("#stop").click()
    page.get_by_text("Stopped.").wait_for()
    wait_until_idle(seconds=10)
    answered(page)
    assert page.locator("#tree .pacore-one[data-state=cancelled]").count() > 0
    assert page.locator("#tree [data-state=running]").count() == 0
    done.first.locator("summary").click()
    assert "Answer:" in done.first.locator("pre").first.inner_text()
    page.close()


@needs_chromium
def test_closing_the_window_ends_the_rounds(browser, mini_address):
    page = visit(browser, mini_address)
    ask_in_parallel(page, LONG)
    page.locator(SOME_ARE_DONE).first.wait_for()
    assert engines()
    page.close()
    wait_until_idle(seconds=60)


@needs_chromium
@pytest.mark.parametrize("window", WINDOWS)
def test_before_and_after_are_seen_whole(browser, mini_address, tmp_path, window):
    page = visit(browser, mini_address, window)
    page.get_by_role("tab", name="Edit").click()
    page.locator("#edit-samples button", has_text="remove").click()
    page.locator("#edit-picture img").wait_for()
    page.locator("#edit").click()
    page.locator("#download:not([disabled])").wait_for()
    frame, pictures = page.locator("#before-after").bounding_box(), page.locator("#before-after img")
    page.screenshot(path=tmp_path / f"{window}-edit.png", full_page=True)
    assert pictures.count() == 2
    for picture in pictures.all():
        box, fit = picture.bounding_box(), picture.evaluate("picture => getComputedStyle(picture).objectFit")
        assert frame["x"] <= box["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"]
        assert frame["y"] <= box["y"] and box["y"] + box["height"] <= frame["y"] + frame["height"]
        assert fit in ("contain", "scale-down") or abs(box["width"] - box["height"]) < 2, "not cut, not stretched"
    assert page.evaluate("document.documentElement.scrollWidth") <= WINDOWS[window]["width"]
    page.close()


@needs_chromium
def test_rounds_that_cannot_be_are_one_line(browser, address, script):
    page = visit(browser, address)
    for rounds in ("16,x", "0", "5000"):
        ask_in_parallel(page, rounds)
        page.get_by_role("alert").get_by_text(rounds).wait_for()
        answered(page)
    assert not script.asked
    page.close()


HOSTILE = (
    "</pre></details><script>hacked = 1</script><img src=x onerror='hacked = 1'>\n`${hacked = 1}` {{hacked}} Answer: 1"
)


def put_backend(monkeypatch, backend: ScriptedBackend) -> None:
    monkeypatch.setattr(ask_panel, "Rollout", lambda model, processor: None)
    monkeypatch.setattr(ask_panel, "LocalBackend", lambda engine, name: backend)


@needs_chromium
def test_a_hostile_conclusion_is_text_and_what_is_opened_stays_open(browser, address, monkeypatch):
    quick = threading.Event()
    backend = ScriptedBackend(lambda *call: HOSTILE, lambda call: 0.0 if call < 2 or quick.is_set() else 4.0)
    put_backend(monkeypatch, backend)
    page = visit(browser, address)
    ask_in_parallel(page, "4")
    first, second = (page.locator(f"#pacore-0-{index} summary") for index in range(2))
    first.click()
    second.click()
    second.click()
    shown = page.locator("#pacore-0-0 pre")
    shown.wait_for()
    assert shown.inner_text() == HOSTILE
    answered(page)  # redrawn meanwhile, many times
    assert shown.is_visible() and not page.locator("#pacore-0-1 pre").is_visible()
    assert page.evaluate("typeof hacked") == "undefined" and page.locator("#tree img, #tree script").count() == 0
    quick.set()
    page.locator("#ask").click()
    page.locator("#ask[disabled]").wait_for()
    answered(page)
    assert page.locator("#tree details[open]").count() == 0, "another question begins with all of them folded"
    page.close()


@needs_chromium
def test_a_model_that_fails_is_one_line_above_its_tree(browser, address, monkeypatch):
    put_backend(monkeypatch, ScriptedBackend(lambda said, sampling, call: "one" if call < 2 else failing("no memory")))
    page = visit(browser, address)
    ask_in_parallel(page, "2")
    page.get_by_role("alert").wait_for()
    assert "no memory" in page.get_by_role("alert").inner_text()
    assert page.locator("#tree .pacore-one[data-state=done]").count() == 2
    answered(page)
    page.close()


# The command, as a newcomer runs it


def untrained(folder) -> None:
    """Saves a mini model as it is before training, with a context that its babble fills quickly."""
    config = Step3VLConfig.preset("mini")
    config.text_config.max_position_embeddings = 192
    tokenizer = build_tokenizer(config.text_config.vocab_size, samples=5)
    Step3VLForConditionalGeneration(config).save_pretrained(folder)
    Step3VLProcessor.for_config(config, tokenizer).save_pretrained(folder)


@pytest.fixture(params=["untrained", "shipped"])
def served(request, tmp_path):
    """Address of `python app.py` with a mini model, and which one: untrained, or the shipped one."""
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    if request.param == "untrained":
        untrained(tmp_path / "mini")
        environment["TRIPTYCH_CHECKPOINTS"] = str(tmp_path)
    else:
        needs_mini()
    address = f"http://127.0.0.1:{free_port()}/"
    command = [sys.executable, "app.py", "--port", address.split(":")[-1].strip("/")]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == f"Triptych is at {address} (Ctrl-C stops it)\n"
        yield address, request.param
    finally:
        server.terminate()
        server.wait(timeout=180)


@needs_chromium
def test_the_served_model_answers(browser, served, tmp_path):
    address, kind = served
    page = visit(browser, address)
    page.locator("#samples button", has_text="count").click()
    page.locator("#picture img").wait_for()
    page.locator("#ask").click()
    page.get_by_text("The scene itself says").wait_for()
    answered(page)
    page.screenshot(path=tmp_path / f"{kind}.png", full_page=True)
    if kind == "shipped":  # what the other one babbles is nobody's promise
        page.locator("#answers").get_by_text("Answer:").wait_for()
        page.locator("#answers pre.reasoning").wait_for(state="hidden")
    assert page.strangers == []
    page.close()


def test_a_model_that_is_not_there_is_one_line():
    command = [sys.executable, "app.py", "--model", "no such folder"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1 and "no such folder" in run.stderr
