"""`python -m edit`: a picture in, a picture out, one line where something is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_editor import draws, make_pipeline
from small_vlm import noise
from test_vlm_pictures import BAD, animation, encoded, rotated

from edit.__main__ import main
from edit.loading import load_editor
from vlm.answering import CHECKPOINTS_VARIABLE, ModelError
from vlm.pictures import open_picture

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def editor(tmp_path_factory) -> Path:
    """A folder laid out as the shipped one: the model, and the editor inside."""
    home = tmp_path_factory.mktemp("checkpoints")
    pipeline = make_pipeline(context=8192)
    pipeline.vision_language_model.save_pretrained(home / "mini")
    pipeline.processor.save_pretrained(home / "mini")
    pipeline.save_pretrained(home / "mini" / "editor", vision_language="..")
    return home / "mini" / "editor"


@pytest.fixture
def picture(tmp_path) -> Path:
    noise(24, 32).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def run(*arguments, capsys=None) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return (code, *(capsys.readouterr() if capsys else ("", "")))


def test_a_picture_is_edited(editor, picture, tmp_path, capsys):
    out = tmp_path / "out.png"
    code, said, _ = run(picture, "make it red", "-o", out, "--model", editor, "--seed", 3, capsys=capsys)
    assert (code, said) == (0, f"{out}\n")
    made = load_editor(str(editor))(noise(24, 32), "make it red", generator=draws(3)).images[0]
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(made))


def test_the_shipped_editor_is_the_default(editor, picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(editor.parent.parent))
    code, _, _ = run(picture, "make it red", "-o", tmp_path / "out.jpg", "--steps", 1, capsys=capsys)
    assert code == 0
    assert Image.open(tmp_path / "out.jpg").size == (24, 32)


def test_options_reach_the_pipeline(editor, picture, tmp_path, capsys):
    plain = tmp_path / "plain.png"
    common = (picture, "make it red", "--model", editor, "--steps", 2)
    run(*common, "-o", plain, capsys=capsys)
    for number, options in enumerate((("--guidance", 1), ("--strength", 0.5), ("--size", 16), ("--seed", 9))):
        out = tmp_path / f"{number}.png"
        assert run(*common, "-o", out, *options, capsys=capsys)[0] == 0
        assert not np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(plain))), options


def test_thinking(editor, picture, tmp_path, capsys):
    out = tmp_path / "out.png"
    options = ("--steps", 1, "--seeds", 2, "--reflect", "--reflections", 1)
    code, _, told = run(picture, "make it red", "-o", out, "--model", editor, *options, capsys=capsys)
    assert code == 0
    assert "scores: seed 0" in told
    assert any(decision in told for decision in ("accept:", "retry:", "roll back:"))
    assert out.is_file()


def test_questions_in_parallel(editor, picture, tmp_path, capsys):
    """Two trajectories and a synthesis a question, through `pacore`."""
    out = tmp_path / "out.png"
    options = ("--steps", 1, "--reflect", "--reflections", 1, "--rollouts", 2)
    code, _, told = run(picture, "make it red", "-o", out, "--model", editor, *options, capsys=capsys)
    assert code == 0, told
    assert out.is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"picture": "no.png"}, "there is no file 'no.png'"),
        ({"picture": __file__}, "is not a picture that can be read"),
        ({"instruction": " "}, "the instruction is empty"),
        ({"instruction": "x" * 100}, "shorten the instruction"),
        ({"out": "out.txt"}, "whose ending names no format"),
        ({"out": "no-such-folder/out.png"}, "there is no folder 'no-such-folder'"),
        ({"--model": "no-such-folder"}, "there is no folder 'no-such-folder'"),
        ({"--steps": 0}, "num_inference_steps is 0"),
        ({"--strength": 2}, "strength is 2"),
        ({"--size": 99}, "size_level is 99; this editor has 16, 32"),
        ({"--seeds": 0}, "seeds is 0"),
        ({"--rollouts": 0}, "--rollouts is 0"),
        ({"--lora": "no-such-lora"}, "there is no LoRA 'no-such-lora'"),
    ],
)
def test_what_is_wrong_is_one_line(editor, picture, tmp_path, capsys, change, words):
    values = {"picture": picture, "instruction": "make it red", "out": tmp_path / "out.png", "--model": editor}
    values |= {"--steps": 1} | change
    flags = [part for name, value in values.items() if name.startswith("--") for part in (name, value)]
    code, said, told = run(values["picture"], values["instruction"], "-o", values["out"], *flags, capsys=capsys)
    assert (code, said) == (2, "")
    assert told.startswith("error: ") and words in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


UNUSUAL = {
    "one-pixel.png": encoded(Image.new("RGB", (1, 1), "red")),
    "line.png": encoded(Image.new("RGB", (400, 1), "red")),
    "cmyk.jpg": encoded(Image.new("CMYK", (20, 16), (0, 255, 255, 0)), "JPEG"),
    "transparent.png": encoded(Image.new("RGBA", (20, 16), (255, 0, 0, 9))),
    "grey-and-alpha.png": encoded(Image.new("LA", (20, 16), (9, 9))),
    "palette.png": encoded(noise(20, 16).convert("P"), transparency=3),
    "sixteen-bit.png": encoded(Image.fromarray(np.arange(320, dtype=np.uint16).reshape(16, 20) * 200)),
    "black-and-white.tif": encoded(noise(20, 16).convert("1"), "TIFF"),
    "animation.gif": animation(),
    "on-its-side.png": rotated(),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_pictures_are_edited_at_their_own_size(editor, tmp_path, capsys, name):
    path, out = tmp_path / name, tmp_path / "out.png"
    path.write_bytes(UNUSUAL[name])
    code, _, told = run(path, "make it red", "-o", out, "--model", editor, "--steps", 1, capsys=capsys)
    assert code == 0, told
    made = Image.open(out)
    assert made.mode == "RGB" and made.size == open_picture(path).size


@pytest.mark.parametrize("name", BAD)
def test_broken_and_huge_pictures_are_refused_in_one_line(editor, tmp_path, capsys, name):
    path = tmp_path / name
    path.write_bytes(BAD[name][0])
    code, said, told = run(path, "make it red", "-o", tmp_path / "out.png", "--model", editor, capsys=capsys)
    assert (code, said) == (2, "") and told.startswith("error: ") and told.count("\n") == 1
    assert BAD[name][1].replace(" (0 bytes)", "") in told and not (tmp_path / "out.png").exists()


def test_an_editor_that_is_not_there_or_not_whole(tmp_path, editor, monkeypatch):
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path))
    with pytest.raises(ModelError, match="the mini editor is not at"):
        load_editor()
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_editor(str(tmp_path))
    broken = tmp_path / "editor"
    broken.mkdir()
    for file in editor.rglob("*.json"):
        (broken / file.relative_to(editor)).parent.mkdir(exist_ok=True)
        (broken / file.relative_to(editor)).write_text(file.read_text())
    with pytest.raises(ModelError, match=r"there is no folder '\.\.'|has no config\.json|cannot be loaded"):
        load_editor(str(broken))


def test_bench_ends_with_one_json_line(editor, capsys):
    assert main(["bench", "--model", str(editor), "--steps", "3", "--repeats", "1", "--json"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(last)
    assert {"speedup_exact", "speedup_cached", "cached_loss", "devices"} <= result.keys()
    assert result["exact_difference"] < 1e-3
    assert result["threads"] == torch.get_num_threads()


def test_as_a_program(tmp_path):
    """The module itself, from another folder, where there is no editor."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), CHECKPOINTS_VARIABLE: str(tmp_path)}
    noise(8, 8).save(tmp_path / "in.png")
    command = [sys.executable, "-m", "edit", "in.png", "make it red", "-o", "out.png"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the mini editor is not at")
