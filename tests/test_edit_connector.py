"""The connector: golden numbers of the released one, and what its mask promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_editor import make_parts

from edit import EditConnector
from edit.checkpoints import load_released
from edit.configuration import build


@pytest.fixture(scope="module")
def golden(shared):
    return load_file(shared / "reference" / "step1x_edit" / "step1x_tiny_io.safetensors")


@torch.no_grad()
def test_golden(shared, golden):
    connector, _ = load_released(shared / "reference" / "step1x_edit" / "step1x_tiny_weights.safetensors")
    assert isinstance(connector, EditConnector)
    text, pooled = connector(golden["llm_embedding"], golden["timesteps"], golden["mask"])
    torch.testing.assert_close(text, golden["connector_txt"], atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, golden["connector_vec"], atol=1e-5, rtol=0)
    # Were the mask ignored, the second row, which has padding, would come out otherwise.
    unmasked, _ = connector(golden["llm_embedding"], golden["timesteps"])
    assert (unmasked[1] - golden["connector_txt"][1]).abs().max() > 1e-2


CONNECTOR = make_parts()["connector"]


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(0, 6), st.floats(0, 1))
@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing(tokens, padding, level):
    hidden = torch.randn(1, tokens, 48, generator=torch.Generator().manual_seed(tokens))
    level = torch.tensor([level])
    text, pooled = CONNECTOR(hidden, level)
    junk = torch.cat([hidden, torch.full((1, padding, 48), 3.0)], 1)
    mask = torch.tensor([[1] * tokens + [0] * padding])
    padded, padded_pooled = CONNECTOR(junk, level, mask)
    torch.testing.assert_close(padded[:, :tokens], text, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(padded_pooled, pooled, atol=1e-5, rtol=1e-4)
    if padding:
        assert (padded[0, tokens:] - padded[0, -1]).abs().max() < 1e-5


@torch.no_grad()
def test_the_noise_level_moves_the_text_and_not_the_pooled_vector():
    connector = make_parts()["connector"]
    hidden = torch.randn(1, 5, 48)
    (early, pooled), (late, same) = (connector(hidden, torch.tensor([level])) for level in (0.1, 0.9))
    assert (early - late).abs().max() > 1e-2
    assert torch.equal(pooled, same)


@torch.no_grad()
def test_what_is_yes_or_no_is_said_clearly(tmp_path):
    options = {name: value for name, value in make_parts()["connector"].config.items() if not name.startswith("_")}
    connector = EditConnector(**options | {"sharpened": ((0, 3), (5, 6))})
    hidden, level = torch.randn(2, 5, 48), torch.tensor([0.2, 0.7])
    (text, pooled), (raw, same) = connector(hidden, level), connector.refine(hidden, level)
    assert torch.equal(pooled, same) and torch.equal(text[..., 3:5], raw[..., 3:5])
    assert torch.equal(text[..., 6:], raw[..., 6:])
    sharp = connector.sharpen(torch.tensor([0.2, 0.8, 0.5, 0.2, 0.2, 1.0] + [0.2] * (raw.shape[-1] - 6)))
    assert sharp[0] < 0.02 and sharp[1] > 0.98 and sharp[2] == 0.5 and sharp[5] > 0.999 and (sharp[6:] == 0.2).all()
    connector.save_pretrained(tmp_path)
    torch.testing.assert_close(EditConnector.from_pretrained(tmp_path)(hidden, level)[0], text)
    with pytest.raises(ValueError, match=r"channels 3 to 999; the text stream has"):
        EditConnector(**options | {"sharpened": ((3, 999),)})


def test_saved_and_loaded(tmp_path):
    connector = make_parts()["connector"]
    connector.save_pretrained(tmp_path)
    again = EditConnector.from_pretrained(tmp_path)
    assert again.config.in_channels == 48
    for name, value in connector.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_every_weight_learns():
    connector = make_parts()["connector"].train()
    text, pooled = connector(torch.randn(2, 5, 48), torch.tensor([0.2, 0.7]), torch.ones(2, 5))
    (text.square().sum() + pooled.square().sum()).backward()
    assert [name for name, p in connector.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_full_size_without_memory():
    with torch.device("meta"):
        parts = build("step1x-edit")
    assert parts["connector"].num_parameters() == 536_621_825
    assert parts["transformer"].num_parameters() == 11_891_178_560
    assert next(parts["transformer"].parameters()).is_meta
