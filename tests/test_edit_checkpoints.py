"""Released weights: golden numbers, names both ways, sizes from shapes, LoRA files, and clear refusals."""

import pickle
import re

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from small_editor import draws, make_parts, make_pipeline
from small_vlm import noise

from edit.checkpoints import (
    CheckpointError,
    load_released,
    load_released_vae,
    lora_to_ours,
    lora_to_released,
    save_released,
)
from edit.configuration import released_vae_config
from edit.flow import skip_reference_output, velocity
from edit.pipeline import EditPipeline
from edit.released_names import OURS, flat, our_layers, released_layers, unflat


@pytest.fixture(scope="module")
def released(shared):
    return shared / "reference" / "step1x_edit" / "step1x_tiny_weights.safetensors"


@pytest.fixture(scope="module")
def golden(shared):
    return load_file(shared / "reference" / "step1x_edit" / "step1x_tiny_io.safetensors")


@torch.no_grad()
def test_golden(released, golden):
    connector, transformer = load_released(released)
    text, pooled = connector(golden["llm_embedding"], golden["timesteps"], golden["mask"])
    inputs = {
        "hidden_states": golden["img"],
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "timestep": golden["timesteps"],
        "img_ids": golden["img_ids"][0],
        "txt_ids": golden["txt_ids"][0],
    }
    torch.testing.assert_close(transformer(**inputs).sample, golden["out"], atol=1e-5, rtol=0)

    # The first half stays what it is when the second is left out.
    half = golden["img"].shape[1] // 2
    skip_reference_output(transformer)
    noisy, reference = golden["img"].split(half, 1)
    predicted = velocity(transformer, noisy, reference, golden["timesteps"], text, pooled,
                         golden["img_ids"][0], golden["txt_ids"][0])  # fmt: skip
    torch.testing.assert_close(predicted, golden["out"][:, :half], atol=1e-5, rtol=0)


def test_sizes_come_from_the_shapes(released):
    connector, transformer = load_released(released)
    assert (connector.config.in_channels, connector.config.num_attention_heads) == (48, 4)
    assert (transformer.config.num_layers, transformer.config.num_single_layers) == (2, 2)
    assert (transformer.config.num_attention_heads, transformer.config.attention_head_dim) == (3, 32)
    assert tuple(transformer.config.axes_dims_rope) == (8, 12, 12)


def test_written_as_it_was_read(released, tmp_path):
    save_released(tmp_path / "again.safetensors", *load_released(released))
    before, after = load_file(released), load_file(tmp_path / "again.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_our_own_parts_go_there_and_back(tmp_path):
    parts = make_parts()
    save_released(tmp_path / "ours.safetensors", parts["connector"], parts["transformer"])
    read = load_released(tmp_path, dtype=torch.float64, axes=(4, 6, 6), connector_heads=2)
    for name, model in zip(("connector", "transformer"), read, strict=True):
        assert (
            dict(model.config).items()
            >= {k: v for k, v in parts[name].config.items() if not k.startswith("_") and k != "out_channels"}.items()
        )
        for key, value in parts[name].state_dict().items():
            assert torch.equal(model.state_dict()[key], value.double()), key


def test_a_sharded_folder_is_one_checkpoint(released, tmp_path):
    whole = load_file(released)
    names = sorted(whole)
    for part in range(2):
        save_file({name: whole[name] for name in names[part::2]}, tmp_path / f"{part}.safetensors")
    _, transformer = load_released(tmp_path)
    _, expected = load_released(released)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in transformer.state_dict().items())


def test_every_name_is_known_both_ways():
    for released in OURS:
        name = released.replace("#", "17")
        assert released_layers(our_layers(name)) == [name]
        assert unflat(flat(name)) == name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("img_in.bias"), "transformer.x_embedder.bias is missing"),
        (lambda w: w.pop("img_in.weight"), "lacks transformer.x_embedder.weight"),
        (lambda w: w.update({"guidance_in.in_layer.weight": torch.zeros(2, 2)}), "guidance_in.in_layer.weight"),
        (lambda w: w.update({"txt_in.bias": torch.zeros(5)}), r"context_embedder.bias is \(5,\), expected \(96,\)"),
        (lambda w: w.pop("double_blocks.1.img_mlp.2.weight"), "transformer_blocks.1.ff.net.2.weight is missing"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(released, tmp_path, change, words):
    weights = load_file(released)
    change(weights)
    save_file(weights, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load_released(tmp_path / "bad.safetensors")


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    for name in ("weights.safetensors", "weights.ckpt"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(CheckpointError, match="not a readable safetensors file"):
            load_released(tmp_path / name)


def test_files_that_are_not_there(tmp_path, released):
    with pytest.raises(CheckpointError, match="there is no file"):
        load_released(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"has no \*.safetensors file"):
        load_released(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").write_bytes(released.read_bytes())
    with pytest.raises(CheckpointError, match="several checkpoints, give one file"):
        load_released(tmp_path)


def in_flux_names(vae) -> dict[str, torch.Tensor]:
    """A VAE's weights as the file beside the released checkpoint has them."""
    levels, weights = len(vae.config.block_out_channels), {}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for name, value in vae.state_dict().items():
        name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
        name = re.sub(r"(up\.\d)\.resnets", r"\1.block", name).replace("upsamplers.0", "upsample")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        for ours, theirs in attention.items():
            if f"mid_block.attentions.0.{ours}." in name:
                name = name.replace(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{theirs}")
                value = value[:, :, None, None] if value.ndim == 2 else value
        weights[name] = value.contiguous()
    return weights


def test_the_released_vae(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(**released_vae_config((32, 64, 64), 2, 8)).eval()
    save_file(in_flux_names(vae), tmp_path / "vae.safetensors")
    read = load_released_vae(tmp_path / "vae.safetensors")
    assert (read.config.scaling_factor, read.config.shift_factor) == (0.3611, 0.1159)
    assert read.state_dict().keys() == vae.state_dict().keys()
    assert all(torch.equal(value, vae.state_dict()[name]) for name, value in read.state_dict().items())


def test_a_file_that_is_no_vae(tmp_path, released):
    with pytest.raises(CheckpointError, match="is no FLUX VAE"):
        load_released_vae(released)
    vae = AutoencoderKL(**released_vae_config((32, 64), 1, 4))
    weights = in_flux_names(vae)
    del weights["decoder.mid.attn_1.q.weight"]
    save_file(weights, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"attentions\.0\.to_q\.weight is missing"):
        load_released_vae(tmp_path / "vae.safetensors")


def released_lora(transformer, rank: int = 3, alpha: float = 1.5) -> dict[str, torch.Tensor]:
    """An adapter on every matrix of the released names, drawn at random."""
    torch.manual_seed(1)
    weights = {}
    layers = {name.removesuffix(".weight") for name, value in transformer.state_dict().items() if value.ndim == 2}
    for name in released_layers(f"transformer.{layer}" for layer in layers):
        parts = [transformer.get_submodule(layer.removeprefix("transformer.")) for layer in our_layers(name)]
        rows, columns = sum(part.out_features for part in parts), parts[0].in_features
        weights[f"{flat(name)}.lora_down.weight"] = torch.randn(rank, columns) * 0.2
        weights[f"{flat(name)}.lora_up.weight"] = torch.randn(rows, rank) * 0.2
        weights[f"{flat(name)}.alpha"] = torch.tensor(alpha)
    return weights


def merged(parts: dict, lora: dict[str, torch.Tensor], tmp_path) -> EditPipeline:
    """What the reference does with a LoRA: down times up times alpha over rank is added to the released matrix."""
    save_released(tmp_path / "base.safetensors", parts["connector"], parts["transformer"])
    weights = load_file(tmp_path / "base.safetensors")
    for key in [name for name in lora if name.endswith("lora_down.weight")]:
        name = key.partition(".")[0]
        down, up, alpha = (lora[f"{name}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
        weights[f"{unflat(name)}.weight"] += up @ down * (alpha / len(down))
    save_file(weights, tmp_path / "base.safetensors")
    connector, transformer = load_released(tmp_path / "base.safetensors", axes=(4, 6, 6), connector_heads=2)
    pipeline = make_pipeline()
    pipeline.register_modules(connector=connector, transformer=transformer)
    return pipeline


def result(pipeline) -> torch.Tensor:
    return pipeline(noise(32, 32), "make it red", generator=draws(0), output_type="pt").images[0]


def test_a_released_lora_does_what_the_reference_does(tmp_path):
    pipeline = make_pipeline()
    plain = result(pipeline)
    lora = released_lora(pipeline.transformer)
    (tmp_path / "lora").mkdir()
    save_file(lora, tmp_path / "lora" / "step1x_lora.safetensors")
    pipeline.load_lora_weights(tmp_path / "lora" / "step1x_lora.safetensors", adapter_name="style")
    adapted, expected = result(pipeline), result(merged(make_parts(), lora, tmp_path))
    assert (plain - expected).abs().max() > 1e-2
    torch.testing.assert_close(adapted, expected, atol=1e-4, rtol=0)


def test_a_lora_in_the_released_layout_goes_there_and_back():
    lora = released_lora(make_parts()["transformer"])
    ours = lora_to_ours(lora)
    again = lora_to_ours(lora_to_released(ours))
    assert ours.keys() == again.keys()
    for name in {key.rpartition(".lora_")[0] for key in ours}:
        one, other = (state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"] for state in (ours, again))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_lora_on_a_part_of_a_stacked_matrix():
    ours = {
        "transformer.single_transformer_blocks.1.proj_mlp.lora_A.weight": torch.randn(2, 8),
        "transformer.single_transformer_blocks.1.proj_mlp.lora_B.weight": torch.randn(32, 2),
        "transformer.transformer_blocks.0.attn.to_v.lora_A.weight": torch.randn(3, 8),
        "transformer.transformer_blocks.0.attn.to_v.lora_B.weight": torch.randn(8, 3),
    }
    again = lora_to_ours(lora_to_released(ours))
    for layer, rows in (("single_transformer_blocks.1.attn.to_q", 8), ("transformer_blocks.0.attn.to_k", 8)):
        assert not again[f"transformer.{layer}.lora_B.weight"].any()
        assert len(again[f"transformer.{layer}.lora_B.weight"]) == rows
    for name in ("single_transformer_blocks.1.proj_mlp", "transformer_blocks.0.attn.to_v"):
        one, other = (
            s[f"transformer.{name}.lora_B.weight"] @ s[f"transformer.{name}.lora_A.weight"] for s in (ours, again)
        )
        torch.testing.assert_close(one, other)


def test_loras_of_other_models_are_refused():
    with pytest.raises(CheckpointError, match="lora_te1_text_model"):
        lora_to_ours({"lora_te1_text_model.lora_down.weight": torch.zeros(1, 1)})
    with pytest.raises(CheckpointError, match="holds half of 'lora_unet_img_in'"):
        lora_to_ours({"lora_unet_img_in.lora_down.weight": torch.zeros(1, 1)})
    with pytest.raises(CheckpointError, match="no place in the released layout"):
        lora_to_released({"vision_language_model.x.lora_A.weight": torch.zeros(1, 1)})
    with pytest.raises(CheckpointError, match="no weight of the LoRA belongs to"):
        make_pipeline().load_lora_weights({"unet.down.lora_A.weight": torch.zeros(1, 1)})
    with pytest.raises(CheckpointError, match="there is no LoRA to read"):
        make_pipeline().load_lora_weights("no-such-folder", local_files_only=True)
