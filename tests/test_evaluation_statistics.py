"""Intervals, pass@k, majority@k and paired tests: against brute force, closed forms and each other."""

from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.statistics import (
    bootstrap_interval,
    bootstrap_means,
    majority,
    majority_at,
    mcnemar,
    paired,
    pass_at,
)

SCORES = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=9)
FRACTIONS = st.lists(st.floats(0, 1), min_size=1, max_size=9)


# pass@k


@given(FRACTIONS, st.data())
def test_pass_at_k_is_the_mean_best_over_all_choices_of_k(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    every = [max(chosen) for chosen in combinations(scores, k)]
    assert pass_at(np.array([scores]), k)[0] == pytest.approx(np.mean(every))


@given(SCORES, st.data())
def test_of_right_and_wrong_it_is_the_unbiased_estimator(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    n, c = len(scores), int(sum(scores))
    assert pass_at(np.array([scores]), k)[0] == pytest.approx(1 - comb(n - c, k) / comb(n, k))


@given(FRACTIONS)
def test_it_grows_with_k_from_the_mean_to_the_best(scores):
    values = [pass_at(np.array([scores]), k)[0] for k in range(1, len(scores) + 1)]
    assert values[0] == pytest.approx(np.mean(scores)) and values[-1] == pytest.approx(max(scores))
    assert all(a <= b + 1e-12 for a, b in pairwise(values))


@pytest.mark.parametrize("k", [0, 4])
def test_it_needs_as_many_samples_as_k(k):
    with pytest.raises(ValueError, match=f"pass@{k} of 3"):
        pass_at(np.zeros((2, 3)), k)
    with pytest.raises(ValueError, match=f"majority@{k} of 3"):
        majority_at(["a"] * 3, [1.0] * 3, k)


# majority@k


@pytest.mark.parametrize(
    ("votes", "scores", "expected"),
    [
        (["a", "b", "a"], [1, 0, 1], 1.0),
        (["a", "b", "b"], [1, 0, 0], 0.0),
        (["a", "b"], [1, 0], 0.5),  # a tie is as good as the draw between them
        (["", "", "a"], [0, 0, 1], 1.0),  # no answer has no vote
        (["", ""], [0, 0], 0.0),
        (["", ""], [1, 0], 0.5),
        (["a", "a"], [0.5, 0.7], 0.6),  # one answer, two judgements
    ],
)
def test_the_commonest_answer_counts(votes, scores, expected):
    assert majority(votes, scores) == pytest.approx(expected)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.randoms())
def test_the_order_of_samples_does_not_matter_to_all_of_them(votes, random):
    shuffled = random.sample(votes, len(votes))
    assert majority(votes, [v == "a" for v in votes]) == majority(shuffled, [v == "a" for v in shuffled])


def test_majority_of_fewer_is_the_mean_over_blocks():
    votes, scores = ["a", "a", "b", "b", "a"], [1, 1, 0, 0, 1]
    assert majority_at(votes, scores, 1) == pytest.approx(3 / 5)
    assert majority_at(votes, scores, 2) == 0.5  # aa, bb; the fifth makes no block
    assert majority_at(votes, scores, 5) == 1.0


# Intervals


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(0, 5))
def test_a_bootstrap_interval_lies_around_the_mean_within_the_values(values, seed):
    low, high = bootstrap_interval(values, 2000, seed)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12
    assert bootstrap_interval(values, 2000, seed) == (low, high)


def test_its_width_is_that_of_the_normal_one_where_there_are_many():
    values = np.random.default_rng(1).random(2000) < 0.3
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.002)


def test_it_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(rng.random(100) < 0.4, 1000, trial)
        covered += low <= 0.4 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_resamples_are_drawn_in_blocks_as_they_would_be_at_once(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_means(values, 999)
    monkeypatch.setattr("evaluation.statistics._AT_ONCE", 50 * 10)
    assert np.array_equal(bootstrap_means(values, 999), whole) and len(whole) == 999


def test_of_nothing_everything_is_possible():
    assert bootstrap_interval([]) == (0.0, 1.0)


# Two runs


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_two_sided_binomial_test(lost, won):
    n = lost + won
    at_least_as_far = [i for i in range(n + 1) if abs(i - n / 2) >= abs(lost - n / 2)]
    assert mcnemar(lost, won) == pytest.approx(min(1.0, sum(comb(n, i) for i in at_least_as_far) / 2**n))
    assert mcnemar(lost, won) == mcnemar(won, lost)


def test_known_values_of_mcnemar():
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 32) and mcnemar(1, 9) == pytest.approx(22 / 1024)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_other_way_round_is_the_same_the_other_way_round(pairs):
    a, b = zip(*pairs, strict=True)
    there, back = paired(a, b, 1000), paired(b, a, 1000)
    assert there.difference == pytest.approx(-back.difference) and (there.won, there.lost) == (back.lost, back.won)
    assert there.p == pytest.approx(back.p) and there.interval[0] == pytest.approx(-back.interval[1])
    assert 0 < there.p <= 1


def test_right_and_wrong_are_tested_exactly_and_fractions_by_flipped_signs():
    a, b = [0, 0, 0, 1, 1] * 20, [0, 1, 1, 1, 0] * 20
    found = paired(a, b)
    assert (found.won, found.lost, found.n) == (40, 20, 100) and found.test == "McNemar, exact"
    assert found.p == mcnemar(20, 40) and found.difference == pytest.approx(0.2)
    halves = paired([x / 2 for x in a], [x / 2 for x in b])
    assert halves.test == "sign flips" and halves.p < 0.05 and halves.difference == pytest.approx(0.1)
    assert paired([0.5] * 9, [0.5] * 9).p == 1.0


def test_two_questions_cannot_show_much():
    assert paired([0.2, 0.3], [0.6, 0.9]).p == pytest.approx(2 / 2**2)
    assert paired([0.1] * 8, [0.2, 0.5, 0.9, 0.4, 0.3, 0.6, 0.7, 0.8]).p == pytest.approx(2 / 2**8)
    assert paired([0.5] * 40, [0.6] * 40).p == pytest.approx(1 / 10_001)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 0.0])])
def test_what_cannot_be_paired(a, b):
    with pytest.raises(ValueError, match="give as many"):
        paired(a, b)
