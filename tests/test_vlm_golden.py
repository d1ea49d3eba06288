"""The released model's own engine, vLLM, said these things about the tiny checkpoint; so must we."""

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm import Step3VLImageProcessor, Step3VLProcessor
from vlm.views import plan_views

# An id no vocabulary has: vLLM ran with ignore_eos.
NEVER = 10**6


@pytest.fixture(scope="module")
def reference(shared):
    return shared / "reference" / "step3_vl"


@pytest.fixture(scope="module")
def cases(reference):
    return json.loads((reference / "vllm_greedy.json").read_text())["cases"]


@pytest.fixture(scope="module", params=["released", "own", "written back"])
def tiny(request, reference, tmp_path_factory):
    """The tiny checkpoint as it came, after a save in our layout, and after that in the released one again."""
    source = reference / "tiny_checkpoint"
    for layout in {"released": [], "own": ["own"], "written back": ["own", "released"]}[request.param]:
        model = AutoModelForImageTextToText.from_pretrained(source)
        processor = AutoProcessor.from_pretrained(source)
        source = tmp_path_factory.mktemp(layout)
        model.save_pretrained(source, layout=layout)
        processor.save_pretrained(source)
    return AutoModelForImageTextToText.from_pretrained(source), AutoProcessor.from_pretrained(source)


def conversation_of(case, reference):
    content = [{"type": "image", "image": reference / name} for name in case["images"]]
    return [{"role": "user", "content": [*content, {"type": "text", "text": case["text"]}]}]


def generate(model, processor, conversations):
    """(new tokens, their log-probabilities), both (rows, 24)."""
    inputs = processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    output = model.generate(
        **inputs,
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=NEVER,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = output.sequences[:, inputs["input_ids"].shape[1] :]
    logits = torch.stack(output.logits, dim=1)
    return inputs, new, torch.log_softmax(logits, -1).gather(-1, new[..., None])[..., 0]


@pytest.mark.parametrize("index", range(5))
def test_each_prompt_alone_gives_the_tokens_of_vllm(tiny, cases, reference, index):
    model, processor = tiny
    case = cases[index]
    inputs, new, logprobs = generate(model, processor, conversation_of(case, reference))
    assert inputs["input_ids"][0].tolist() == case["prompt_token_ids"]
    assert new[0].tolist() == case["greedy_token_ids"]
    assert torch.allclose(logprobs[0], torch.tensor(case["greedy_logprobs"]), rtol=0, atol=1e-3)


def test_one_padded_batch_gives_the_tokens_of_vllm(tiny, cases, reference):
    model, processor = tiny
    inputs, new, logprobs = generate(model, processor, [conversation_of(case, reference) for case in cases])
    assert inputs["attention_mask"].sum(1).tolist() == [len(case["prompt_token_ids"]) for case in cases]
    assert new.tolist() == [case["greedy_token_ids"] for case in cases]
    expected = torch.tensor([case["greedy_logprobs"] for case in cases])
    assert torch.allclose(logprobs, expected, rtol=0, atol=1e-3)


def test_the_patch_plan_is_that_of_vllm(reference):
    processor = Step3VLImageProcessor()
    rows = json.loads((reference / "patch_plan.json").read_text())["rows"]
    assert len(rows) == 30
    for row in rows:
        flags = plan_views(row["width"], row["height"], 728, 504).newlines
        found = {"patches": len(flags), "newlines": [int(flag) for flag in flags]}
        found["image_tokens"] = processor.image_tokens(flags)
        assert found == {key: row[key] for key in found}, (row["width"], row["height"])


def test_a_released_folder_without_picture_settings_takes_them_from_the_config(reference):
    processor = Step3VLProcessor.from_pretrained(reference / "tiny_checkpoint")
    pictures = processor.image_processor
    assert (pictures.image_size, pictures.patch_size, pictures.local_crops) == (112, 7, False)
