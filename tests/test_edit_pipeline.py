"""The pipeline: one edit and many, what is exact about its shortcuts, and what it refuses."""

import json
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from small_editor import CONDITIONING, DROPPED, draws, make_parts, make_pipeline
from small_vlm import inputs_of, make_model, make_processor, noise, user

from edit import EditPipeline
from edit.benchmark import Devices, edit_plainly, measure
from edit.conditioning import Conditioning, ConditioningError, attention_bias, embed, pad
from edit.configuration import mini_editor
from edit.flow import (
    flow_shift,
    noised,
    restore_reference_output,
    set_schedule,
    shifted,
    skip_reference_output,
    velocity,
)
from edit.inputs import EditError
from edit.latents import decode, denormalise, encode, image_ids, normalise, pack, position_ids, target_size, unpack
from edit.thinking import Questions, Verdict, inspect, judge_by, own_model, think_and_edit
from vlm import PictureError


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def edited(pipeline, picture, prompt="make it red", seed=0, **call) -> torch.Tensor:
    return pipeline(picture, prompt, generator=draws(seed), **{"output_type": "pt", **call}).images[0]


def close(one, other, tolerance=1e-4):
    torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


# Sizes, packing, positions


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


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_packing_is_lossless_and_row_by_row(batch, channels, rows, columns):
    latents = torch.arange(batch * channels * rows * columns * 4.0).reshape(batch, channels, rows * 2, columns * 2)
    tokens = pack(latents)
    assert tokens.shape == (batch, rows * columns, channels * 4)
    assert torch.equal(unpack(tokens, rows * 2, columns * 2), latents)
    for number, (_, row, column) in enumerate(position_ids(rows * 2, columns * 2).int().tolist()):
        square = latents[:, :, row * 2 : row * 2 + 2, column * 2 : column * 2 + 2]
        assert torch.equal(tokens[:, number], square.flatten(1))


def test_the_reference_has_the_positions_of_the_noisy_half():
    ids = image_ids(4, 6)
    assert torch.equal(ids[:6], ids[6:])
    later = image_ids(4, 6, reference_index=1)
    assert later[:6, 0].eq(0).all()
    assert later[6:, 0].eq(1).all()
    assert torch.equal(later[:, 1:], ids[:, 1:])


# Latents and the schedule


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


def test_strength_starts_at_the_reference(pipeline):
    """A transformer that predicts the true velocity brings the picture back, wherever sampling starts."""
    picture = noise(16, 16)
    pixels = pipeline.image_processor.preprocess(picture)
    clean = pack(encode(pipeline.vae, pixels))
    expected = decode(pipeline.vae, unpack(clean, 8, 8))
    other = make_pipeline()
    seen = []

    def truth(hidden_states, timestep, **_):
        latents = hidden_states[:, : hidden_states.shape[1] // 2]
        seen.append(float(timestep[0]))
        return (torch.cat([(latents - clean) / timestep[:, None, None]] * 2, 1),)

    other.transformer.forward = truth
    for strength, steps in ((1.0, 4), (0.5, 2)):
        seen.clear()
        made = edited(other, picture, num_inference_steps=4, strength=strength, size_level=16)
        assert len(seen) == steps
        close(made, (expected[0] / 2 + 0.5).clamp(0, 1))


# The shortcuts are exact


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 6))
def test_one_padding_token_stands_for_all(lengths, more):
    embeddings = [torch.randn(length, 8) for length in lengths]
    padded = max(lengths) + more
    hidden, mask = pad(embeddings, padded)
    full, full_mask = pad(embeddings, padded, collapse=False)
    assert hidden.shape[1] == min(max(lengths) + 1, padded)
    assert full.shape[1] == padded
    assert mask.sum(1).tolist() == full_mask.sum(1).tolist() == lengths
    assert attention_bias(full_mask, 5, padded) is None
    bias = attention_bias(mask, 5, padded)
    weights = torch.ones(len(lengths), hidden.shape[1] + 5) if bias is None else bias.exp()[:, 0, 0]
    # Padding weighs what it would if it were all there.
    close(weights[:, : hidden.shape[1]].sum(1), torch.full((len(lengths),), float(padded)))
    assert weights[:, hidden.shape[1] :].eq(1).all()


@torch.no_grad()
def test_the_transformer_cannot_tell_the_shortcuts_from_the_long_way():
    parts = make_parts()
    embeddings = [torch.randn(length, 48) for length in (5, 9)]
    level, ids = torch.tensor([0.3, 0.8]), image_ids(8, 8)
    noisy, reference = torch.randn(2, 2, 16, 16)

    def predicted(collapse: bool) -> torch.Tensor:
        hidden, mask = pad(embeddings, 20, collapse)
        text, pooled = parts["connector"](hidden, level, mask)
        bias = attention_bias(mask, 32, 20)
        return velocity(parts["transformer"], noisy, reference, level, text, pooled, ids, bias)

    expected = predicted(collapse=False)
    close(predicted(collapse=True), expected, 1e-5)
    skip_reference_output(parts["transformer"])
    skip_reference_output(parts["transformer"])
    close(predicted(collapse=True), expected, 1e-5)
    restore_reference_output(parts["transformer"])
    close(predicted(collapse=True), expected, 1e-5)


def test_hidden_padding_is_not_seen():
    hidden, mask = pad([torch.randn(3, 8), torch.randn(5, 8)], 0)
    assert hidden.shape[1] == 5
    bias = attention_bias(mask, 2, 0)
    assert bias[0, 0, 0].tolist() == [0, 0, 0, -math.inf, -math.inf, 0, 0]
    assert not bias[1].any()


def test_the_pipeline_is_the_reference_algorithm(pipeline):
    picture, slowly = noise(32, 32), Devices(**dict.fromkeys(vars(Devices()), False))
    expected = edit_plainly(pipeline, picture, "make it red", 4, 0, slowly)
    # The plain loop edits in the first size level.
    close(edited(pipeline, picture, num_inference_steps=4, size_level=16), expected)
    close(edit_plainly(pipeline, picture, "make it red", 4, 0, Devices()), expected)
    for name in vars(Devices()):
        close(edit_plainly(pipeline, picture, "make it red", 4, 0, Devices().without(name)), expected)


def test_the_benchmark_measures_both(pipeline):
    speed = measure(pipeline, noise(16, 16), steps=4, repeats=1, threshold=1e6)
    assert speed.exact_difference < 1e-4 < speed.cached_loss
    assert speed.computed_steps == 1
    assert speed.devices.keys() == vars(Devices()).keys()
    assert not pipeline.transformer.is_cache_enabled


def test_first_block_cache_with_threshold_zero_changes_nothing(pipeline):
    expected = edited(pipeline, noise(16, 16))
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    try:
        close(edited(pipeline, noise(16, 16)), expected)
        # What was kept of one call does not reach into the next.
        close(edited(pipeline, noise(16, 16)), expected)
    finally:
        pipeline.transformer.disable_cache()


# Embeddings


def test_embeddings_are_the_last_hidden_states_after_the_prefix():
    model, processor = make_model(), make_processor()
    picture = noise(32, 32)
    pairs = [picture, noise(32, 32, 1)], ["make it red", ""]
    long, short = embed(model, processor, *pairs, Conditioning(dropped_tokens=DROPPED))
    inputs = inputs_of(processor, user(picture, "make it red"))
    hidden = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
    close(long, hidden[DROPPED:])
    assert len(long) - len(short) == len("make it red")
    # The turn's head is what was dropped.
    assert processor.tokenizer.decode(inputs["input_ids"][0, :DROPPED]) == "<|im_start|>user\n"

    prefix = "Look: "
    told = embed(model, processor, *pairs, Conditioning(prefix=prefix, dropped_tokens=DROPPED + len(prefix)))
    assert [len(own) for own in told] == [len(long), len(short)]
    assert (told[0] - long).abs().max() > 1e-2


def test_what_the_painter_is_not_told():
    model, processor = make_model(), make_processor()
    told = {}
    for source in ("picture", "instruction", "words"):
        how = Conditioning(dropped_tokens=DROPPED, source=source)
        told[source] = [embed(model, processor, [noise(32, 32, n)], ["make it red"], how)[0] for n in (0, 1)]
    assert (told["picture"][0] - told["picture"][1]).abs().max() > 1e-2
    for blind in ("instruction", "words"):
        assert torch.equal(*told[blind])
    assert told["words"][0].shape == told["instruction"][0].shape
    ids = inputs_of(processor, user("make it red"))["input_ids"][0, DROPPED:]
    assert torch.equal(told["words"][0], model.get_input_embeddings()(ids))


def test_conditioning_is_replaced_from_a_file(tmp_path, pipeline):
    path = tmp_path / "conditioning.json"
    path.write_text(json.dumps({"prefix": "Look: ", "dropped_tokens": 12, "max_tokens": 80, "padded_tokens": 80}))
    other = make_pipeline()
    other.conditioning = Conditioning.from_file(path)
    assert (edited(other, noise(16, 16)) - edited(pipeline, noise(16, 16))).abs().max() > 1e-4
    other.save_pretrained(tmp_path / "saved")
    assert EditPipeline.from_pretrained(tmp_path / "saved").conditioning == Conditioning.from_file(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "not a JSON object"),
        ("{", "not a readable JSON file"),
        ('{"dropped": 1}', "field 'dropped'"),
        ('{"dropped_tokens": -1}', "dropped_tokens is -1"),
        ('{"max_tokens": 9, "padded_tokens": 8}', "pad to at least max_tokens"),
        ('{"source": "eyes"}', "source is 'eyes'"),
    ],
)
def test_a_bad_conditioning_file_is_named(tmp_path, text, words):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ConditioningError, match=words):
        Conditioning.from_file(tmp_path / "bad.json")


def test_instructions_that_do_not_fit(pipeline):
    with pytest.raises(ConditioningError, match="the editor reads at most 80; shorten"):
        edited(pipeline, noise(16, 16), "x" * 100)
    with pytest.raises(ConditioningError, match="the model reads at most 512"):
        edited(pipeline, noise(16, 16), "x" * 600)
    with pytest.raises(ConditioningError, match="dropped_tokens is 500"):
        embed(make_model(), make_processor(), [noise(8, 8)], ["a"], Conditioning(dropped_tokens=500))


def qwen():
    """A random Qwen2.5-VL of two layers a tower, and its processor over the tests' tokenizer of bytes."""
    from small_vlm import make_tokenizer
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = make_tokenizer()
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks}, replace_extra_special_tokens=False)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "'<im_patch>'", "'<|vision_start|><|image_pad|><|vision_end|>'"
    )
    start, end, image, video = tokenizer.convert_tokens_to_ids(marks)
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 48,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    torch.manual_seed(0)
    size = {"patch_size": 4, "size": {"shortest_edge": 256, "longest_edge": 1024}}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**size), tokenizer, Qwen2VLVideoProcessor(**size), chat_template=tokenizer.chat_template
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval(), processor


def test_qwen_reads_through_the_same_path(tmp_path):
    model, processor = qwen()
    pictures, instructions = [noise(32, 32), noise(16, 16)], ["make it red", "no"]
    how = Conditioning(**CONDITIONING)
    together = embed(model, processor, pictures, instructions, how)
    for picture, instruction, own in zip(pictures, instructions, together, strict=True):
        close(embed(model, processor, [picture], [instruction], how)[0], own, 1e-3)
    pipeline = EditPipeline(
        **make_parts(), vision_language_model=model, processor=processor, conditioning=CONDITIONING, size_levels=[16]
    )
    pipeline.set_progress_bar_config(disable=True)
    made = edited(pipeline, pictures[0], num_inference_steps=2)
    pipeline.save_pretrained(tmp_path)
    again = EditPipeline.from_pretrained(tmp_path)
    assert type(again.vision_language_model) is type(model)
    close(edited(again, pictures[0], num_inference_steps=2), made)


# One call, many results


def test_several_pictures_and_seeds_are_one_by_one(pipeline):
    pictures, prompts = [noise(40, 20), noise(32, 32, 1), noise(31, 33, 2)], ["make it red", "no stars", "bigger"]
    together = pipeline(
        pictures, prompts, num_images_per_prompt=2, generator=draws(*range(6)), batch_size=3, output_type="pt"
    ).images
    for number, made in enumerate(together):
        close(made, edited(pipeline, pictures[number // 2], prompts[number // 2], number), 1e-3)


def test_a_generator_makes_it_reproducible(pipeline):
    first, again, other = (edited(pipeline, noise(32, 32), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3
    # One generator draws for all results in turn.
    single = pipeline(
        noise(32, 32), "make it red", num_images_per_prompt=2, generator=draws(3)[0], output_type="pt"
    ).images
    close(single[0], first)
    assert (single[1] - single[0]).abs().max() > 1e-3


def test_the_result_has_the_original_size(pipeline):
    for size in ((50, 30), (7, 90), (16, 16)):
        made = pipeline(noise(*size), "make it red", num_inference_steps=1).images
        assert [image.size for image in made] == [size]
        assert made[0].mode == "RGB"


def test_every_kind_of_output(pipeline):
    picture, kinds = noise(40, 40), {}
    for kind in ("pt", "np", "pil", "latent"):
        kinds[kind] = pipeline(picture, "make it red", generator=draws(0), size_level=16, output_type=kind).images[0]
    close(torch.from_numpy(kinds["np"]), kinds["pt"].permute(1, 2, 0))
    small = Image.fromarray((kinds["np"] * 255).round().astype(np.uint8))
    assert np.array_equal(np.asarray(small.resize((40, 40), Image.Resampling.LANCZOS)), np.asarray(kinds["pil"]))
    assert kinds["latent"].shape == (16, 16)
    assert isinstance(pipeline(picture, "make it red", num_inference_steps=1, return_dict=False), tuple)


def test_pictures_come_in_any_form(pipeline, tmp_path):
    grey = noise(20, 20).convert("LA")
    grey.save(tmp_path / "grey.png")
    close(edited(pipeline, tmp_path / "grey.png"), edited(pipeline, str(tmp_path / "grey.png")))


def test_guidance(pipeline):
    picture = noise(32, 32)
    plain, guided, further = (edited(pipeline, picture, guidance_scale=scale) for scale in (1.0, 3.0, 6.0))
    assert (guided - plain).abs().max() > 1e-3
    assert (further - guided).abs().max() > 1e-3
    # Guided away from the instruction itself, nothing is added to it.
    close(edited(pipeline, picture, negative_prompt="make it red"), plain, 1e-3)


def test_guidance_is_damped_while_there_is_little_but_noise():
    pipeline = make_pipeline(damped_above=0.9, damping=0.5)
    unwanted = torch.zeros(1, 2, 4)
    wanted = torch.tensor([[[8.0, 0, 0, 0], [0.5, 0, 0, 0]]])
    # Only what is longer than 1 is shortened, by its root.
    damped = torch.tensor([[[8.0 / 8**0.5, 0, 0, 0], [0.5, 0, 0, 0]]])
    close(pipeline._guide(wanted, unwanted, 3.0, 0.95), 3 * damped)
    close(pipeline._guide(wanted, unwanted, 3.0, 0.85), 3 * wanted)


def test_ready_made_embeddings(pipeline):
    picture = noise(32, 32)
    own, negative = (pipeline.encode_prompt([picture], [text]) for text in ("make it red", ""))
    made = edited(pipeline, picture, None, prompt_embeds=own, negative_prompt_embeds=negative)
    close(made, edited(pipeline, picture))
    without = EditPipeline(**make_parts(), conditioning=CONDITIONING, size_levels=[16, 32], num_inference_steps=3)
    without.set_progress_bar_config(disable=True)
    close(edited(without, picture, None, prompt_embeds=own, negative_prompt_embeds=negative), made)
    with pytest.raises(EditError, match="no vision-language model"):
        edited(without, picture)


def test_callbacks_see_every_step_and_may_change_it(pipeline):
    seen, previews = [], []

    def look(running, step, timestep, tensors):
        seen.append((step, running.num_timesteps, tensors["latents"].shape))
        previews.extend(running.preview(tensors["denoised"]))

    pipeline(
        [noise(32, 32), noise(64, 32)],
        "make it red",
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=["latents", "denoised"],
    )
    assert [step for step, _, _ in seen] == list(range(6))
    assert {total for _, total, _ in seen} == {6}
    assert {image.size for image in previews} == {(32, 32), (44, 20)}

    def erase(running, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    blank = edited(pipeline, noise(32, 32), callback_on_step_end=erase)
    close(blank, edited(pipeline, noise(32, 32, 1), "no stars", 5, callback_on_step_end=erase))


def test_an_edit_can_be_stopped(pipeline):
    seen = []

    def stop(running, step, timestep, tensors):
        seen.append(step)
        running._interrupt = step == 1

    made = pipeline([noise(32, 32), noise(64, 32)], "make it red", callback_on_step_end=stop).images
    assert seen == [0, 1]
    assert [image.size for image in made] == [(32, 32)]
    assert len(pipeline(noise(32, 32), "make it red").images) == 1


def test_the_judge_keeps_the_best(pipeline):
    pictures, prompts = [noise(32, 32), noise(32, 32, 1)], ["make it red", "no stars"]
    calls = []

    def judge(picture, instruction, candidates):
        calls.append((instruction, len(candidates)))
        return [0.1, 0.9, 0.5] if instruction == "make it red" else [0.7, 0.2, 0.6]

    made = pipeline(pictures, prompts, num_images_per_prompt=3, generator=draws(*range(6)), judge=judge)
    assert calls == [("make it red", 3), ("no stars", 3)]
    assert made.scores == [[0.1, 0.9, 0.5], [0.7, 0.2, 0.6]]
    for image, seed, number in zip(made.images, (1, 3), (0, 1), strict=True):
        alone = pipeline(pictures[number], prompts[number], generator=draws(seed)).images[0]
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(alone, dtype=int)).max() <= 1
    with pytest.raises(EditError, match="gave 1 scores for 2 candidates"):
        pipeline(pictures[0], "make it red", num_images_per_prompt=2, judge=lambda *_: [1.0])


# What is refused


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"prompt": ""}, "the instruction is empty"),
        ({"prompt": None}, "either a prompt or prompt_embeds"),
        ({"prompt": ["a", "b"]}, "there are 2 prompt for 1 pictures"),
        ({"prompt": [3]}, "a prompt is no text"),
        ({"image": []}, "there is no picture"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"strength": 0}, "strength is 0"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"guidance_scale": -1}, "guidance_scale is -1"),
        ({"size_level": 64}, "size_level is 64; this editor has 16, 32"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"generator": draws(1, 2)}, "2 generators for 1 pictures"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "no tensor is called 'noise'"),
        ({"judge": len, "output_type": "pt"}, "a judge looks at pictures"),
    ],
)
def test_arguments_out_of_range_are_named(pipeline, call, words):
    with pytest.raises(EditError, match=words):
        pipeline(**{"image": noise(16, 16), "prompt": "make it red", **call})


def test_bad_pictures_are_named(pipeline, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    for bad, words in (
        (tmp_path / "text.png", "is not a picture"),
        (tmp_path / "no.png", "there is no file"),
        (3, "cannot be a int"),
    ):
        with pytest.raises(PictureError, match=words):
            pipeline([noise(16, 16), bad], "make it red")


# Saving, precision, memory, adapters


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


def test_the_mini_editor_fits_its_budget():
    """28 MB in bfloat16, and its first prediction is nothing."""
    parts = mini_editor(make_model())
    models = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
    assert sum(p.numel() for part in models for p in part.parameters()) * 2 < 28e6
    assert isinstance(parts["vae"], AutoencoderKL)
    text, pooled = parts["connector"](torch.randn(1, 5, 48), torch.tensor([0.5]))
    tokens = torch.randn(1, 64, 64)
    predicted = velocity(parts["transformer"], tokens, tokens, torch.tensor([0.5]), text, pooled, image_ids(16, 16))
    assert not predicted.any()


def test_a_training_step_reaches_every_weight():
    parts = make_parts()
    skip_reference_output(parts["transformer"])
    hidden, mask = pad([torch.randn(5, 48), torch.randn(3, 48)], 9)
    level, clean, drawn = torch.tensor([0.3, 0.8]), torch.randn(2, 16, 16), torch.randn(2, 16, 16)
    text, pooled = parts["connector"](hidden, level, mask)
    bias = attention_bias(mask, 32, 9)
    predicted = velocity(
        parts["transformer"], noised(clean, drawn, level), clean, level, text, pooled, image_ids(8, 8), bias
    )
    (predicted - (drawn - clean)).square().mean().backward()
    for part in ("connector", "transformer"):
        assert [name for name, p in parts[part].named_parameters() if p.grad is None or not p.grad.any()] == []


# Thinking


def scripted(*answers: str):
    """An `Ask` that gives these answers in turn, and the questions it was asked."""
    asked, left = [], list(answers)

    def ask(conversation):
        content = conversation[0]["content"]
        asked.append((sum(part["type"] == "image" for part in content), content[-1]["text"]))
        return left.pop(0)

    return ask, asked


def test_without_thinking_it_is_a_plain_edit(pipeline):
    ask, asked = scripted()
    thought = think_and_edit(pipeline, noise(32, 32), "make it red", seed=3, ask=ask)
    assert not asked
    expected = pipeline(noise(32, 32), "make it red", generator=draws(3)).images[0]
    assert np.array_equal(np.asarray(thought.image), np.asarray(expected))


def test_the_plan_is_told_to_the_painter(pipeline):
    ask, asked = scripted("  the box turns red  ")
    thought = think_and_edit(pipeline, noise(32, 32), "make it red", planning=True, ask=ask)
    assert thought.plan == "the box turns red"
    assert asked == [(1, Questions().plan.format(instruction="make it red"))]
    expected = pipeline(noise(32, 32), "make it red the box turns red", generator=draws(0)).images[0]
    assert np.array_equal(np.asarray(thought.image), np.asarray(expected))


@pytest.mark.parametrize(
    ("answers", "decisions", "seeds", "stands"),
    [
        (["accept, well done"], ["accept"], [(0,)], 0),
        (["Retry: too dark.", "Accept."], ["retry", "accept"], [(0,), (1,)], 1),
        (["roll back"], ["roll back"], [(0,)], None),
        (["retry", "retry", "retry"], ["retry"] * 3, [(0,), (1,), (2,)], None),
        (["I cannot say"], ["accept"], [(0,)], 0),
    ],
)
def test_reflection_accepts_retries_or_rolls_back(pipeline, answers, decisions, seeds, stands):
    ask, asked = scripted(*answers)
    picture = noise(32, 32)
    thought = think_and_edit(pipeline, picture, "make it red", reflections=3, ask=ask)
    assert [attempt.verdict.decision for attempt in thought.attempts] == decisions
    assert [attempt.seeds for attempt in thought.attempts] == seeds
    assert {pictures for pictures, _ in asked} == {2}
    expected = picture if stands is None else thought.attempts[stands].image
    assert np.array_equal(np.asarray(thought.image), np.asarray(expected))


def test_candidates_are_scored_by_the_model(pipeline):
    ask, _ = scripted("2", "I give it 8.5 of 10.", "no idea")
    thought = think_and_edit(pipeline, noise(32, 32), "make it red", seeds=3, seed=5, ask=ask)
    assert thought.attempts[0].scores == [2.0, 8.5, 0.0]
    assert thought.attempts[0].seeds == (5, 6, 7)
    expected = pipeline(noise(32, 32), "make it red", generator=draws(6)).images[0]
    difference = np.asarray(thought.image, dtype=int) - np.asarray(expected, dtype=int)
    assert np.abs(difference).max() <= 1
    with pytest.raises(EditError, match="seeds is 0"):
        think_and_edit(pipeline, noise(32, 32), "make it red", seeds=0)


def test_the_own_model_answers(pipeline):
    ask = own_model(pipeline, max_new_tokens=4)
    assert isinstance(ask(user(noise(32, 32), "what?")), str)
    assert isinstance(inspect(ask, noise(32, 32), noise(32, 32, 1), "make it red"), Verdict)
    scores = judge_by(ask)(noise(32, 32), "make it red", [noise(32, 32)] * 2)
    assert len(scores) == 2 and all(0 <= score <= 10 for score in scores)
