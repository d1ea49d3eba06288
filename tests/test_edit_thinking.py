"""Edits that are planned, judged and inspected."""

from pathlib import Path

import numpy as np
import pytest
from small_editor import draws, make_pipeline
from small_vlm import noise, user
from transformers import AutoTokenizer

from edit.inputs import EditError
from edit.thinking import Questions, Verdict, _after_reasoning, inspect, judge_by, own_model, think_and_edit

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


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


def test_a_plan_too_long_to_be_read_is_cut(pipeline):
    ask, _ = scripted("the box turns red and all else stays " * 9)
    thought = think_and_edit(pipeline, noise(32, 32), "make it red", planning=True, ask=ask, num_inference_steps=1)
    assert thought.told.startswith("make it red the box turns red")
    assert len(thought.told) < 80 < len(thought.plan)


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


def test_the_models_reasoning_is_left_out_where_its_marks_are_special_tokens():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "mini")
    written = "<think>\nr1c1 -\nchange: r1c1 star goes\n</think>\nr1c1 star goes<|im_end|>"
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    assert _after_reasoning(tokenizer, ids).strip() == "r1c1 star goes"
