"""The loop keeps its promises: killed it resumes to the same curve, two processes give the curve of one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from training.edit_stages import EditStage
from training.loop import faster_precision, learning_rate_factor
from training.optim import MuonAdamW, build_optimizer, orthogonalised
from training.pretrain import start
from training.recipe import RECIPES, Recipe, load_recipe
from training.runs import run_all, run_stage
from training.schedule import Optimizer
from vlm.answering import load

ROOT = Path(__file__).resolve().parents[1]


def _recipe(tmp_path: Path, steps: int = 8, **stage) -> Path:
    """A recipe file of a few tiny steps, with a checkpoint as good as every step."""
    values = yaml.safe_load((RECIPES / "mini-smoke.yaml").read_text())
    values["stages"] = {"pretrain": values["stages"]["pretrain"]}
    values["stages"]["pretrain"] |= {"batch_size": 4, "precision": "no", "checkpoint_minutes": 0.001, **stage}
    values["stages"]["pretrain"]["phases"][0]["steps"] = steps
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "pretrain" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(len(records))), "every step once, in order"
    return [r["loss"] for r in records]


def _environment() -> dict:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_a_killed_run_resumes_to_the_same_curve(tmp_path):
    recipe = _recipe(tmp_path)
    command = [sys.executable, "-m", "training", "pretrain", "--recipe", str(recipe), "--workers", "0"]
    unbroken = subprocess.run([*command, "--out", str(tmp_path / "a")], env=_environment(), capture_output=True)
    assert unbroken.returncode == 0, unbroken.stderr.decode()

    seed = random.randrange(1000)
    kill_at = random.Random(seed).randint(2, 6)
    process = subprocess.Popen([*command, "--out", str(tmp_path / "b")], env=_environment(), stderr=subprocess.DEVNULL)
    log = tmp_path / "b" / "pretrain" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= kill_at):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b" / "pretrain" / "model").exists()

    resumed = subprocess.run([*command, "--out", str(tmp_path / "b")], env=_environment(), capture_output=True)
    assert resumed.returncode == 0, resumed.stderr.decode()
    assert b"resuming at step" in resumed.stderr
    assert _losses(tmp_path / "b") == _losses(tmp_path / "a"), f"kill seed {seed}"
    first, second = (load(str(tmp_path / run / "pretrain" / "model"))[0].state_dict() for run in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_give_the_curve_of_one(tmp_path):
    recipe = _recipe(tmp_path, steps=5, gradient_accumulation_steps=1)
    arguments = ["-m", "training", "pretrain", "--recipe", str(recipe), "--workers", "0", "--out"]
    one = subprocess.run([sys.executable, *arguments, str(tmp_path / "one")], env=_environment(), capture_output=True)
    assert one.returncode == 0, one.stderr.decode()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines",
              "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
    two = subprocess.run([*launch, *arguments, str(tmp_path / "two")], env=_environment(), capture_output=True)
    assert two.returncode == 0, two.stderr.decode()
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), abs=1e-3)
    assert len(_losses(tmp_path / "one")) == 5


def test_accumulating_gradients_changes_nothing(tmp_path):
    curves = []
    for parts in (1, 2):
        folder = tmp_path / str(parts)
        folder.mkdir()
        recipe = load_recipe(str(_recipe(folder, steps=3, gradient_accumulation_steps=parts)))
        run_stage(recipe, "pretrain", folder / "run", workers=0)
        curves.append(_losses(folder / "run"))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_the_whole_smoke_chain_runs_and_skips_what_is_done(tmp_path, capsys):
    """Every stage with its own data, end to end; what it made answers a question."""
    recipe = load_recipe("mini-smoke")
    for stage in recipe.stages.values():
        for part in getattr(stage, "phases", [stage]):
            part.steps = 2
    assert run_all(recipe, tmp_path, workers=1) == tmp_path / "edit_joint" / "model"
    model = tmp_path / "sft" / "model"
    for stage in ("pretrain", "sft", "vae", "edit_primer", "edit", "edit_joint"):
        assert (tmp_path / stage / "curves.png").stat().st_size > 5000
        assert not list((tmp_path / stage).glob("checkpoint-*"))
    assert (tmp_path / "curves.png").exists()
    run_all(recipe, tmp_path)
    assert capsys.readouterr().out.count("done already") == 6

    from training.report import report

    summary = report(str(model), samples=1, splits=("test",), batch_size=4, out=tmp_path / "answers")
    assert 0 <= summary["mean"] <= 1 and summary["families"]["count"]["n"] == 1
    assert len((tmp_path / "answers" / "answers.jsonl").read_text().splitlines()) == 15


def test_a_recipe_changes_what_it_says(tmp_path):
    recipe = load_recipe("mini-smoke")
    model, processor = start(recipe)
    assert model.config.vision_config.num_hidden_layers == 2
    assert processor.tokenizer.convert_tokens_to_ids("<im_patch>") == model.config.image_token_id
    wrong = Recipe.model_validate(recipe.model_dump() | {"model": {"preset": "mini", "text_config": {"depth": 3}}})
    with pytest.raises(ValueError, match=r"text_config\.depth is not a field"):
        start(wrong)


def test_fine_tuning_needs_something_to_start_from(tmp_path):
    with pytest.raises(ValueError, match="run `pretrain` first"):
        run_stage(load_recipe("mini-smoke"), "sft", tmp_path)


def test_a_recipe_without_pretraining_starts_from_its_own_model(tmp_path):
    values = yaml.safe_load((RECIPES / "mini-smoke.yaml").read_text())
    model, processor = start(load_recipe("mini-smoke"))
    for part in (model, processor):
        part.save_pretrained(tmp_path / "earlier")
    values["model"] = {"from_pretrained": str(tmp_path / "earlier")}
    sft = values["stages"]["sft"] | {"phases": values["stages"]["sft"]["phases"][:1], "precision": "no"}
    sft["phases"][0]["steps"] = 1
    trained, _ = load(str(run_stage(Recipe.model_validate(values | {"stages": {"sft": sft}}), "sft", tmp_path)))
    # One step away from where it says, not from fresh weights.
    for before, after in zip(model.parameters(), trained.parameters(), strict=True):
        assert (before - after).abs().max() < 0.01
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    with pytest.raises(ValueError, match="run `pretrain` first or give --model"):
        run_stage(Recipe.model_validate(values | {"model": None, "stages": {"sft": sft}}), "sft", tmp_path / "other")


def test_the_schedule_rises_and_falls():
    stage = load_recipe("mini").stages["pretrain"]
    factors = [learning_rate_factor(stage, step) for step in range(stage.steps)]
    assert factors[0] == 1 / stage.warmup_steps and max(factors) == 1.0
    assert factors[-1] == pytest.approx(stage.final_learning_rate, abs=1e-4)
    peak = factors.index(1.0)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[stage.warmup_steps :] == sorted(factors[stage.warmup_steps :], reverse=True)


def test_each_part_of_a_stage_has_its_own_rise_and_fall():
    stage = EditStage(steps=50, batch_size=1, foresight=1.0, foresight_steps=20, warmup_steps=4)
    factors = [learning_rate_factor(stage, step) for step in range(50)]
    assert factors[3] == factors[23] == 1.0 and factors[0] == factors[20] == 0.25
    assert factors[19] < 0.02 and factors[49] < 0.02
    assert factors[4:20] == sorted(factors[4:20], reverse=True)
    assert factors[24:] == sorted(factors[24:], reverse=True)


def test_muon_steps_are_orthogonal_and_adamw_is_torchs():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(3, 40, 64)))
    assert values.min() > 0.3 and values.max() < 1.4
    ours, theirs = (torch.nn.Parameter(torch.ones(7)) for _ in range(2))
    a = MuonAdamW([{"params": [ours], "lr": 0.01, "weight_decay": 0.1}], betas=(0.9, 0.95))
    b = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(7)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_every_weight_is_trained_and_only_matrices_decay():
    model, _ = start(load_recipe("mini-smoke"))
    for name in ("adamw", "muon"):
        optimizer = build_optimizer(model, Optimizer(name=name))
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in trained} == {id(p) for p in model.parameters()}
        assert all(p.ndim >= 2 for g in optimizer.param_groups if g["weight_decay"] for p in g["params"])


def test_precision_is_measured():
    assert faster_precision(torch.device("cpu")) in ("bf16", "no")
