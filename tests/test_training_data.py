"""Tokens, labels, packing, mixtures and datasets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.conversations import export_world, read_conversations
from training.data import IGNORED, Encoded, Steps, encode_conversation, pack
from training.pretrain import start
from training.recipe import Phase, Source, Stage, World, load_recipe
from training.schedule import RecipeError
from training.world import draw_sample


@pytest.fixture(scope="module")
def mini():
    torch.manual_seed(0)
    return start(load_recipe("mini-smoke"))


def test_loss_is_on_what_the_assistant_says_and_its_end_of_turn(mini):
    _, processor = mini
    sample = draw_sample(3, "train", "count")
    encoded = encode_conversation(sample.conversation(), processor, "assistant")
    learnt = [i for i in encoded.labels if i != IGNORED]
    assert processor.tokenizer.decode(learnt) == sample.response + "<|im_end|>"


def test_loss_on_all_skips_only_the_picture(mini):
    _, processor = mini
    encoded = encode_conversation(draw_sample(3, "train", "count").conversation(), processor, "all")
    skipped = [i for i, label in zip(encoded.input_ids, encoded.labels, strict=True) if label == IGNORED]
    tokenizer = processor.tokenizer
    assert skipped == tokenizer.convert_tokens_to_ids(["<im_start>", *["<im_patch>"] * 16, "<im_end>"])


def test_tokens_are_those_of_the_processor(mini):
    """Training and answering must see a conversation alike."""
    _, processor = mini
    conversation = draw_sample(5, "train", "clock").conversation()
    asked = processor.apply_chat_template(
        conversation[:1], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    encoded = encode_conversation(conversation, processor, "assistant")
    prompt = asked["input_ids"][0].tolist()
    assert encoded.input_ids[: len(prompt)] == prompt
    assert torch.equal(encoded.images["pixel_values"], asked["pixel_values"])


def test_several_turns_and_pictures(mini):
    _, processor = mini
    picture = Image.new("RGB", (128, 128), "red")
    turns = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "image", "image": picture},
                                     {"type": "text", "text": "Compare."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Alike."}]},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]  # fmt: skip
    encoded = encode_conversation(turns, processor, "assistant")
    learnt = processor.tokenizer.decode([i for i in encoded.labels if i != IGNORED])
    assert learnt == "Alike.<|im_end|>Yes.<|im_end|>"
    assert encoded.images["pixel_values"].shape == (2, 3, 128, 128)


def test_a_conversation_without_an_answer_is_refused(mini):
    with pytest.raises(ValueError, match="no assistant turn"):
        encode_conversation([{"role": "user", "content": "Hello?"}], mini[1], "assistant")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(10, 60))
def test_packing_loses_nothing_and_keeps_samples_apart(lengths, row_length):
    samples = [Encoded([100 + i] * n, [IGNORED] + [100 + i] * (n - 1), None) for i, n in enumerate(lengths)]
    batch = pack(samples, row_length)
    assert batch["input_ids"].shape[1] == max(row_length, *lengths)
    for i, n in enumerate(lengths):
        assert int((batch["input_ids"] == 100 + i).sum()) == n
        at = batch["position_ids"][batch["input_ids"] == 100 + i]
        assert sorted(at.tolist()) == list(range(n))
    assert len(batch["targets"]) == int(batch["keep"].sum()) == sum(n - 1 for n in lengths)
    assert torch.equal(batch["input_ids"][batch["keep"]], batch["targets"])


def test_packed_loss_equals_samples_one_by_one(mini):
    model, processor = mini
    samples = [encode_conversation(draw_sample(s, "train", None, m).conversation(), processor, "assistant")
               for s, m in ((1, "picture"), (2, "text"), (3, "picture"), (4, "text"))]  # fmt: skip

    def total(batch):
        batch = dict(batch)
        keep, targets = batch.pop("keep"), batch.pop("targets")
        logits = model(**batch, logits_to_keep=keep, use_cache=False).logits
        return float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))

    with torch.no_grad():
        assert total(pack(samples, 700)) == pytest.approx(sum(total(pack([s], 8)) for s in samples), rel=1e-5)


def _stage(**changes) -> Stage:
    phases = [Phase(steps=2, mixture=[Source(weight=1, world=World(modality="text"))]),
              Phase(steps=2, mixture=[Source(weight=1, world=World(modality="text", families=["clock"]))])]  # fmt: skip
    return Stage(**{"phases": phases, "batch_size": 4, **changes})


def test_a_batch_depends_on_the_step_alone_and_ranks_share_it(mini):
    processor = mini[1]
    whole = Steps(_stage(), processor, "assistant", seed=7)
    again = Steps(_stage(), processor, "assistant", seed=7)
    assert torch.equal(whole[2][0]["input_ids"], again[2][0]["input_ids"])
    assert not torch.equal(whole[0][0]["targets"], whole[1][0]["targets"])
    ranks = [Steps(_stage(), processor, "assistant", 7, rank, 2) for rank in range(2)]
    shared = sum(len(r[3][0]["targets"]) for r in ranks)
    assert shared == len(whole[3][0]["targets"])


def test_phases_follow_each_other(mini):
    steps = Steps(_stage(), mini[1], "assistant", seed=7)
    assert "hand" in mini[1].tokenizer.decode(steps[2][0]["input_ids"][0])
    assert len(steps) == 4
    with pytest.raises(IndexError):
        steps[4]


@pytest.mark.parametrize("modality", ["picture", "text"])
def test_edits_are_learnt_from_instructions_and_their_plans(mini, modality):
    mixture = [Source(weight=1, world=World(task="edit", modality=modality, families=["remove"]))]
    steps = Steps(_stage(phases=[Phase(steps=1, mixture=mixture)], batch_size=8), mini[1], "assistant", seed=7)
    said = "".join(map(mini[1].tokenizer.decode, (row for part in steps[0] for row in part["input_ids"])))
    assert said.count(" goes\nkeep:") == 8 and ("Picture:\nr1c1" in said) == (modality == "text")
    assert 0 < said.count("Say briefly what must change") < 8  # asked for a plan, or told the instruction alone
    with pytest.raises(ValueError, match=r"no families named .*relation.*; there are recolour"):
        World(task="edit", families=["relation"])


def test_a_batch_that_does_not_divide_is_refused(mini):
    with pytest.raises(ValueError, match="does not divide by 3"):
        Steps(_stage(), mini[1], "assistant", 0, 0, 3)


def test_the_exported_world_trains_again(mini, tmp_path):
    export_world(tmp_path / "world", "train", 6)
    rows = read_conversations(str(tmp_path / "world"), "train")
    assert len(rows) == 6
    encoded = encode_conversation(rows[0], mini[1], "assistant")
    assert encoded.input_ids == encode_conversation(draw_sample(0, "train").conversation(), mini[1], "all").input_ids
    source = Source(weight=1, dataset=str(tmp_path / "world"))
    batch = Steps(_stage(phases=[Phase(steps=1, mixture=[source])]), mini[1], "assistant", 0)[0]
    assert batch[0]["pixel_values"].shape[1:] == (3, 128, 128)


def test_json_lines_in_a_folder_are_read(tmp_path):
    row = '{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}\n'
    (tmp_path / "train.jsonl").write_text(row * 3)
    rows = read_conversations(str(tmp_path), "train")
    assert rows[1][1] == {"role": "assistant", "content": [{"type": "text", "text": "4"}]}


@pytest.mark.parametrize("case", ["missing", "column", "split"])
def test_bad_datasets_are_named(tmp_path, case):
    if case == "missing":
        name, split, message = str(tmp_path / "nowhere"), "train", "nowhere"
    elif case == "column":
        (tmp_path / "train.jsonl").write_text('{"text": "x"}\n')
        name, split, message = str(tmp_path), "train", "must be called `messages`"
    else:
        (tmp_path / "train.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
        name, split, message = str(tmp_path), "test", "no split 'test'"
    with pytest.raises(RecipeError, match=message):
        read_conversations(name, split)
