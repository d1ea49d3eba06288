"""The page in a real browser: with a model whose text is written in `scripted_model.py`, and as a newcomer runs it."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_model import REASONING, picture_file

import app
from training.tokenizer import build_tokenizer
from training.world import draw_sample
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
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    samples = [draw_sample(app.SAMPLE_SEED, family=family) for family in app.FAMILIES]
    page = app.build(app.Models(), samples=samples)
    yield app.launch(page, "127.0.0.1", free_port(), prevent_thread_lock=True)
    page.close(verbose=False)


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
    elif not (ROOT / "checkpoints" / "mini" / "config.json").is_file():
        pytest.skip("no trained model in checkpoints/mini: make one with python -m training all --recipe mini")
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
