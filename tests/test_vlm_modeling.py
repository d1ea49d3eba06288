"""The architecture: sizes, decoders, attention, precision, compilation, memory-saving, adapters."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_vlm import inputs_of, make_config, make_model, make_processor, noise, user
from transformers import modeling_utils

from vlm import Step3VLConfig, Step3VLForConditionalGeneration
from vlm.describing import count_parts

DECODERS = ["qwen3", "llama", "step3p5"]


def batch_of(processor, **kwargs):
    """Rows with one picture, none and two."""
    rows = [user(noise(32, 32), "what?"), user("no picture"), user(noise(40, 30, 1), "and", noise(90, 30, 2), "this?")]
    return inputs_of(processor, rows, **kwargs)


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_the_10b_preset_has_the_released_names_shapes_and_total():
    config = Step3VLConfig.preset("10b")
    with torch.device("meta"):
        model = Step3VLForConditionalGeneration(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    vision, layer = "model.vision_model", "model.language_model.layers.35"
    expected = {
        f"{vision}.embeddings.patch_embedding.weight": (1536, 3, 14, 14),
        f"{vision}.embeddings.position_embedding.weight": (52 * 52, 1536),
        f"{vision}.layers.46.mlp.fc1.weight": (8960, 1536),
        f"{vision}.layers.46.self_attn.q_proj.weight": (1536, 1536),
        f"{vision}.downsampler1.weight": (3072, 1536, 3, 3),
        f"{vision}.downsampler2.weight": (6144, 3072, 3, 3),
        "model.multi_modal_projector.weight": (4096, 6144),
        "model.language_model.embed_tokens.weight": (151936, 4096),
        f"{layer}.self_attn.q_proj.weight": (32 * 128, 4096),
        f"{layer}.self_attn.k_proj.weight": (8 * 128, 4096),
        f"{layer}.mlp.gate_proj.weight": (12288, 4096),
        "lm_head.weight": (151936, 4096),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert "model.multi_modal_projector.bias" not in shapes
    assert not any("layers.47." in name for name in shapes if "vision_model" in name)
    # A block: q, k, v, out with biases; the MLP with biases; two norms; two LayerScales.
    block = 4 * (1536 * 1536 + 1536) + 2 * 1536 * 8960 + 8960 + 1536 + 4 * 1536 + 2 * 1536
    encoder = 47 * block + 1536 * 3 * 14 * 14 + 52 * 52 * 1536 + 2 * 1536
    projector = (1536 * 9 + 1) * 3072 + (3072 * 9 + 1) * 6144 + 6144 * 4096
    # Qwen3-8B without its head: 8,190,735,360 - 151,936 x 4,096.
    decoder, head = 7_568_405_504, 151936 * 4096
    parts = {"encoder": encoder, "projector": projector, "decoder": decoder, "head": head}
    assert count_parts(config) == parts
    assert sum(parts.values()) == sum(parameter.numel() for parameter in model.parameters()) == 10_171_750_144
    assert config.image_tokens() == 169 and config.image_tokens(504) == 81


def test_the_mini_preset_is_small():
    config = Step3VLConfig.preset("mini")
    parts = count_parts(config)
    assert 5e6 < sum(parts.values()) < 12e6
    assert parts["head"] == 0 and config.image_tokens() == 16


@pytest.mark.parametrize("sides", [(32, 4, 4), (35, 5, 4), (28, 7, 1), (60, 4, 16), (128, 8, 16), (40, 4, 9)])
def test_the_tokens_announced_are_the_tokens_made(sides):
    side, patch, tokens = sides
    config = make_config(vision={"image_size": side, "patch_size": patch})
    features = make_model(config).get_image_features(torch.zeros(2, 3, side, side)).pooler_output
    assert config.image_tokens() == tokens
    assert [tuple(feature.shape) for feature in features] == [(tokens, 48)] * 2


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_padded_batch_gives_each_row_what_it_gets_alone(decoder):
    config = make_config(decoder)
    model, processor = make_model(config), make_processor(config, crop_size=16)
    batch = batch_of(processor)
    together = logits_of(model, batch)
    pictures, crops = 0, 0
    for row, own_pictures in enumerate((1, 0, 2)):
        own = {key: batch[key][row : row + 1, batch["attention_mask"][row] == 1] for key in ("input_ids",)}
        if own_pictures:
            counts = batch["num_local_patches"][pictures : pictures + own_pictures]
            own |= {"pixel_values": batch["pixel_values"][pictures : pictures + own_pictures]}
            own |= {
                "num_local_patches": counts,
                "pixel_values_local": batch["pixel_values_local"][crops:][: sum(counts)],
            }
            pictures, crops = pictures + own_pictures, crops + int(sum(counts))
        alone = logits_of(model, own)[0]
        assert torch.allclose(together[row, -len(alone) :], alone, atol=1e-4)


def test_every_picture_and_crop_changes_the_answer_at_its_place():
    model, processor = make_model(), make_processor(crop_size=16)
    batch = batch_of(processor)
    before = logits_of(model, batch)
    for name in ("pixel_values", "pixel_values_local"):
        for index in range(len(batch[name])):
            changed = {**batch, name: batch[name].clone()}
            changed[name][index] += 1
            rows = (logits_of(model, changed) - before).abs().amax((1, 2)) > 1e-3
            picture = index if name == "pixel_values" else _picture_of(batch["num_local_patches"].tolist(), index)
            assert rows.tolist() == ([True, False, False] if picture == 0 else [False, False, True])


def _picture_of(counts, crop):
    return next(picture for picture in range(len(counts)) if crop < sum(counts[: picture + 1]))


@pytest.mark.parametrize("decoder", DECODERS)
def test_eager_and_sdpa_attention_agree(decoder):
    batch = batch_of(make_processor())
    # A config of its own for each: a model and its config choose together.
    eager = make_model(make_config(decoder), attn_implementation="eager")
    sdpa = make_model(make_config(decoder), attn_implementation="sdpa")
    assert eager.model.vision_model.config._attn_implementation == "eager"
    assert eager.model.language_model.config._attn_implementation == "eager"
    assert sdpa.model.vision_model.config._attn_implementation == "sdpa"
    real = batch["attention_mask"] == 1
    assert torch.allclose(logits_of(eager, batch)[real], logits_of(sdpa, batch)[real], atol=1e-4)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_sliding_window_and_a_cache_do_not_change_the_logits(decoder):
    config = make_config(decoder)
    model, processor = make_model(config), make_processor(config)
    ids = inputs_of(processor, user(noise(32, 32), "longer than the window of eight"))
    whole = logits_of(model, ids)
    with torch.no_grad():
        first = model(**{**ids, "input_ids": ids["input_ids"][:, :-6], "attention_mask": None}, use_cache=True)
        cache, steps = first.past_key_values, [first.logits]
        for token in ids["input_ids"][0, -6:]:
            steps.append(model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True).logits)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-4)


def test_bfloat16():
    torch.manual_seed(0)
    model, batch = Step3VLForConditionalGeneration(make_config()).eval(), batch_of(make_processor(crop_size=16))
    expected = logits_of(model, batch)
    logits = logits_of(model.to(torch.bfloat16), batch.to(dtype=torch.bfloat16))
    assert logits.dtype is torch.bfloat16
    likeness = torch.nn.functional.cosine_similarity(logits.float(), expected, -1)
    assert likeness[batch["attention_mask"] == 1].min() > 0.99


def test_the_loss_counts_only_the_labelled_tokens():
    model, batch = make_model(), batch_of(make_processor())
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -5:] = batch["input_ids"][:, -5:]
    output = model(**batch, labels=labels)
    expected = torch.nn.functional.cross_entropy(
        output.logits[:, -6:-1].flatten(0, 1).float(), labels[:, -5:].flatten()
    )
    assert torch.allclose(output.loss, expected, atol=1e-5)


def test_a_mask_keeps_only_the_logits_that_are_asked_for():
    model, batch = make_model(), batch_of(make_processor())
    keep = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    keep[0, -3:] = keep[2, -1] = True
    assert torch.allclose(model(**batch, logits_to_keep=keep).logits, logits_of(model, batch)[keep], atol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_gradient_checkpointing_reaches_both_stacks_and_changes_no_gradient(decoder, monkeypatch):
    config = make_config(decoder)
    model, batch = make_model(config), batch_of(make_processor(config))

    def gradients():
        model.zero_grad()
        model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
        return {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    model.train()
    plain = gradients()
    calls = []
    original = modeling_utils.checkpoint

    def counted(function, *args, **kwargs):
        calls.append(type(function.args[0]).__name__)  # the layer, bound to its forward
        return original(function, *args, **kwargs)

    monkeypatch.setattr(modeling_utils, "checkpoint", counted)
    model.gradient_checkpointing_enable()
    saved = gradients()
    assert sorted(calls)[-2:] == ["Step3p7VisionEncoderLayer"] * 2 and len(calls) == 2 + 3, calls
    assert plain.keys() == saved.keys()
    assert all(torch.allclose(plain[name], saved[name], atol=1e-5) for name in plain)


@pytest.mark.parametrize("crop_size", [504, 16])
def test_compiled_forward_gives_the_same_logits(crop_size):
    config = make_config(vision={"layers": 1}, text={"num_hidden_layers": 1})
    model, batch = make_model(config), batch_of(make_processor(config, crop_size=crop_size))
    # Crops differ in number from picture to picture, which takes a break in the graph; global views alone take none.
    # The graphs are what is tested; generating C++ for them would only take time.
    compiled = torch.compile(model, backend="aot_eager", fullgraph="pixel_values_local" not in batch)
    with torch.no_grad():
        logits = compiled(**batch).logits
    assert torch.allclose(logits, logits_of(model, batch), atol=1e-4)


def test_lora_on_decoder_and_encoder_trains_saves_and_merges(tmp_path):
    model, batch = make_model(), batch_of(make_processor())
    targets = ["q_proj", "v_proj", "o_proj", "out_proj", "fc1", "down_proj"]
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    assert {"vision_model", "language_model"} == {
        name.split(".")[3] for name, p in tuned.named_parameters() if p.requires_grad
    }
    tuned.train()
    tuned(**batch, labels=batch["input_ids"]).loss.backward()
    trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    gradients = [name for name, parameter in tuned.named_parameters() if parameter.grad is not None]
    assert trained == gradients
    assert all(tuned.get_parameter(name).grad.abs().max() > 0 for name in trained)
    tuned.eval()
    expected = logits_of(tuned, batch)
    tuned.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(make_model(), tmp_path).eval()
    assert torch.allclose(logits_of(reloaded, batch), expected, atol=1e-5)
    native = make_model()
    native.load_adapter(tmp_path)
    assert torch.allclose(logits_of(native, batch), expected, atol=1e-5)
    merged = tuned.merge_and_unload()
    assert torch.allclose(logits_of(merged, batch), expected, atol=1e-3)


def test_pictures_that_do_not_fit_the_tokens_are_refused():
    model, batch = make_model(), batch_of(make_processor(crop_size=16))
    with pytest.raises(ValueError, match=r"12 image placeholders .* give 8 features"):
        broken = {**batch_of(make_processor()), "pixel_values": batch["pixel_values"][:2], "num_local_patches": None}
        model(**broken)
    with pytest.raises(ValueError, match=r"num_local_patches \[1\] does not fit 3 pictures"):
        model(**{**batch, "num_local_patches": [1]})
    with pytest.raises(ValueError, match="exactly one"):
        model(**batch, inputs_embeds=torch.zeros(1, 1, 48))
    with pytest.raises(ValueError, match="need input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, 48), pixel_values=batch["pixel_values"])
