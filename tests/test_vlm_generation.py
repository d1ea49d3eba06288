"""`generate`: its cache, samples, beams, and a model spread over devices."""

import pytest
from small_vlm import inputs_of, make_config, make_model, make_processor, noise, user

from vlm import Step3VLForConditionalGeneration

ROWS = [user(noise(32, 32), "what?"), user("no picture"), user(noise(40, 30, 1), "and", noise(90, 30, 2), "this?")]
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 10**6, "pad_token_id": 0}


@pytest.fixture(scope="module", params=["qwen3", "step3p5"])
def parts(request):
    config = make_config(request.param)
    return make_model(config), make_processor(config, crop_size=16)


def new_tokens(model, inputs, **kwargs):
    return model.generate(**inputs, **{**GREEDY, **kwargs})[:, inputs["input_ids"].shape[1] :]


@pytest.fixture
def alone(parts):
    """What each row says by itself."""
    model, processor = parts
    return [new_tokens(model, inputs_of(processor, row))[0].tolist() for row in ROWS]


def test_rows_say_in_a_batch_what_they_say_alone(parts, alone):
    model, processor = parts
    assert len({tuple(row) for row in alone}) == 3
    assert new_tokens(model, inputs_of(processor, ROWS)).tolist() == alone


@pytest.mark.parametrize("how", [{"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 16}])
def test_the_cache_is_only_a_matter_of_speed(parts, alone, how):
    model, processor = parts
    assert new_tokens(model, inputs_of(processor, ROWS[2]), **how)[0].tolist() == alone[2]


def test_every_sample_of_a_row_sees_that_rows_pictures(parts, alone):
    model, processor = parts
    # At a temperature this low each sample is the greedy answer, so a picture gone astray shows.
    tokens = new_tokens(model, inputs_of(processor, ROWS), do_sample=True, temperature=1e-4, num_return_sequences=3)
    assert tokens.tolist() == [row for row in alone for _ in range(3)]


def test_beams_see_the_pictures_too(parts):
    model, processor = parts
    together = new_tokens(model, inputs_of(processor, ROWS), num_beams=2)
    for row, conversation in enumerate(ROWS):
        assert together[row].tolist() == new_tokens(model, inputs_of(processor, conversation), num_beams=2)[0].tolist()


def test_pictures_are_encoded_once(parts, monkeypatch):
    model, processor = parts
    views = []
    encoder = model.model.vision_model
    original = encoder.forward
    monkeypatch.setattr(
        encoder, "forward", lambda pixels, **kwargs: views.append(len(pixels)) or original(pixels, **kwargs)
    )
    inputs = inputs_of(processor, ROWS)
    new_tokens(model, inputs, do_sample=True, num_return_sequences=4)
    assert sum(views) == 3 + len(inputs["pixel_values_local"])


def test_it_stops_where_the_text_config_says(parts):
    model, processor = parts
    inputs = inputs_of(processor, ROWS[0])
    first = int(new_tokens(model, inputs)[0, 0])
    assert model.generation_config.eos_token_id == 2
    assert new_tokens(model, inputs, eos_token_id=first).shape[1] == 1


def test_a_model_spread_over_devices(tmp_path, parts, alone):
    model, processor = parts
    model.save_pretrained(tmp_path / "model")
    inputs = inputs_of(processor, ROWS[2])
    whole = Step3VLForConditionalGeneration.from_pretrained(tmp_path / "model", device_map="cpu")
    assert new_tokens(whole, inputs)[0].tolist() == alone[2]
    # Half of it on the disk, as where the memory is short: no layer may be cut in two.
    size = sum(parameter.nbytes for parameter in model.parameters())
    split = Step3VLForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": size // 2}, offload_folder=tmp_path / "disk"
    )
    assert {"cpu", "disk"} <= {str(device) for device in split.hf_device_map.values()}
    assert not any(".layers." in name and name.split(".layers.")[1].count(".") for name in split.hf_device_map)
    assert new_tokens(split, inputs)[0].tolist() == alone[2]
