"""Adapters for the released size: the shipped recipe, what it needs of a GPU, and a run on a small released layout."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from small_editor import make_parts
from test_edit_checkpoints import in_flux_names
from test_edit_conditioning import qwen

from edit.checkpoints import save_released
from edit.configuration import build, released_vae_config
from edit.flow import skip_reference_output
from training.edit import EditTask, adapt
from training.edit_folder import export_edits
from training.recipe import RECIPES, load_recipe
from training.runs import run_stage
from training.schedule import RecipeError

GPU = 24e9  # bytes
OTHER = 1.5e9  # what CUDA, its kernels and gaps between blocks take


def _saved_bytes(block: torch.nn.Module, **inputs) -> int:
    """What a block keeps for its gradients, weights in the precision they are computed in among it."""
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = block(**inputs)
    del held
    return sum(kept.values())


def test_the_recipe_fits_a_gpu_of_24_gb():
    stage = load_recipe("step1x-lora").stages["edit"]
    with torch.device("meta"):
        parts = build("step1x-edit")
    painter = parts["transformer"].to(torch.bfloat16)
    skip_reference_output(painter)
    adapt(painter, stage.lora)
    fixed = [*painter.parameters(), *parts["connector"].to(torch.bfloat16).parameters(),
             *parts["vae"].to(torch.bfloat16).parameters()]  # fmt: skip
    trained = sum(p.numel() for p in painter.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in fixed)
    optimizer = trained * (4 + 8)  # a gradient and AdamW's two moments

    # One pair a micro-batch: a text of the most tokens, the noisy and the reference half of 16 x 16 pixels a token.
    text, image, width = 640, 2 * (stage.size // 16) ** 2, painter.inner_dim
    boundaries = (len(painter.transformer_blocks) + len(painter.single_transformer_blocks)) * (text + image) * width * 4
    with torch.device("meta"):
        inputs = {
            "hidden_states": torch.empty(1, image, width, dtype=torch.bfloat16, requires_grad=True),
            "encoder_hidden_states": torch.empty(1, text, width, dtype=torch.bfloat16, requires_grad=True),
            "temb": torch.empty(1, width, dtype=torch.bfloat16),
            "image_rotary_emb": (torch.empty(text + image, 128), torch.empty(text + image, 128)),
        }
    block = max(_saved_bytes(blocks[0], **inputs)
                for blocks in (painter.transformer_blocks, painter.single_transformer_blocks))  # fmt: skip
    total = weights + optimizer + boundaries + block
    print({name: round(value / 1e9, 2) for name, value in
           {"weights": weights, "optimizer": optimizer, "boundaries": boundaries, "block": block,
            "total": total, "trained (M)": trained * 1e3}.items()})  # fmt: skip
    assert weights > 12e9, "the whole released size is there"
    assert total + OTHER < GPU


def _released_folder(folder: Path) -> Path:
    """Everything the recipe names, of a few thousand weights, in the released layouts."""
    parts = make_parts()
    save_released(folder / "step1x.safetensors", parts["connector"], parts["transformer"])
    torch.manual_seed(0)
    save_file(in_flux_names(AutoencoderKL(**released_vae_config((32, 32), 1, 4))), folder / "vae.safetensors")
    model, processor = qwen()
    model.save_pretrained(folder / "qwen")
    processor.save_pretrained(folder / "qwen")
    export_edits(folder / "edits", count=3, size=32)
    return folder


def _small(folder: Path, **changes):
    values = yaml.safe_load((RECIPES / "step1x-lora.yaml").read_text())
    values["stages"]["edit"] |= {
        "released": str(folder / "step1x.safetensors"), "vae": str(folder / "vae.safetensors"),
        "vision_language": str(folder / "qwen"), "edits": str(folder / "edits"), "size": 32, "steps": 4,
    } | changes  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_recipe(str(path))


@pytest.fixture
def fresh_accelerator():
    """Accelerate keeps one precision a process, and other tests have theirs."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_it_runs_on_a_released_layout_and_resumes(tmp_path, monkeypatch, fresh_accelerator):
    # A sheet of one edit at every checkpoint will do.
    monkeypatch.setattr("training.edit.SHEET_STEPS", 1)
    monkeypatch.setattr("training.edit.EDIT_FAMILIES", ("recolour",))
    recipe = _small(_released_folder(tmp_path), checkpoint_minutes=1e-4)

    def interrupted(self, model, step):
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EditTask, "after_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_stage(recipe, "edit", tmp_path / "run", workers=0)
    (kept,) = (tmp_path / "run" / "edit").glob("checkpoint-*/model*.safetensors")
    held = load_file(kept)
    assert held and all(".lora_" in name for name in held), "a checkpoint holds adapters alone"

    adapters = run_stage(recipe, "edit", tmp_path / "run", workers=0)
    records = [json.loads(line) for line in (tmp_path / "run" / "edit" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [0, 1, 2, 3]
    assert all(r["loss"] > 0 and r["grad_norm"] > 0 for r in records)
    (file,) = adapters.iterdir()
    written = load_file(file)
    reached = {name.split(".lora_")[0] for name in written}
    assert all(tensor.dtype == torch.float32 for tensor in written.values())
    assert {"transformer.single_transformer_blocks.0.proj_mlp", "transformer.transformer_blocks.0.ff.net.2"} <= reached
    assert (tmp_path / "run" / "edit" / "edits.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient_checkpointing": False}, "gradient_checkpointing: true"),
        ({"precision": "no"}, "precision: bf16"),
        ({"vae": None}, "name both"),
        ({"editor": "somewhere"}, "goes on from one of them"),
        ({"released": None}, "name it with `editor` or `released`"),
        ({"train_vision_language": True}, "leave out `train_vision_language`"),
    ],
)
def test_what_cannot_be_adapted_is_refused(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        _small(tmp_path, **change)
