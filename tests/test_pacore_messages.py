"""Compaction, the synthesis prompt, the context guard, and when answers agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pacore.agreement import Adaptive, leader_probability, plurality
from pacore.backends import Completion
from pacore.messages import (
    MessageError,
    answer_key,
    conclusion,
    fit,
    last_tokens,
    load_template,
    parse_compaction,
    render,
    shuffled,
    tail,
    with_messages,
)
from pacore.views import view_of, with_views

words = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=8))
messages = st.lists(words.map(" ".join), min_size=1, max_size=12)


def count(text: str) -> int:
    return len(text.split())


def said(text="", reasoning=""):
    return Completion(text, reasoning, 1, 1, "stop")


def test_the_conclusion_is_what_follows_the_reasoning_else_all_there_is():
    assert conclusion(said("Answer: 7", "3 + 4")) == "Answer: 7"
    assert conclusion(said("", "3 + 4 is, let me see")) == "3 + 4 is, let me see"


def test_tail_takes_the_last_tokens_of_reasoning_and_text():
    assert tail(said("six seven", "one two three four five"), 4, count) == "four five\nsix seven"


@given(words.map(" ".join), st.integers(1, 40))
def test_last_tokens_is_the_longest_end_that_fits(text, limit):
    end = last_tokens(text, limit, count)
    assert text.endswith(end) and count(end) <= limit
    assert count(end) == min(limit, count(text))


def test_a_word_longer_than_the_limit_is_cut_and_not_lost():
    end = last_tokens("a" * 1000, 10, len)
    assert end and len(end) <= 10


@pytest.mark.parametrize("how", ["", "tail", "tail:0", "tail:-1", "tail:x", "first", "tail:" + "9" * 40])
def test_an_unknown_compaction_is_refused(how):
    with pytest.raises(MessageError, match="compaction"):
        parse_compaction(how)


@given(messages, st.integers(0, 400))
def test_the_guard_is_fair(texts, room):
    try:
        fitting, trimmed = fit(texts, room, count)
    except MessageError:
        assert sum(map(count, texts)) > room
        return
    lengths = [count(t) for t in fitting]
    assert sum(lengths) <= room and len(fitting) == len(texts)
    cut = [new != old for new, old in zip(fitting, texts, strict=True)]
    assert sum(cut) == trimmed and (trimmed == 0) == (sum(map(count, texts)) <= room)
    for i, was_cut in enumerate(cut):
        if was_cut:
            assert fitting[i].startswith("[…] ") and texts[i].endswith(fitting[i].removeprefix("[…] "))
            assert all(lengths[j] <= max(lengths[i], count(texts[j])) for j in range(len(texts)))
            # No message that stayed whole is longer than one that was cut.
            assert all(count(texts[j]) <= lengths[i] + 1 for j in range(len(texts)) if not cut[j])


@given(messages, st.integers(0, 2**63))
def test_shuffling_is_a_permutation_that_the_seed_decides(texts, seed):
    assert sorted(shuffled(texts, seed)) == sorted(texts)
    assert shuffled(texts, seed) == shuffled(texts, seed)


def test_the_prompt_shows_the_problem_and_every_message_in_order():
    text = render(load_template(None), "How many?", ["it is 7", "it is 8"])
    assert text.index("How many?") < text.index("Attempt 1:\nit is 7") < text.index("Attempt 2:\nit is 8")
    assert render(load_template(None), "How many?", []) == "How many?"


def test_only_the_text_of_the_last_user_turn_is_rewritten():
    picture = Image.new("RGB", (4, 4))
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "How many?"}]},
    ]
    before = [dict(turn) for turn in conversation]
    after = with_messages(conversation, load_template(None), ["seven"])
    assert after[:3] == conversation[:3] == before[:3] and conversation == before
    assert after[3]["content"][0]["image"] is picture
    assert "How many?" in after[3]["content"][1]["text"] and "seven" in after[3]["content"][1]["text"]


def test_a_template_of_ones_own(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ problem }} // {{ messages | join(' | ') }}")
    assert render(load_template(path), "Q", ["a", "b"]) == "Q // a | b"


@pytest.mark.parametrize(
    ("source", "says"),
    [("{{ problem", "does not work"), ("{{ nothing }}", "nothing"), ("{{ problem }}", "no messages"),
     ("{{ messages.__class__.__mro__ }}", "does not work"), ("{{ messages | join }}{{ 1 / 0 }}", "division by zero")],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_refused_before_anything_runs(tmp_path, source, says):
    path = tmp_path / "bad.jinja"
    path.write_text(source)
    with pytest.raises(MessageError, match=says):
        load_template(path)
    with pytest.raises(MessageError, match="cannot be read"):
        load_template(tmp_path / "none.jinja")


@pytest.mark.parametrize(
    ("text", "key"),
    [("The sum.\nAnswer: 42.", "42"), ("so the answer is **Blue**", "blue"), ("just this", "just this"), ("", ""),
     (r"thus \boxed{\frac{1}{2}}", r"\frac{1}{2}"), ("first Answer: 3\nthen Answer:  4", "4")],
)  # fmt: skip
def test_answers_that_are_equal_have_equal_keys(text, key):
    assert answer_key(text) == key


@given(st.text(max_size=300))
def test_any_text_has_a_key(text):
    answer_key(text)


def test_leader_probability_is_the_beta_tail():
    assert leader_probability(0, 0) == 0.5
    assert leader_probability(3, 0) == pytest.approx(1 - 0.5**4)
    assert leader_probability(4, 0) == pytest.approx(0.96875)
    assert leader_probability(2, 2) == pytest.approx(0.5)


@given(st.integers(0, 30), st.integers(0, 30))
def test_leader_probability_is_symmetric_and_grows_with_the_lead(a, b):
    assert leader_probability(a, b) + leader_probability(b, a) == pytest.approx(1)
    assert leader_probability(a + 1, b) > leader_probability(a, b)


def test_adaptive_settles_on_agreement_and_not_before_its_start():
    adaptive = Adaptive(start=4, confidence=0.95)
    assert not adaptive.settled(["7"] * 3)
    assert adaptive.settled(["Answer: 7"] * 4)
    assert not adaptive.settled(["7", "7", "7", "8"])
    assert adaptive.settled(["7"] * 8 + ["8"])
    with pytest.raises(ValueError, match="start 1"):
        Adaptive(start=1)


def test_plurality_is_the_first_of_the_commonest():
    assert plurality(["Answer: 1", "Answer: 2", "answer is 2."]) == 1


def test_a_view_keeps_what_a_question_may_be_about():
    picture = Image.new("RGB", (100, 60), "white")
    picture.paste((255, 0, 0), (10, 10, 40, 50))  # red on the left
    picture.paste((0, 0, 255), (60, 10, 90, 50))
    seen = [view_of(picture, seed) for seed in range(12)]
    assert len({view.size for view in seen}) > 6
    for view in seen:
        width, height = view.size
        left, right = view.getpixel((width // 4, height // 2)), view.getpixel((3 * width // 4, height // 2))
        assert left[0] > 150 > left[2] and right[2] > 150 > right[0]
    assert view_of(picture, 3).tobytes() == view_of(picture, 3).tobytes()


def test_the_first_trajectory_sees_the_pictures_as_they_are():
    conversation = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (9, 9))},
                                                 {"type": "text", "text": "?"}]}]  # fmt: skip
    assert with_views(conversation, 0, 5) is conversation
    other = with_views(conversation, 1, 5)
    assert other[0]["content"][1] is conversation[0]["content"][1]
    assert other[0]["content"][0]["image"] is not conversation[0]["content"][0]["image"]
