"""Evaluation, pictures by other tools, speed and publishing, on a model that knows nothing: the plumbing is exact."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.foreign import TOOLS, draw_svg, foreign, redraw
from training.intervals import mean_of, wilson
from training.publish import publish
from training.recipe import load_recipe
from training.report import answer, question, report, score
from training.schedule import RecipeError
from training.speed import speed
from training.world import FAMILIES, draw_sample
from vlm.answering import load, stream_answer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A run of the smoke recipe as `all` leaves it, its stages untrained: weights, processor and one line of log."""
    from training.pretrain import start

    run = tmp_path_factory.mktemp("run")
    model, processor = start(load_recipe("mini-smoke"))
    for stage in ("pretrain", "sft"):
        model.save_pretrained(run / stage / "model")
        processor.save_pretrained(run / stage / "model")
        (run / stage / "log.jsonl").write_text(json.dumps({"samples": 8, "seconds": 36.0}) + "\n")
    return run


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(0, 10, 0.0, 0.278), (50, 100, 0.404, 0.596), (10, 10, 0.722, 1)]
)
def test_wilsons_interval(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-3)


def test_right_answers_score_one_and_wrong_ones_nothing():
    samples = [draw_sample(seed, "test", "count") for seed in range(20)]
    assert score(samples, [s.response for s in samples])["accuracy"] == 1.0
    result = score(samples, ["Answer: 99"] * 20)
    assert result["accuracy"] == 0.0 and result["interval"][1] < 0.2
    commonest = max({s.answer for s in samples}, key=[s.answer for s in samples].count)
    assert result["majority_baseline"] == sum(s.answer == commonest for s in samples) / 20


def test_the_mean_is_unweighted():
    mean, (low, high) = mean_of({"a": {"accuracy": 1.0, "n": 10}, "b": {"accuracy": 0.5, "n": 1000}})
    assert mean == 0.75 and low < 0.75 < high


def test_answers_in_a_batch_are_those_given_one_by_one(small):
    model, processor = load(str(small / "sft" / "model"))
    asked = [question(draw_sample(seed, "test", None, m)) for seed, m in ((1, "picture"), (2, "text"), (3, "picture"))]
    batched = answer(model, processor, asked, max_new_tokens=12)
    for conversation, text in zip(asked, batched, strict=True):
        assert text == "".join(stream_answer(model, processor, conversation, max_new_tokens=12))


def test_the_report_ends_with_one_json_line(small):
    command = [sys.executable, "-m", "training", "report", "--model", str(small / "sft" / "model"), "--samples", "1",
               "--max-new-tokens", "8", "--json"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(summary["families"]) == set(FAMILIES)
    for key in ("mean", "held_out_compositions", "hard"):
        assert 0 <= summary[key] <= 1 and len(summary[f"{key}_interval"]) == 2
    assert set(summary["families"]["count"]) == {"accuracy", "n", "interval", "majority_baseline"}


@pytest.mark.parametrize("changes", [{"samples": 0}, {"splits": ("nope",)}], ids=str)
def test_a_report_of_nothing_is_refused(small, changes):
    arguments = {"samples": 1, "splits": ("test",), "batch_size": 2} | changes
    with pytest.raises(ValueError):
        report(str(small / "sft" / "model"), **arguments)


def test_the_same_scene_by_other_tools_looks_alike():
    """Where the native drawing has the shape's colour, the others have it too."""
    sample = next(s for s in (draw_sample(i, "test", "caption") for i in range(99)) if len(s.scene.things) == 3)
    thing = sample.scene.things[0]
    for tool in ("svg", "matplotlib"):
        if tool == "svg":
            pytest.importorskip("cairosvg", exc_type=(ImportError, OSError), reason="cairo is not installed")
        picture = redraw(sample, tool)
        assert picture.size == (480, 480) and picture.mode == "RGB"
        assert picture.getpixel((1, 1)) == (255, 255, 255) or tool == "matplotlib"
        region = [(thing.x + dx) * 480 for dx in (-thing.radius, thing.radius)]
        drawn = picture.crop((int(region[0]), int((thing.y - thing.radius) * 480), int(region[1]),
                              int((thing.y + thing.radius) * 480)))  # fmt: skip
        assert len(set(drawn.getdata())) > 1, f"{tool} drew nothing at {thing}"


def test_svg_names_what_it_draws():
    sample = next(s for s in (draw_sample(i, "test", "caption") for i in range(99)) if s.scene.things)
    text = draw_svg(sample.scene)
    assert all(f'"{thing.colour}"' in text for thing in sample.scene.things)


def test_foreign_pictures_are_asked_about(small, tmp_path):
    results = foreign(str(small / "sft" / "model"), samples=2, out=tmp_path)
    assert set(results) == set(TOOLS)
    assert results["matplotlib"]["foreign"]["n"] == results["matplotlib"]["native"]["n"] == 2
    assert len(list(tmp_path.glob("photo_*.png"))) == 2


def test_speed_is_a_share_of_this_machines_peak():
    result = speed(load_recipe("mini-smoke"), steps=1)
    assert 0 < result["share_of_peak_float32"] < 1.2
    assert result["samples_per_second"] > 0 and result["flops_per_step"] > 1e8
    assert sum(result["where"].values()) == pytest.approx(1, abs=0.02)
    with pytest.raises(RecipeError, match="has the stages edit; pretrain or sft is timed"):
        speed(load_recipe("step1x-lora"), steps=1)


def test_publishing_writes_bfloat16_weights_and_a_card_that_adds_up(small, tmp_path):
    import hashlib

    from safetensors import safe_open

    out = publish(load_recipe("mini-smoke"), small, tmp_path / "shipped")
    with safe_open(out / "model.safetensors", "pt") as weights:
        assert weights.get_slice(next(iter(weights.keys()))).get_dtype() == "BF16"
    card = (out / "README.md").read_text()
    assert hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest() in card
    assert "16 (0.02 hours" in card and "Not measured yet" in card
    model, _ = load(str(out))
    original, _ = load(str(small / "sft" / "model"))
    assert model.dtype == torch.float32
    for a, b in zip(model.parameters(), original.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0.01, atol=1e-6)


def test_an_earlier_stage_can_be_published_alone(small, tmp_path):
    out = publish(load_recipe("mini-smoke"), small, tmp_path / "shipped", stage="pretrain")
    card = (out / "README.md").read_text()
    assert "training pretrain --recipe mini-smoke" in card and "8 (0.01 hours" in card


def test_publishing_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="finish the run"):
        publish(load_recipe("mini-smoke"), tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--model", "no/such/folder/here"], "no/such/folder/here"),
        (["pretrain", "--recipe", "nope"], "no recipe 'nope'"),
        (["export", "OUT", "--split", "nope"], "no split named 'nope'"),
    ],
    ids=["model", "recipe", "split"],
)
def test_bad_commands_say_one_clear_line(arguments, message, tmp_path):
    arguments = [str(tmp_path / a) if a == "OUT" else a for a in arguments]
    done = subprocess.run([sys.executable, "-m", "training", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
