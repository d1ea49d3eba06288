"""Sizes, packing, positions, latents and the schedule."""

import math

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.models.embeddings import apply_rotary_emb
from hypothesis import given
from hypothesis import strategies as st
from small_editor import close, make_parts
from small_vlm import make_model

from edit.conditioning import attention_bias, pad
from edit.configuration import mini_editor
from edit.flow import (
    flow_shift,
    noised,
    set_schedule,
    shifted,
    skip_reference_output,
    velocity,
)
from edit.latents import (
    denormalise,
    image_ids,
    normalise,
    pack,
    position_ids,
    target_size,
    text_ids,
    unpack,
)


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([512, 768, 1024, 128]), st.sampled_from([4, 16, 32]))
def test_size_levels_keep_area_and_aspect(width, height, level, multiple):
    made = target_size(width, height, level, multiple)
    assert all(side % multiple == 0 and side > 0 for side in made)
    ideal = [level * math.sqrt(width / height), level * math.sqrt(height / width)]
    for side, exact in zip(made, ideal, strict=True):
        # Rounded down to the multiple, from a side that was rounded up.
        assert max(exact - multiple, 0) < side <= max(exact + 2, multiple)


@pytest.mark.parametrize(
    ("picture", "level", "expected"),
    [
        ((512, 512), 512, (512, 512)),
        ((1920, 1080), 1024, (1360, 768)),
        ((1080, 1920), 1024, (768, 1360)),
        ((300, 200), 512, (624, 416)),
    ],
)
def test_size_levels_by_hand(picture, level, expected):
    assert target_size(*picture, level, 16) == expected


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
def test_packing_is_lossless_and_row_by_row(batch, channels, rows, columns, side):
    height, width = rows * side, columns * side
    latents = torch.arange(1.0 * batch * channels * height * width).reshape(batch, channels, height, width)
    tokens = pack(latents, side)
    assert tokens.shape == (batch, rows * columns, channels * side**2)
    assert torch.equal(unpack(tokens, height, width, side), latents)
    for number, (_, row, column) in enumerate(position_ids(height, width, packing=side).int().tolist()):
        square = latents[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert torch.equal(tokens[:, number], square.flatten(1))


def test_two_latents_a_side_are_a_token_of_the_released_model():
    latents = torch.randn(1, 4, 4, 6)
    assert torch.equal(pack(latents), pack(latents, 2)) and torch.equal(image_ids(4, 6), image_ids(4, 6, packing=2))


def test_the_reference_has_the_positions_of_the_noisy_half():
    ids = image_ids(4, 6)
    assert torch.equal(ids[:6], ids[6:])
    later = image_ids(4, 6, reference_index=1)
    assert later[:6, 0].eq(0).all()
    assert later[6:, 0].eq(1).all()
    assert torch.equal(later[:, 1:], ids[:, 1:])


def test_latents_are_normalised_by_the_config():
    vae = make_parts()["vae"]
    raw = torch.randn(2, 4, 6, 6)
    close(normalise(vae, raw), (raw - 0.1) * 0.5)
    mean, std = [1.0, 2.0, 3.0, 4.0], [0.5, 1.0, 2.0, 4.0]
    vae.register_to_config(latents_mean=mean, latents_std=std, shift_factor=0.0, scaling_factor=1.0)
    close(normalise(vae, raw), (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    close(denormalise(vae, normalise(vae, raw)), raw)


@given(st.integers(1, 8192), st.integers(1, 60))
def test_the_schedule_is_the_stated_formula(tokens, steps):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
    assert flow_shift(scheduler, tokens) == pytest.approx(mu)
    timesteps = set_schedule(scheduler, steps, tokens)
    for number, timestep in enumerate(timesteps.tolist()):
        level = 1 - number / steps
        assert timestep == pytest.approx(1000 * math.exp(mu) / (math.exp(mu) + 1 / level - 1), rel=1e-4)
    assert scheduler.sigmas[-1] == 0
    close(shifted(torch.linspace(1, 1 / steps, steps), mu) * 1000, timesteps, 0.1)


@pytest.mark.parametrize(("strength", "left"), [(1.0, 10), (0.5, 5), (0.21, 2), (0.01, 1)])
def test_strength_leaves_out_the_noisiest_steps(strength, left):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    whole = set_schedule(scheduler, 10, 256)
    part = set_schedule(scheduler, 10, 256, strength)
    assert torch.equal(part, whole[-left:])


def test_the_mini_editor_fits_its_budget():
    """30 MB in bfloat16, and its first prediction is nothing."""
    parts = mini_editor(make_model())
    models = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
    assert sum(p.numel() for part in models for p in part.parameters()) * 2 < 30e6
    assert isinstance(parts["vae"], AutoencoderKL)
    text, pooled = parts["connector"](torch.randn(1, 5, 48), torch.tensor([0.5]))
    tokens = torch.randn(1, 16, 256)
    ids, told = image_ids(16, 16, packing=4), text_ids(5, 16, 16, packing=4)
    level = torch.tensor([0.5])
    predicted = velocity(parts["transformer"], tokens, tokens, level, text, pooled, ids, told, reference_channels=True)
    assert not predicted.any()


@torch.no_grad()
def test_a_fresh_painter_looks_at_its_own_place_in_the_reference():
    transformer = mini_editor(make_model())["transformer"]
    rotary = transformer.pos_embed(image_ids(16, 16, 1))
    tokens = torch.nn.functional.layer_norm(
        torch.randn(4, 128, 256, generator=torch.Generator().manual_seed(0)), (256,)
    )
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        query, key = (
            apply_rotary_emb(norm(layer(tokens).unflatten(-1, (4, 64))), rotary, sequence_dim=1).transpose(1, 2)
            for layer, norm in ((block.attn.to_q, block.attn.norm_q), (block.attn.to_k, block.attn.norm_k))
        )
        shares = (query @ key.transpose(-1, -2) / 8).softmax(-1)[:, :, :64, 64:]  # of the noisy half, for the reference
        own = shares.diagonal(dim1=-2, dim2=-1)
        assert (shares[:, 0].argmax(-1) == torch.arange(64)).float().mean() > 0.8 and own[:, 0].mean() > 0.2
        assert own[:, 1:].mean() < 0.02  # no other head is told where to look


def test_the_view_stands_at_its_places():
    """Two tokens a side over four by eight: each at the middle of what it sees."""
    ids = text_ids(7, 8, 16, view_side=2)
    assert ids[1:5].tolist() == [[0, 0.5, 1.5], [0, 0.5, 5.5], [0, 2.5, 1.5], [0, 2.5, 5.5]]
    assert not ids[[0, 5, 6]].any() and not text_ids(7, 8, 16).any()


@torch.no_grad()
def test_a_fresh_painter_looks_at_the_view_of_its_own_place():
    transformer = mini_editor(make_model())["transformer"]
    text, image = text_ids(20, 16, 16, view_side=4), image_ids(16, 16, 1)
    cos, sin = transformer.pos_embed(torch.cat([text, image]))
    tokens = torch.nn.functional.layer_norm(
        torch.randn(1, 148, 256, generator=torch.Generator().manual_seed(0)), (256,)
    )
    block = transformer.single_transformer_blocks[0].attn
    query, key = (
        apply_rotary_emb(norm(layer(tokens).unflatten(-1, (4, 64))), (cos, sin), sequence_dim=1).transpose(1, 2)
        for layer, norm in ((block.to_q, block.norm_q), (block.to_k, block.norm_k))
    )
    seen = (query @ key.transpose(-1, -2))[0, 0, 20:84, 1:17].argmax(-1)  # of the noisy half, in the view
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    assert (seen == (rows // 2 * 4 + columns // 2).flatten()).float().mean() > 0.8


def test_a_training_step_reaches_every_weight():
    parts = make_parts()
    skip_reference_output(parts["transformer"])
    hidden, mask = pad([torch.randn(5, 48), torch.randn(3, 48)], 9)
    level, clean, drawn = torch.tensor([0.3, 0.8]), torch.randn(2, 16, 16), torch.randn(2, 16, 16)
    text, pooled = parts["connector"](hidden, level, mask)
    bias = attention_bias(mask, 32, 9)
    predicted = velocity(
        parts["transformer"], noised(clean, drawn, level), clean, level, text, pooled, image_ids(8, 8),
        text_ids(text.shape[1], 8, 8, 1), bias,
    )  # fmt: skip
    (predicted - (drawn - clean)).square().mean().backward()
    for part in ("connector", "transformer"):
        assert [name for name, p in parts[part].named_parameters() if p.grad is None or not p.grad.any()] == []
