"""`python -m vlm`, typed as a person types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_vlm import make_model, make_processor, noise
from test_vlm_pictures import BAD

from vlm import __main__ as command
from vlm.answering import stream_answer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """A folder of checkpoints with a `mini` in it."""
    home = tmp_path_factory.mktemp("checkpoints")
    make_model().save_pretrained(home / "mini")
    make_processor().save_pretrained(home / "mini")
    noise(40, 30).save(home / "picture.png")
    return home


@pytest.fixture
def run(mini, monkeypatch, capsys):
    """Runs the command in this process: (exit code, output, errors)."""
    monkeypatch.setenv("TRIPTYCH_CHECKPOINTS", str(mini))
    monkeypatch.chdir(mini)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["vlm", *words])
        try:
            code = command.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def spoken(monkeypatch, text):
    """The model says this, a few letters at a time."""
    pieces = [text[start : start + 3] for start in range(0, len(text), 3)]
    monkeypatch.setattr(command, "stream_answer", lambda *args, **kwargs: iter(pieces))


def in_a_shell(mini, *words):
    environment = {**os.environ, "TRIPTYCH_CHECKPOINTS": str(mini), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "vlm", *words], cwd=mini, env=environment, capture_output=True, text=True, timeout=300
    )


def test_ask_in_a_shell(mini):
    done = in_a_shell(mini, "ask", "picture.png", "What is it?", "--max-new-tokens", "5", "--raw")
    model, processor = make_model(), make_processor()
    content = [{"type": "image", "image": noise(40, 30)}, {"type": "text", "text": "What is it?"}]
    expected = "".join(stream_answer(model, processor, [{"role": "user", "content": content}], 5))
    assert done.returncode == 0 and done.stdout == expected + "\n"
    assert done.stderr == ""


def test_a_bad_picture_in_a_shell(mini):
    done = in_a_shell(mini, "ask", "nowhere.png", "What is it?")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no file 'nowhere.png'; check the path.\n"


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures(run, mini, name):
    (mini / name).write_bytes(BAD[name][0])
    code, output, errors = run("ask", "picture.png", name, "What is it?")
    assert (code, output) == (2, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1 and BAD[name][1] in errors and name in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "hello", "--model", "nowhere"], "there is no folder 'nowhere'"),
        (["ask"], "nothing is asked"),
        (["ask", "picture.png"], "'picture.png', is a file; write the question after the pictures"),
        (["ask", "x" * 600], "the prompt takes"),
        (["ask", "hello", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["describe", "nowhere"], "there is no folder 'nowhere'"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_in_one_line(run, words, message):
    code, output, errors = run(*words)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1


def test_a_pipe_gets_the_answer_and_the_reasoning_only_when_asked(run, monkeypatch):
    spoken(monkeypatch, "<think>\nIt purrs.\n</think>\n\nA cat [sic].")
    assert run("ask", "picture.png", "What is it?") == (0, "A cat [sic].\n", "")
    assert run("ask", "What is it?", "--reasoning") == (0, "It purrs.\nA cat [sic].\n", "")
    assert run("ask", "What is it?", "--raw")[1] == "<think>\nIt purrs.\n</think>\n\nA cat [sic].\n"


def test_help_says_what_there_is(run):
    code, output, _ = run("--help")
    assert code == 0 and "ask" in output and "describe" in output
    code, output, _ = run("ask", "--help")
    assert code == 0 and all(
        option in output for option in ("--model", "--max-new-tokens", "--temperature", "--seed", "--raw")
    )


def test_describe_prints_parts_and_memory(run):
    code, output, errors = run("describe", "10b")
    assert (code, errors) == (0, "")
    for fact in (
        "47 layers",
        "728x728",
        "169 tokens",
        "36 layers",
        "10,171,750,144",
        "40.69 GB",
        "20.34 GB",
        "5.09 GB",
    ):
        assert fact in output, fact
    assert all(part in output for part in ("encoder", "projector", "decoder", "head"))
    code, output, _ = run("describe", "mini/")
    total = sum(parameter.numel() for parameter in make_model().parameters())
    assert code == 0 and f"{total:,}" in output
