r"""HMMT 2025: answers found in their box, the same value in many notations, anything read in no time."""

import json
import time

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from evaluation.benchmark import BenchmarkError, Question, Verdict
from evaluation.benchmarks import hmmt2025
from evaluation.benchmarks.hmmt2025 import BENCHMARK as HMMT
from evaluation.scoring.competition_answers import boxed, is_list, last_whole_number, parts_of


def score(said, truth, box=True):
    question = Question("q", [{"role": "user", "content": "?"}], {"answer": truth})
    return HMMT.score(question, f"So \\boxed{{{said}}}" if box else said)


# Reading


@pytest.mark.parametrize(
    ("response", "found"),
    [
        (r"\boxed{1} and \boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\boxed{5} or \boxed{6", "5"), ("nothing", None),
        (r"\boxed{a\boxed{5}}", "a{5}"), (r"\fbox{7}.", "7"), (r"\boxed 5", None), (r"}} \boxed{8}", "8"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    ],
)  # fmt: skip
def test_the_last_closed_box_counts(response, found):
    assert boxed(response) == found


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        (r"\dfrac{1}{2}", r"\frac{1}{2}"), (r"$x=\left(\tfrac12\right)$.", r"\frac{1}{2}"), ("1,234", "1234"),
        (r"9 \sqrt 3 \text{ cm}", r"9\sqrt{3}"), (r"2^{25} \times 26!", r"2^{25}\cdot26!"), (r"30^{\circ}", "30"),
        (r"\sqrt{2} \approx 1.41", r"\sqrt{2}"), ("−5", "-5"), (r"\pi r", r"\pi r"), ("{(3)}", "3"),
        (r"x^{2}", "x^2"), ("(1)(2)", "(1)(2)"),
    ],
)  # fmt: skip
def test_notations_come_to_one_form(answer, form):
    assert parts_of(answer) == [form]


def test_lists_are_told_by_their_commas_and_their_order_does_not_matter():
    assert is_list("1, 2") and not is_list("1,234,567") and not is_list(r"\frac{1}{2}")
    assert parts_of(r"\{b, a \text{ and } (3,4)\}", several=True) == ["3,4", "a", "b"]
    assert parts_of("x=1, y=2", several=True) == parts_of("2; 1", several=True) == ["1", "2"]
    assert parts_of("(x,y)=(1,2)", several=True) == ["1", "2"]
    assert (
        last_whole_number("from 3 to 14 steps, x2") == "14"
        and last_whole_number("1.5") == "5"
        and last_whole_number("none") is None
    )


# Judging


@pytest.mark.parametrize(
    ("said", "truth", "right"),
    [
        ("103", "103", 1), (r"\frac{448}{3}", r"\dfrac{448}{3}", 1), (r"\frac 1 {576}", r"\frac{1}{576}", 1),
        (r"2\cdot 9", "18", 1), (r"\sqrt{12}", r"2\sqrt{3}", 1),
        (r"\frac{\sqrt{17}-1}{2}", r"\frac{-1+\sqrt{17}}{2}", 1),
        ("0.5", r"\frac{1}{2}", 1), ("104", "103", 0), (r"\sqrt{13}", r"2\sqrt{3}", 0), ("", "103", 0), ("x", "103", 0),
        (r"\frac{-1-\sqrt{17}}{2}, \frac{\sqrt{17}-1}{2}", r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}", 1),
        (r"\frac{-1-\sqrt{17}}{2}", r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}", 0),
        ("2, 2", "1, 2", 0), ("1-\\frac{2}{\\pi}", "\\frac{\\pi-2}{\\pi}", 1),
    ],
)  # fmt: skip
def test_the_same_value_is_right(said, truth, right):
    assert score(said, truth).score == right


def test_without_a_box_the_last_whole_number_counts_and_the_note_says_so():
    verdict = score("First 12, then it is 103.", "103", box=False)
    assert (verdict.score, verdict.parsed) == (1.0, "103") and "nothing is boxed" in verdict.note
    assert score("I do not know.", "103", box=False) == Verdict(0.0, note="there is no answer")


def test_without_math_verify_what_is_not_equal_as_text_is_not_judged(monkeypatch):
    monkeypatch.setattr(hmmt2025, "verify", lambda response, values: None)
    assert score(r"\dfrac{1}{2}", r"\frac12").score == 1.0
    with pytest.raises(BenchmarkError, match="math-verify cannot be started"):
        score("0.5", r"\frac12")


@given(st.text(max_size=60) | st.text(alphabet="\\boxed{}frac123,=()[] \\sqrt$;.and", max_size=80))
def test_any_text_is_read(text):
    for several in (False, True):
        parts = parts_of(text, several)
        assert all(isinstance(part, str) for part in parts) and parts == parts_of(text, several)
    assert boxed(text) is None or len(boxed(text)) <= len(text)


@pytest.mark.parametrize(
    "hostile",
    ["\\boxed{" * 100_000, "{" * 500_000, "\\boxed{" + "(" * 400_000 + ")" * 400_000 + "}", "\\boxed{9^{9^{9^{9}}}}",
     "\\boxed{" + "1" * 10**6 + "}", "\\boxed{" + "9" * 990 + "}", "\\boxed{" + "\\sqrt{" * 100 + "2" + "}" * 101,
     "\\boxed{" + "1," * 400 + "}", "\\boxed{" + "\\frac{" * 150 + "}", "1" * 10**6, "\\boxed{10^{10^{10}}!}"],
    ids=lambda text: f"{text[:14]}…{len(text)}",
)  # fmt: skip
def test_no_answer_takes_long(hostile):
    score("0.5", r"\frac12")  # the verifier is at work
    start, worked = time.monotonic(), time.process_time()
    question = Question("q", [{"role": "user", "content": "?"}], {"answer": "1, 2"})
    assert HMMT.score(question, hostile).score == 0.0
    assert score(hostile, "103", box=False).score == 0.0
    assert time.process_time() - worked < 2.0 and time.monotonic() - start < 20.0  # others may keep the machine busy


# Questions

PROBLEM = {"problem_idx": 1, "problem": "Compute $1+1$.", "answer": r"\frac{4}{2}", "problem_type": ["Algebra"]}


def test_problems_are_asked_in_matharenas_words(tmp_path):
    Dataset.from_list([PROBLEM]).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    (question,) = HMMT.load(tmp_path, "test")
    assert question.conversation[0]["content"][0]["text"] == (
        "Compute $1+1$.\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert (question.id, question.groups) == ("hmmt2025-1", {"topic": "Algebra"})
    assert HMMT.summarize([(question, HMMT.score(question, r"\boxed{2}"))]) == {"accuracy": 100.0}


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="no split 'train'; it has 'test' alone"):
        HMMT.load(tmp_path, "train")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "?"}))
    with pytest.raises(BenchmarkError, match="row 1: no `problem` or no `answer`"):
        HMMT.load(tmp_path, "test")
