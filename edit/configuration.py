"""The two scales of the editor: their values, and new components to train from."""

import copy
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import nn
from transformers import PreTrainedModel

from edit.conditioning import Conditioning
from edit.connector import EditConnector

_SCHEDULER = {
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}

PRESETS: dict[str, dict] = {
    # About 14 M parameters beside the shipped model: 128x128 pixels, 16x16 latents, 16 noisy and 16 reference tokens.
    "mini": {
        "connector": {
            "in_channels": 256,
            "num_attention_heads": 4,
            "attention_head_dim": 64,
            # Step1X-Edit has two: its model's states say more, and blocks are cheap where only text passes.
            "num_layers": 4,
            "mlp_ratio": 2.0,
            "pooled_projection_dim": 256,
        },
        # A double block has 2.4 M parameters, a single one 1 M, and both take the same time.
        "transformer": {
            "in_channels": 512,
            "out_channels": 256,
            "num_layers": 2,
            "num_single_layers": 5,
            "attention_head_dim": 64,
            "num_attention_heads": 4,
            "joint_attention_dim": 256,
            "pooled_projection_dim": 256,
            "axes_dims_rope": (8, 28, 28),
        },
        "vae": {
            "block_out_channels": (32, 64, 64, 64),
            "layers_per_block": 1,
            "latent_channels": 16,
            "norm_num_groups": 8,
            "sample_size": 128,
        },
        "pipeline": {
            # Dropped are the shipped tokenizer's `<|im_start|>user` and the line's end; a picture takes 18 tokens, and
            # three steps in Chinese up to 93, for some characters are two or three. What is longer is refused, not cut.
            "conditioning": {
                "prefix": "",
                "dropped_tokens": 3,
                "max_tokens": 192,
                "padded_tokens": 192,
                # Of six. A linear layer reads the colour that is asked for from the end of an instruction 75 times in a
                # hundred, of the last states 59 times; the row of a step from the step's end 78 and 71 times.
                "skipped_layers": 2,
                "planned": "{plan}",
            },
            "size_levels": [128],
            "reference_index": 1,
            "reference_skip": True,
            "reference_channels": True,
            # A token is then as large as a cell of the world and one of the model that sees: a quarter of the tokens,
            # and, with the places alone beside them, twice the pairs in a second of two cores. A GPU can afford 2, as
            # the shipped editor has: see the recipe `mini-live`.
            "packing": 4,
            # On 24 `train` edits a family told by plan, 4 and 2 steps pass alike, as 8 and 16 did for the primer; and a
            # guidance of 1.5 passes half as many as none: the colours burst.
            "num_inference_steps": 4,
            "guidance_scale": 1.0,
        },
        # A shape covers some 256 values: by their signal it shows through noise at levels below about 0.95, and only
        # above must the painter know from the instruction what is to be seen. What was learnt below is of no use in
        # sampling, for there nothing shows through but what the painter itself has put there: one step passes as many
        # edits as four. With Step1X-Edit's shift, below 0.47 for so few tokens, 1 % of the training samples lie above;
        # with 3, 48 %; with this one, 98 %.
        "scheduler": {"base_shift": 5.0, "max_shift": 5.0},
    },
    # Step1X-Edit: 0.54 B and 11.9 B parameters, and the FLUX VAE.
    "step1x-edit": {
        "connector": {},
        "transformer": {},
        "vae": {
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "latent_channels": 16,
            "norm_num_groups": 32,
            "sample_size": 1024,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
        },
        "pipeline": {
            # The prompt the weights were trained with is longer; `Conditioning.from_file` puts it in.
            "conditioning": {
                "prefix": "Describe in detail the picture that this change leads to. Change:",
                "dropped_tokens": None,
                "max_tokens": 640,
                "padded_tokens": 640,
            },
            "size_levels": [512, 768, 1024],
            # Guidance is held back while there is little but noise, as in the released sampler.
            "damped_above": 0.93,
        },
        "scheduler": {},
    },
}

_VAE = {
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}


def build(preset: str, **overrides: dict) -> dict[str, nn.Module | FlowMatchEulerDiscreteScheduler]:
    """New connector, transformer, VAE and scheduler; under `torch.device("meta")` nothing is allocated.

    Args:
        preset: `mini` or `step1x-edit`.
        overrides: by component, the values to replace, like `connector={"in_channels": 512}`.
    """
    if preset not in PRESETS:
        raise ValueError(f"no preset named {preset!r}; there are {', '.join(PRESETS)}.")
    values = copy.deepcopy(PRESETS[preset])
    for component, change in overrides.items():
        values[component] = {**values[component], **change}
    connector, transformer = EditConnector(**values["connector"]), FluxTransformer2DModel(**values["transformer"])
    initialise(connector, transformer)
    return {
        "connector": connector,
        "transformer": transformer,
        "vae": AutoencoderKL(**_vae_config(values["vae"])),
        "scheduler": new_scheduler(**values["scheduler"]),
    }


def new_scheduler(**changes) -> FlowMatchEulerDiscreteScheduler:
    """Step1X-Edit's, the shift of whose levels follows the picture's size, with these values replaced."""
    return FlowMatchEulerDiscreteScheduler(**_SCHEDULER | changes)


def released_vae_config(widths: tuple[int, ...], layers_per_block: int, latent_channels: int) -> dict:
    """Of the FLUX VAE, with these sizes."""
    sizes = {
        "block_out_channels": widths, "layers_per_block": layers_per_block, "latent_channels": latent_channels
    }  # fmt: skip
    return _vae_config({**PRESETS["step1x-edit"]["vae"], **sizes})


def _vae_config(values: dict) -> dict:
    levels = len(values["block_out_channels"])
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels
    }  # fmt: skip
    return {**_VAE, **blocks, **values}


def mini_editor(
    vlm: PreTrainedModel, conditioning: Conditioning | None = None, **overrides: dict
) -> dict[str, nn.Module | FlowMatchEulerDiscreteScheduler]:
    """The mini preset's components for a vision-language model of any width that is asked like this, ready to be
    trained from nothing."""
    width = (conditioning or Conditioning()).width(vlm.config.get_text_config().hidden_size)
    connector = {"in_channels": width, **overrides.pop("connector", {})}
    return build("mini", connector=connector, **overrides)


@torch.no_grad()
def initialise(connector: EditConnector, transformer: FluxTransformer2DModel) -> None:
    """Weights to train from nothing (DiT, arXiv 2212.09748, section 3.2): every block starts as the identity and the
    prediction as zero, so that no block disturbs the others before it has learnt something."""
    for module in (*connector.modules(), *transformer.modules()):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for part in (connector.token_refiner, transformer):
        # Wide weights here would make neighbouring noise levels look like strangers.
        for layer in part.time_text_embed.timestep_embedder.children():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
    for block in transformer.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1_context.linear.weight)
    for block in transformer.single_transformer_blocks:
        nn.init.zeros_(block.norm.linear.weight)
    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        _look_at_own_place(block.attn, transformer.config.axes_dims_rope)
    # The refiner's gates do start open: a constant text stream would tell the first blocks nothing.


def _look_at_own_place(attention: FluxAttention, axes: Sequence[int]) -> None:
    """The first head begins by attending to its own place and those next to it, of the reference too.

    Rotary embeddings make of a constant in queries and keys a peak at no distance. Two frequencies an axis: the highest
    is sharp but comes round again after six tokens, where the second is at its lowest.
    """
    begin = axes[0]
    for axis in axes[1:]:
        for pair in range(begin, begin + min(4, axis), 2):
            for projection in (attention.to_q, attention.to_k):
                projection.bias[pair] = 6.0  # beside a deviation of 1 of what depends on content
            for norm in (attention.norm_q, attention.norm_k):
                norm.weight[pair : pair + 2] = 1.5
        begin += axis
