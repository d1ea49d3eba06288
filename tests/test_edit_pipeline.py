"""The pipeline: one edit and many, what is exact about its shortcuts, and what it refuses."""

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from PIL import Image
from small_editor import CONDITIONING, close, draws, edited, make_parts, make_pipeline
from small_vlm import noise

from edit import EditPipeline
from edit.benchmark import Devices, edit_plainly, measure
from edit.inputs import EditError
from edit.latents import decode, encode, pack, unpack
from vlm import PictureError


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


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


def test_a_painter_of_changes_that_sees_none_leaves_the_picture(tmp_path):
    pipeline, picture = make_pipeline(reference_skip=True), noise(16, 16)
    clean = encode(pipeline.vae, pipeline.image_processor.preprocess(picture))
    other = edited(pipeline, picture, num_inference_steps=4, size_level=16, output_type="latent")
    assert (other - pack(clean)[0]).abs().max() > 0.1
    for parameter in pipeline.transformer.proj_out.parameters():
        parameter.data.zero_()
    pipeline.save_pretrained(tmp_path)
    again = EditPipeline.from_pretrained(tmp_path)
    for guidance in (1.0, 4.0):
        call = {"num_inference_steps": 4, "guidance_scale": guidance, "size_level": 16, "output_type": "latent"}
        close(edited(again, picture, **call), pack(clean)[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reference_skip": True},
        {"packing": 4, "reference_channels": True, "conditioning": CONDITIONING | {"only_places": True}},
    ],
)
def test_the_pipeline_is_the_reference_algorithm(options):
    pipeline = make_pipeline(**options)
    picture, slowly = noise(32, 32), Devices(**dict.fromkeys(vars(Devices()), False))
    expected = edit_plainly(pipeline, picture, "make it red", 4, 0, slowly)
    # The plain loop edits in the first size level.
    close(edited(pipeline, picture, num_inference_steps=4, size_level=16), expected)
    close(edit_plainly(pipeline, picture, "make it red", 4, 0, Devices()), expected)
    for name in vars(Devices()):
        close(edit_plainly(pipeline, picture, "make it red", 4, 0, Devices().without(name)), expected)


def test_larger_tokens_come_back_from_a_folder(tmp_path):
    """Its sides are multiples of the larger token, and the painter sees the reference and the places alone."""
    how = {"packing": 4, "reference_channels": True, "conditioning": CONDITIONING | {"only_places": True}}
    pipeline, picture = make_pipeline(**how, size_levels=[20]), noise(20, 20)
    seen = []
    pipeline.transformer.register_forward_pre_hook(
        lambda _, __, given: seen.append((given["hidden_states"], given["encoder_hidden_states"])), with_kwargs=True
    )
    made = edited(pipeline, picture, num_inference_steps=2, guidance_scale=1.0)
    assert made.shape == (3, 16, 16)  # of tokens of 8 pixels
    tokens, text = seen[0]
    assert tokens.shape == (1, 2 * 4, 128) and text.shape == (1, 4, 32)
    reference = tokens[:, 4:, :64]
    assert torch.equal(tokens[:, :4, 64:], reference) and torch.equal(tokens[:, 4:, 64:], reference)
    assert not torch.equal(tokens[:, :4, :64], reference)
    pipeline.save_pretrained(tmp_path)
    close(edited(EditPipeline.from_pretrained(tmp_path), picture, num_inference_steps=2, guidance_scale=1.0), made)


@pytest.mark.parametrize("options", [{"packing": 4}, {"reference_channels": True}])
def test_a_transformer_for_other_tokens_is_refused(options):
    with pytest.raises(EditError, match="takes 16 channels and gives 16; of 4 latent ones packing"):
        EditPipeline(**make_parts(), **options)


def test_the_benchmark_measures_both(pipeline):
    speed = measure(pipeline, noise(16, 16), steps=4, repeats=1, threshold=1e6)
    assert speed.exact_difference < 1e-4 < speed.cached_loss
    assert speed.computed_steps == 1 and speed.guidance == pipeline.config.guidance_scale
    assert speed.devices.keys() == vars(Devices()).keys()
    assert not pipeline.transformer.is_cache_enabled


def test_the_benchmark_guides_both_where_the_editor_has_one_branch():
    speed = measure(make_pipeline(guidance_scale=1.0), noise(16, 16), steps=2, repeats=1)
    assert speed.guidance == 1.5 and speed.exact_difference < 1e-4


def test_first_block_cache_with_threshold_zero_changes_nothing(pipeline):
    expected = edited(pipeline, noise(16, 16))
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    try:
        close(edited(pipeline, noise(16, 16)), expected)
        # What was kept of one call does not reach into the next.
        close(edited(pipeline, noise(16, 16)), expected)
    finally:
        pipeline.transformer.disable_cache()


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
