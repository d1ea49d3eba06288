"""An editor of a few thousand weights over `small_vlm`, made on the fly: what the tests of `edit/` share."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from small_vlm import make_config, make_model, make_processor

from edit import EditConnector, EditPipeline

# `<|im_start|>user` and the line's end, a token a byte.
DROPPED = 6
CONDITIONING = {"prefix": "", "dropped_tokens": DROPPED, "max_tokens": 80, "padded_tokens": 80, "source": "picture",
                "view_side": 2}  # fmt: skip


def make_parts(seed: int = 0, packing: int = 2, reference_channels: bool = False) -> dict:
    """Connector, transformer, VAE and scheduler, every weight away from its initial value."""
    channels = 4 * packing**2
    torch.manual_seed(seed)
    parts = {
        "connector": EditConnector(48, 2, 16, 2, 2.0, 24),
        "transformer": FluxTransformer2DModel(
            in_channels=channels * (1 + reference_channels),
            out_channels=channels,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=24,
            axes_dims_rope=(4, 6, 6),
        ),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
            scaling_factor=0.5,
            shift_factor=0.1,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }
    with torch.no_grad():
        for part in ("connector", "transformer"):
            for parameter in parts[part].parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return {name: part.eval() if name != "scheduler" else part for name, part in parts.items()}


def make_pipeline(seed: int = 0, context: int = 512, **options) -> EditPipeline:
    """Edits in 16 or 32 squared pixels; a latent is 2 pixels wide, a token 4. The model reads `context` tokens."""
    layout = {name: options[name] for name in ("packing", "reference_channels") if name in options}
    options = {"conditioning": CONDITIONING, "size_levels": [16, 32], "num_inference_steps": 3} | options
    model = make_model(make_config(text={"max_position_embeddings": context}))
    pipeline = EditPipeline(
        **make_parts(seed, **layout), vision_language_model=model, processor=make_processor(), **options
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draws(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def edited(pipeline: EditPipeline, picture, prompt: str | None = "make it red", seed: int = 0, **call) -> torch.Tensor:
    """(3, height, width) in 0 to 1, in the size the picture is edited in."""
    return pipeline(picture, prompt, generator=draws(seed), **{"output_type": "pt", **call}).images[0]


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=0)
