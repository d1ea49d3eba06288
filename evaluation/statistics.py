"""How sure a figure is, and whether two runs differ; by question, as samples of one question are not independent."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import comb

import numpy as np

RESAMPLES = 10_000
_AT_ONCE = 4_000_000  # drawn indices; 32 MB


def bootstrap_means(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples,) means of questions drawn with replacement from `values`, one value a question."""
    values = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // len(values))
    return np.concatenate([
        values[rng.integers(0, len(values), (min(rows, resamples - start), len(values)))].mean(1)
        for start in range(0, resamples, rows)
    ])  # fmt: skip


def bootstrap_interval(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean; (0, 1) where there are no values."""
    if len(values) == 0:
        return 0.0, 1.0
    low, high = np.quantile(bootstrap_means(values, resamples, seed), (0.025, 0.975))
    return float(low), float(high)


def pass_at(scores: np.ndarray, k: int) -> np.ndarray:
    """(questions,) the expected best score of `k` samples drawn without replacement, from (questions, samples).

    For right and wrong this is the unbiased pass@k, 1 - C(n - c, k) / C(n, k) (Chen et al. 2021); k = 1 is the mean.
    """
    scores = np.sort(np.asarray(scores, float), 1)
    n = scores.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples; k must be 1 to {n}.")
    # The sample of rank i is the best of C(i, k - 1) of the C(n, k) choices.
    return scores @ np.array([comb(i, k - 1) / comb(n, k) for i in range(n)])


def majority(votes: Sequence[str], scores: Sequence[float]) -> float:
    """The score of the commonest answer; where several are, their mean, as if one were drawn.

    Samples without an answer ("") have no vote, unless none has one.
    """
    counted = Counter(vote for vote in votes if vote) or Counter(votes)
    most = max(counted.values())
    winners = [vote for vote, count in counted.items() if count == most]
    return float(np.mean([np.mean([s for v, s in zip(votes, scores, strict=True) if v == w]) for w in winners]))


def majority_at(votes: Sequence[str], scores: Sequence[float], k: int) -> float:
    """`majority` of `k` samples: the mean over the disjoint blocks of k, in their order."""
    if not 1 <= k <= len(votes):
        raise ValueError(f"majority@{k} of {len(votes)} samples; k must be 1 to {len(votes)}.")
    blocks = [slice(start, start + k) for start in range(0, len(votes) - k + 1, k)]
    return float(np.mean([majority(votes[block], scores[block]) for block in blocks]))


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p of `lost` right-to-wrong and `won` wrong-to-right questions, were both as likely."""
    n = lost + won
    return min(1.0, 2 * sum(comb(n, i) for i in range(min(lost, won) + 1)) / 2**n)


def sign_flips(gains: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """The two-sided p of the gains' mean, were either sign of each as likely (Fisher's permutation test of pairs).

    All signs where they are few, and then exact: of n questions p is at least 2 / 2^n, where a bootstrap of two would
    be as sure as of a thousand. Else `resamples` of them and the gains as they are.
    """
    gains = gains[gains != 0]
    if 2 ** len(gains) <= resamples:
        signs = np.array(list(product((1, -1), repeat=len(gains)))).reshape(2 ** len(gains), len(gains))
        sums = np.abs(signs @ gains)
    else:
        rng, rows = np.random.default_rng(seed), max(1, _AT_ONCE // len(gains))
        drawn = (rng.choice((1, -1), (min(rows, resamples - start), len(gains))) for start in range(0, resamples, rows))
        sums = np.abs(np.concatenate([[gains.sum()], *(signs @ gains for signs in drawn)]))
    return float((sums >= sums[0] * (1 - 1e-9)).mean())


@dataclass(frozen=True)
class Paired:
    """Two runs on the same questions.

    Attributes:
        n: questions in both.
        before, after: mean scores.
        difference: after - before, with its 95 % paired bootstrap `interval`.
        p: two-sided; of the exact McNemar `test` where all scores are 0 or 1, else of `sign flips`.
        won, lost: questions with a higher and with a lower score after.
    """

    n: int
    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    p: float
    test: str
    won: int
    lost: int


def paired(before: Sequence[float], after: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> Paired:
    """Compares two runs, question by question. Raises ValueError where there are none, or not as many."""
    a, b = np.asarray(before, float), np.asarray(after, float)
    if len(a) == 0 or a.shape != b.shape:
        raise ValueError(f"{len(a)} scores before and {len(b)} after; give as many, at least one.")
    gains = b - a
    won, lost = int((gains > 0).sum()), int((gains < 0).sum())
    means = bootstrap_means(gains, resamples, seed)
    low, high = np.quantile(means, (0.025, 0.975))
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        p, test = mcnemar(lost, won), "McNemar, exact"
    else:
        p, test = sign_flips(gains, resamples, seed), "sign flips"
    return Paired(len(a), float(a.mean()), float(b.mean()), float(gains.mean()), (float(low), float(high)), p, test,
                  won, lost)  # fmt: skip
