"""What the painter is told: embeddings of any model, and padding that costs one token."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_editor import CONDITIONING, DROPPED, close, edited, make_parts, make_pipeline
from small_vlm import inputs_of, make_model, make_processor, make_tokenizer, noise, user
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from edit import EditPipeline
from edit.conditioning import Conditioning, ConditioningError, attention_bias, embed, pad
from edit.flow import (
    restore_reference_output,
    skip_reference_output,
    velocity,
)
from edit.latents import image_ids, text_ids


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


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
        told = text_ids(hidden.shape[1], 8, 8, view_side=2)
        return velocity(parts["transformer"], noisy, reference, level, text, pooled, ids, told, bias)

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

    # The turn's head can be counted, and a prefix with it.
    assert torch.equal(embed(model, processor, *pairs, Conditioning())[0], long)
    counted = embed(model, processor, *pairs, Conditioning(prefix="Look: "))
    prefix = "Look: "
    told = embed(model, processor, *pairs, Conditioning(prefix=prefix, dropped_tokens=DROPPED + len(prefix)))
    assert [len(own) for own in told] == [len(long), len(short)]
    assert (told[0] - long).abs().max() > 1e-2
    assert torch.equal(counted[0], told[0])


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
    words = torch.nn.functional.rms_norm(model.get_input_embeddings()(ids), (model.config.text_config.hidden_size,))
    positions = told["words"][0] - words
    assert positions.square().mean(-1).allclose(torch.ones(len(ids)), atol=1e-4), "a word and its place weigh alike"
    assert torch.cdist(positions, positions).add(torch.eye(len(ids)) * 9).min() > 0.1, "no two places are alike"


def test_blank_pictures_keep_the_places_of_what_is_not_seen():
    model, processor = make_model(), make_processor()
    pictures = [noise(32, 32, n) for n in (0, 1)]
    told = {}
    for source in ("picture", "instruction", "words"):
        how = Conditioning(dropped_tokens=DROPPED, source=source, view_side=2, max_tokens=80)
        told[source] = [embed(model, processor, [picture], ["make it red"], how)[0] for picture in pictures]
    assert len({own.shape for owns in told.values() for own in owns}) == 1
    assert not torch.allclose(*told["picture"], atol=1e-2)
    for blind in ("instruction", "words"):
        assert torch.equal(*told[blind])
        places = told[blind][0][1 : 1 + 2**2]
        assert (places[0] - places[1]).abs().max() > 1e-3, "a place can be told from the next"
    padded = Conditioning(dropped_tokens=DROPPED, source="words", view_side=2, max_tokens=80)
    both = embed(model, processor, pictures, ["make it red", "make the star next to it green"], padded)
    assert torch.allclose(both[0], told["words"][0], atol=1e-5), "padding moves no position"


@torch.no_grad()
def test_words_may_stand_behind_the_states():
    model, processor = make_model(), make_processor()
    pairs = [noise(32, 32), noise(32, 32, 1)], ["make it red", "make the star next to it green"]
    said = [{"with_words": True}, {}, {"source": "words"}]
    both, states, words = (
        embed(model, processor, *pairs, Conditioning(dropped_tokens=DROPPED, view_side=2, max_tokens=80, **how))
        for how in said
    )
    for own, state, word in zip(both, states, words, strict=True):
        # The source `words` sees blank pictures, which have the same tokens.
        assert torch.equal(own, torch.cat([state, word], -1))
    width = model.config.text_config.hidden_size
    assert both[0].shape[-1] == Conditioning(with_words=True).width(width) == 2 * Conditioning().width(width)


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
        ('{"planned": "{instruction}"}', "without the plan"),
        ('{"planned": "{plan} {x}"}', "no template .*it may name {instruction} and {plan}"),
        ('{"planned": "{plan}}"}', "no template"),
        ('{"planned": 3}', "planned is 3"),
        ('{"with_words": 1}', "with_words is 1; use true or false"),
        ('{"with_words": true, "source": "words"}', "is the words already"),
        ('{"only_places": true}', "give its view_side, or leave only_places out"),
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
    with pytest.raises(ConditioningError, match="in 4 tokens, view_side 3 means 9; use the root of 4"):
        embed(make_model(), make_processor(), [noise(8, 8)], ["a"], Conditioning(view_side=3))
    with pytest.raises(ConditioningError, match="skipped_layers is 9, the model has"):
        embed(make_model(), make_processor(), [noise(8, 8)], ["a"], Conditioning(skipped_layers=9))


@torch.no_grad()
def test_middle_layers_are_read_without_the_model_s_last_norm():
    model, processor = make_model(), make_processor()
    last, middle = (
        embed(model, processor, [noise(8, 8)], ["a word"], Conditioning(skipped_layers=skipped))[0]
        for skipped in (0, 1)
    )
    inputs = inputs_of(processor, user(noise(8, 8), "a word"))
    states = model(**inputs, output_hidden_states=True).hidden_states[-2][0, -len(middle) :]
    close(middle, states / states.square().mean(-1, keepdim=True).sqrt(), 1e-4)
    assert middle.shape == last.shape and not torch.allclose(middle, last, atol=0.1)


def qwen():
    """A random Qwen2.5-VL of two layers a tower, and its processor over the tests' tokenizer of bytes."""
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
    how = Conditioning(**CONDITIONING).replaced(view_side=0)
    together = embed(model, processor, pictures, instructions, how)
    for picture, instruction, own in zip(pictures, instructions, together, strict=True):
        close(embed(model, processor, [picture], [instruction], how)[0], own, 1e-3)
    pipeline = EditPipeline(
        **make_parts(), vision_language_model=model, processor=processor, conditioning=how.to_dict(), size_levels=[16]
    )
    pipeline.set_progress_bar_config(disable=True)
    made = edited(pipeline, pictures[0], num_inference_steps=2)
    pipeline.save_pretrained(tmp_path)
    again = EditPipeline.from_pretrained(tmp_path)
    assert type(again.vision_language_model) is type(model)
    close(edited(again, pictures[0], num_inference_steps=2), made)
