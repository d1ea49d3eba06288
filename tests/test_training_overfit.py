"""Ten pictures are learnt nearly by heart, with all weights and with adapters on an editor that has seen others.

Levels and noise are drawn anew at every step, as in training: what ten pairs leave to guess is nothing, for the picture
to be edited tells them apart.
"""

import json
from pathlib import Path

import pytest
import yaml

from training.edit_folder import export_edits
from training.recipe import load_recipe
from training.runs import run_stage

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "precision": "no",
    "size": 32,
    "batch_size": 20,
    "dropout": 0,
    "warmup_steps": 10,
    "vision_language": str(ROOT / "checkpoints" / "mini"),
    "conditioning": {"source": "words"},
    "connector": {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 1, "pooled_projection_dim": 32},
    "layout": {"packing": 2, "reference_channels": False},
    "transformer": {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32,
                    "joint_attention_dim": 64, "pooled_projection_dim": 32, "axes_dims_rope": [8, 12, 12]},
}  # fmt: skip
VAE = {
    "steps": 8, "batch_size": 4, "size": 32, "precision": "no", "optimizer": {"learning_rate": 0.002},
    "vae": {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "latent_channels": 4},
}  # fmt: skip


def _losses(folder: Path, stage: str, **values) -> list[float]:
    """Of a stage that is trained in `folder`."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{stage}.yaml"
    path.write_text(yaml.safe_dump({"name": "overfit", "seed": 1, "stages": {stage: values}}))
    run_stage(load_recipe(str(path)), stage, folder, workers=0)
    return [json.loads(line)["loss"] for line in (folder / stage / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """An autoencoder, ten pictures, others, and an editor that learnt the others."""
    folder = tmp_path_factory.mktemp("overfit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.edit.SHEET_STEPS", 1)
        patch.setattr("training.edit.EDIT_FAMILIES", ("recolour",))
        export_edits(folder / "ten", count=10, split="easy", size=32)
        export_edits(folder / "others", count=40, split="train", size=32)
        _losses(folder, "vae", **VAE)
        yield folder


def _muon(rate: float) -> dict:
    return {"name": "muon", "learning_rate": rate / 5, "matrix_learning_rate": rate, "weight_decay": 0.0}


def test_all_weights(home):
    losses = _losses(home / "all", "edit", **SMALL, edits=str(home / "ten"), vae=str(home / "vae" / "model"),
                     steps=400, optimizer=_muon(0.02))  # fmt: skip
    # It begins low, for all that stays is right from the start.
    assert sum(losses[-20:]) / 20 < min(0.02, losses[0] / 10), losses[::20]


def test_adapters(home):
    _losses(home / "base", "edit", **SMALL, edits=str(home / "others"), vae=str(home / "vae" / "model"),
            steps=300, optimizer=_muon(0.02))  # fmt: skip
    adapters = {"rank": 32, "alpha": 32}
    losses = _losses(home / "adapters", "edit", precision="no", size=32, batch_size=20, dropout=0, warmup_steps=10,
                     edits=str(home / "ten"), editor=str(home / "base" / "edit" / "model"), lora=adapters,
                     steps=400, optimizer=_muon(0.02))  # fmt: skip
    assert sum(losses[-20:]) / 20 < min(0.06, 0.25 * losses[0]), losses[::20]
