"""The pipeline saved, in other precisions, in less memory, compiled, and with adapters."""

import accelerate
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from small_editor import close, draws, edited, make_pipeline
from small_vlm import make_model, make_processor, noise

from edit import EditPipeline


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def test_saved_and_loaded_whole(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin")) and list(tmp_path.rglob("*.safetensors"))
    again = EditPipeline.from_pretrained(tmp_path)
    assert torch.equal(edited(again, noise(32, 32)), edited(pipeline, noise(32, 32)))
    assert again.config.size_levels == [16, 32]


def test_saved_beside_its_model(tmp_path):
    pipeline = make_pipeline()
    pipeline.vision_language_model.save_pretrained(tmp_path)
    pipeline.processor.save_pretrained(tmp_path)
    expected = edited(pipeline, noise(32, 32))
    pipeline.to(torch.bfloat16)
    pipeline.save_pretrained(tmp_path / "editor", vision_language="..")
    assert not (tmp_path / "editor" / "vision_language_model").exists()
    assert pipeline.vision_language_model is not None
    again = EditPipeline.from_pretrained(tmp_path / "editor")
    assert again.transformer.dtype == torch.float32
    assert (edited(again, noise(32, 32)) - expected).abs().mean() < 0.1
    given = EditPipeline.from_pretrained(
        tmp_path / "editor", vision_language_model=make_model(), processor=make_processor()
    )
    close(edited(given, noise(32, 32)), edited(again, noise(32, 32)))


def test_half_precision(pipeline):
    half = make_pipeline().to(torch.bfloat16)
    made = edited(half, noise(32, 32))
    assert torch.isfinite(made).all()
    assert (made.float() - edited(pipeline, noise(32, 32))).abs().mean() < 0.1


def test_fp8_storage(pipeline):
    stored = make_pipeline()
    stored.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert stored.transformer.x_embedder.weight.dtype == torch.float8_e4m3fn
    made = edited(stored, noise(32, 32))
    difference = (made - edited(pipeline, noise(32, 32))).abs().mean()
    assert 0 < difference < 0.1


def test_vae_slicing_and_tiling(pipeline):
    pictures = [noise(64, 64), noise(64, 64, 1)]
    calls = {"num_inference_steps": 1, "output_type": "pt"}
    expected = pipeline(pictures, "make it red", generator=draws(0, 1), **calls).images
    pipeline.vae.enable_slicing()
    sliced = pipeline(pictures, "make it red", generator=draws(0, 1), **calls).images
    pipeline.vae.disable_slicing()
    for one, other in zip(sliced, expected, strict=True):
        close(one, other)
    pipeline.vae.enable_tiling()
    pipeline.vae.tile_sample_min_size, pipeline.vae.tile_latent_min_size = 16, 8
    tiled = edited(pipeline, pictures[0], num_inference_steps=1)
    pipeline.vae.disable_tiling()
    assert tiled.shape == expected[0].shape
    assert 0 < (tiled - expected[0]).abs().mean() < 0.2


def test_offloading_is_declared_and_needs_an_accelerator(pipeline):
    assert set(pipeline.model_cpu_offload_seq.split("->")) == {
        name for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)
    }
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="accelerator"):
            make_pipeline().enable_model_cpu_offload()


def test_parts_are_fetched_when_they_are_called(pipeline):
    """With accelerate's hooks around every part, as offloading has them, none is used but through a call."""
    hooked, fetched = make_pipeline(), []
    for name in hooked.model_cpu_offload_seq.split("->"):
        part = getattr(hooked, name)
        accelerate.cpu_offload_with_hook(part, "cpu")
        before = part._hf_hook.pre_forward

        def fetch(module, *args, name=name, before=before, **kwargs):
            fetched.append(name)
            return before(module, *args, **kwargs)

        part._hf_hook.pre_forward = fetch
    close(edited(hooked, noise(32, 32)), edited(pipeline, noise(32, 32)))
    # Embeddings twice, the picture, all noise levels at once, three steps, the result.
    assert fetched == ["vision_language_model"] * 2 + ["vae", "connector"] + ["transformer"] * 3 + ["vae"]


def test_compiled_blocks(pipeline):
    compiled = make_pipeline()
    compiled.transformer.compile_repeated_blocks(backend="eager")
    close(
        edited(compiled, noise(32, 32), num_inference_steps=1), edited(pipeline, noise(32, 32), num_inference_steps=1)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs an accelerator")
def test_offloading(pipeline):
    expected = edited(pipeline, noise(32, 32))
    offloaded = make_pipeline()
    offloaded.enable_model_cpu_offload()
    close(edited(offloaded, noise(32, 32)).cpu(), expected, 1e-2)


def trained_lora(pipeline, part: str, targets: list[str], alpha: int = 8):
    """Adapters away from zero, on one part of the pipeline; their weights and their settings."""
    component = getattr(pipeline, part)
    component.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=targets))
    torch.manual_seed(0)
    for name, parameter in component.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return get_peft_model_state_dict(component), component.peft_config["default"].to_dict()


@pytest.mark.parametrize("layout", ["diffusers", "released"])
def test_lora_saved_loaded_fused_and_unloaded(pipeline, tmp_path, layout):
    trained = make_pipeline()
    layers, settings = trained_lora(trained, "transformer", ["to_q", "to_k", "to_v", "proj_mlp", "proj_out"])
    expected, plain = edited(trained, noise(32, 32)), edited(pipeline, noise(32, 32))
    assert (expected - plain).abs().max() > 1e-2
    EditPipeline.save_lora_weights(
        tmp_path, layers, transformer_lora_adapter_metadata=settings, layout=layout, weight_name="lora.safetensors"
    )
    other = make_pipeline()
    other.load_lora_weights(tmp_path, weight_name="lora.safetensors", adapter_name="red")
    close(edited(other, noise(32, 32)), expected)
    other.set_adapters("red", 0.5)
    assert (edited(other, noise(32, 32)) - expected).abs().max() > 1e-3
    other.set_adapters("red", 1.0)
    other.fuse_lora()
    assert other.num_fused_loras == 1
    close(edited(other, noise(32, 32)), expected)
    other.unfuse_lora()
    other.unload_lora_weights()
    close(edited(other, noise(32, 32)), plain)


def test_lora_on_the_connector(pipeline, tmp_path):
    trained = make_pipeline()
    layers, settings = trained_lora(trained, "connector", ["to_q", "proj_in", "pooled_projection"])
    EditPipeline.save_lora_weights(
        tmp_path, connector_lora_layers=layers, connector_lora_adapter_metadata=settings, layout="released"
    )
    other = make_pipeline()
    other.load_lora_weights(tmp_path)
    close(edited(other, noise(32, 32)), edited(trained, noise(32, 32)))
    assert (edited(other, noise(32, 32)) - edited(pipeline, noise(32, 32))).abs().max() > 1e-4
