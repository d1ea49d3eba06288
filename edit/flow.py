"""Flow matching: the schedule, the path from noise to picture, and the transformer's prediction along it.

A noise level t runs from 0, a picture, to 1, noise. On the straight path x_t = (1 - t) x_0 + t noise the velocity
noise - x_0 is constant; the transformer is trained to predict it, and sampling follows it from 1 to 0.
"""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb

# The velocity of an unchanged picture is divided by the noise level, and by no less than this.
LEAST_LEVEL = 0.05

_LAST_BLOCK = "edit_last_block"


def flow_shift(scheduler: FlowMatchEulerDiscreteScheduler, image_tokens: int) -> float:
    """mu, linear in the number of noisy tokens: 0.5 at 256 and 1.15 at 4096 in Step1X-Edit, and on beyond both.

    A level t becomes e^mu / (e^mu + 1/t - 1): the more tokens, the longer the schedule stays noisy.
    """
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (image_tokens - config.base_image_seq_len)


def set_schedule(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, image_tokens: int, strength: float = 1.0, device=None
) -> torch.Tensor:
    """Prepares `scheduler` and returns its timesteps: levels 1, 1 - 1/steps, … 1/steps, shifted, times 1000.

    With a strength below 1 the first ones are left out, so that sampling starts from a reference noised to that level.
    """
    levels = torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()
    scheduler.set_timesteps(sigmas=levels, mu=flow_shift(scheduler, image_tokens), device=device)
    begin = min(steps - round(steps * strength), steps - 1)
    scheduler.set_begin_index(begin)
    return scheduler.timesteps[begin:]


def shifted(levels: torch.Tensor, mu: float) -> torch.Tensor:
    """The same shift for the levels of training."""
    return torch.e**mu * levels / (torch.e**mu * levels + 1 - levels)


def noised(latents: torch.Tensor, noise: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """x_t; `level` is (batch,)."""
    level = level.reshape(-1, *[1] * (latents.ndim - 1)).to(latents)
    return (1 - level) * latents + level * noise


def velocity(
    transformer: FluxTransformer2DModel,
    latents: torch.Tensor,
    reference: torch.Tensor,
    level: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    pooled_projections: torch.Tensor,
    img_ids: torch.Tensor,
    txt_ids: torch.Tensor,
    attention_bias: torch.Tensor | None = None,
    reference_skip: bool = False,
    reference_channels: bool = False,
) -> torch.Tensor:
    """The predicted velocity of the noisy tokens, in training and in sampling.

    Args:
        transformer: the model, or a wrapper around it that calls it.
        latents, reference: (batch, tokens, channels), packed; the noisy ones and the picture's own.
        level: (batch,), the noise level.
        encoder_hidden_states, pooled_projections: from the connector at that level.
        img_ids: (2 * tokens, 3), see `latents.image_ids`.
        txt_ids: (text tokens, 3), see `latents.text_ids`.
        attention_bias: see `conditioning.attention_bias`.
        reference_skip: the transformer predicts what is to be added to the velocity of an unchanged picture,
            (x_t - reference) / t; a skip connection as in EDM (arXiv 2206.00364, section 5). What stays as it is then
            costs no learning, which a painter of hours cannot afford; Step1X-Edit has none.
        reference_channels: every noisy token comes with the reference's of its place in further channels, as in
            InstructPix2Pix (arXiv 2211.09800, section 3.2), and those of the reference with their own: what it looks
            like where it paints is then found without attention. The reference stands on the sequence axis too.

    Returns:
        (batch, tokens, channels).
    """
    tokens = torch.cat([latents, reference], 1)
    if reference_channels:
        tokens = torch.cat([tokens, reference.repeat(1, 2, 1)], 2)
    output = transformer(
        hidden_states=tokens,
        encoder_hidden_states=encoder_hidden_states,
        pooled_projections=pooled_projections,
        timestep=level,
        img_ids=img_ids,
        txt_ids=txt_ids,
        joint_attention_kwargs=None if attention_bias is None else {"attention_mask": attention_bias},
        return_dict=False,
    )[0]
    noisy = output[:, : latents.shape[1]]
    if not reference_skip:
        return noisy
    return noisy + (latents - reference) / level.clamp(min=LEAST_LEVEL).reshape(-1, 1, 1).to(latents)


def skip_reference_output(transformer: FluxTransformer2DModel) -> None:
    """Leaves out what the last block would compute for text and reference: only the noisy half of its output is used.

    Everyone attends as before; the values of the noisy half do not change. Works under LoRA, offloading, compilation
    and diffusers' caches, in training too. Idempotent; needs single blocks, which every Flux transformer has.
    """
    registry = HookRegistry.check_if_exists_or_initialize(transformer.single_transformer_blocks[-1])
    if registry.get_hook(_LAST_BLOCK) is None:
        registry.register_hook(_NoisyHalf(), _LAST_BLOCK)


def restore_reference_output(transformer: FluxTransformer2DModel) -> None:
    """Undoes `skip_reference_output`, for a caller who wants the reference's prediction too."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer.single_transformer_blocks[-1])
    registry.remove_hook(_LAST_BLOCK, recurse=False)


class _NoisyHalf(ModelHook):
    """A single block whose queries, MLP and output are those of the first half of the image tokens."""

    def new_forward(
        self, module, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None, joint_attention_kwargs=None
    ):
        text, half = encoder_hidden_states.shape[1], hidden_states.shape[1] // 2
        noisy = slice(text, text + half)
        attn = module.attn
        everyone, gate = module.norm(torch.cat([encoder_hidden_states, hidden_states], 1), emb=temb)
        cos, sin = image_rotary_emb

        query = attn.norm_q(attn.to_q(everyone[:, noisy]).unflatten(-1, (-1, attn.head_dim)))
        key = attn.norm_k(attn.to_k(everyone).unflatten(-1, (-1, attn.head_dim)))
        value = attn.to_v(everyone).unflatten(-1, (-1, attn.head_dim))
        attended = dispatch_attention_fn(
            apply_rotary_emb(query, (cos[noisy], sin[noisy]), sequence_dim=1),
            apply_rotary_emb(key, image_rotary_emb, sequence_dim=1),
            value,
            attn_mask=(joint_attention_kwargs or {}).get("attention_mask"),
            backend=attn.processor._attention_backend,
            parallel_config=attn.processor._parallel_config,
        )
        mlp = module.act_mlp(module.proj_mlp(everyone[:, noisy]))
        update = module.proj_out(torch.cat([attended.flatten(2, 3).to(mlp.dtype), mlp], 2))
        result = hidden_states[:, :half] + gate.unsqueeze(1) * update
        # As long as before, for what comes after counts tokens; nobody reads the second half.
        return encoder_hidden_states, torch.cat([result, hidden_states[:, half:]], 1)
