"""Loading a model by name, streaming an answer, and splitting it into reasoning and conclusion."""

import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_vlm import inputs_of, make_config, make_model, make_processor, noise, user

from vlm import PictureError, answering
from vlm.answering import ModelError, load, stream_answer
from vlm.reasoning import split_reasoning


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture
def folder(tmp_path, model, processor):
    path = tmp_path / "mini"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def scripted(model, monkeypatch, tokens):
    """The model's next tokens, whatever it would have said."""
    script = iter(tokens)

    def next_logits(model, inputs, cache):
        logits = torch.zeros(model.config.text_config.vocab_size)
        logits[next(script)] = 50.0
        return logits

    monkeypatch.setattr(answering, "_next_logits", next_logits)


def test_load_by_folder_and_by_name(folder, model, monkeypatch, tmp_path):
    monkeypatch.setenv("TRIPTYCH_CHECKPOINTS", str(tmp_path))
    for name in (str(folder), "mini"):
        loaded, processor = load(name)
        assert not loaded.training and loaded.dtype is torch.float32
        assert processor.image_processor.image_size == 32
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_loading_warns_of_nothing(folder):
    """In a process of its own: here the Auto classes have long been told of the model."""
    program = f"from vlm.answering import load; load({str(folder)!r})"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "[transformers]" not in said.stderr, said.stderr


def test_weights_shipped_in_bfloat16_compute_in_float32_on_the_cpu(folder, model):
    make_model().to(torch.bfloat16).save_pretrained(folder)
    assert load_file(folder / "model.safetensors")["lm_head.weight"].dtype is torch.bfloat16
    loaded, _ = load(str(folder))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    asked, _ = load(str(folder), dtype=torch.bfloat16)
    assert {(parameter.dtype, parameter.device.type) for parameter in asked.parameters()} == {(torch.bfloat16, "cpu")}


def break_config(folder):
    (folder / "config.json").write_text("{not json")


def other_type(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"model_type": "step3_vl"', '"model_type": "llava"'))


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def forget_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def forget_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no \*.safetensors weights"),
        (break_config, "has no readable config"),
        (other_type, "is of type 'llava'"),
        (truncate, "cannot be loaded"),
        (forget_a_weight, "lacks 1 weights, lm_head.weight the first"),
        (forget_tokenizer, "cannot be loaded"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "there is no folder 'no/such/folder'"),
        ("nowhere", "there is no folder 'nowhere'"),
        ("mini", "the mini model is not at .*TRIPTYCH_CHECKPOINTS"),
        ("owner/model", "not on this machine and https://huggingface.co cannot be reached"),
    ],
)
def test_a_model_that_is_not_there_is_refused_in_one_line(name, message, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CHECKPOINTS", str(tmp_path))
    with pytest.raises(ModelError, match=message) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_the_stream_is_what_generate_says(model, processor):
    conversation = user(noise(40, 30), "What is it?")
    pieces = list(stream_answer(model, processor, conversation, max_new_tokens=20))
    inputs = inputs_of(processor, conversation)
    ids = model.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=0)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert "".join(pieces) == processor.decode(ids[ids != 2], skip_special_tokens=False)


def test_a_seed_gives_the_same_answer_and_another_seed_another(model, processor):
    def answer(seed):
        return "".join(stream_answer(model, processor, user("?"), 12, temperature=1.0, seed=seed))

    assert answer(1) == answer(1) != answer(2)


def test_no_character_is_torn(model, processor, monkeypatch):
    text = "<think>naïve 猫 🐈‍⬛</think> ok"
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    scripted(model, monkeypatch, [*ids, 2])
    pieces = list(stream_answer(model, processor, user("?"), 200))
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_half_a_character_at_the_end_and_in_the_middle_is_marked_and_stops_nothing(model, processor, monkeypatch):
    cat = processor.tokenizer("猫", add_special_tokens=False)["input_ids"]
    ok = processor.tokenizer("ok", add_special_tokens=False)["input_ids"]
    scripted(model, monkeypatch, [cat[0], *ok, cat[0], 2])
    assert "".join(stream_answer(model, processor, user("?"), 20)) == "\ufffdok\ufffd"


def test_reasoning_that_the_template_opens_is_opened_in_the_stream(model, monkeypatch):
    processor = make_processor(
        chat_template=make_processor().chat_template.replace("assistant\n", "assistant\n<think>\n")
    )
    scripted(model, monkeypatch, [*processor.tokenizer("so</think>4", add_special_tokens=False)["input_ids"], 2])
    text = "".join(stream_answer(model, processor, user("?"), 20))
    assert text == "<think>\nso</think>4" and split_reasoning(text) == ("so", "4")


def test_stop_ends_the_answer(model, processor):
    stop = threading.Event()
    pieces = []
    for piece in stream_answer(model, processor, user("?"), 50, temperature=2.0, stop=stop):
        pieces.append(piece)
        stop.set()
    assert len(pieces) <= 2


def test_errors_reach_the_reader(model, processor, monkeypatch):
    with pytest.raises(PictureError, match="no file"):
        next(stream_answer(model, processor, [{"role": "user", "content": [{"type": "image", "image": "no.png"}]}]))
    with pytest.raises(ModelError, match=r"the prompt takes 6\d\d tokens, the model reads at most 512"):
        next(stream_answer(model, processor, user("x" * 600)))
    with pytest.raises(ModelError, match="max_new_tokens is 0"):
        next(stream_answer(model, processor, user("x"), 0))

    def broken(*args):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(answering, "_next_logits", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        next(stream_answer(model, processor, user("x")))


def test_the_answer_ends_with_the_context(processor, monkeypatch):
    model = make_model(make_config(text={"max_position_embeddings": 64}))
    length = inputs_of(processor, user("x" * 20))["input_ids"].shape[1]
    letter = processor.tokenizer("a", add_special_tokens=False)["input_ids"]
    scripted(model, monkeypatch, letter * 500)
    assert "".join(stream_answer(model, processor, user("x" * 20), 500)) == "a" * (64 - length)


WHOLE = "<think>\n2 red, 3 blue.\n</think>\n\nThere are 5."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WHOLE, ("2 red, 3 blue.", "There are 5.")),
        ("There are 5.", ("", "There are 5.")),
        ("  <think>a", ("a", "")),
        ("<think>a</think>", ("a", "")),
        ("a</think>b", ("a", "b")),
        ("<think>a</think>b</think>c", ("a</think>b", "c")),
        ("x < y", ("", "x < y")),
        ("5 <", ("", "5 <")),
        ("", ("", "")),
    ],
)
def test_split_reasoning(text, expected):
    assert split_reasoning(text) == expected


def test_split_reasoning_of_a_growing_text_only_ever_grows():
    before = ("", "")
    for length in range(len(WHOLE) + 1):
        now = split_reasoning(WHOLE[:length])
        assert now[0].startswith(before[0]) and now[1].startswith(before[1]), WHOLE[:length]
        assert "<" not in now[0] + now[1]
        before = now
