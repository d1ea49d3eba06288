"""When trajectories agree enough: the sequential test of adaptive breadth, and the best answer so far."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from pacore.messages import answer_key


@dataclass(frozen=True)
class Adaptive:
    """Start a round with `start` trajectories; go on only while the leading answer may yet be overtaken.

    After each arrival the leader's and the runner-up's votes a and b are tested: under a uniform prior, the leader's
    true share among the two is above one half with probability P(Beta(a + 1, b + 1) > 1/2) (the criterion of
    adaptive-consistency, Aggarwal et al. 2023). At `confidence` the round is closed.
    """

    start: int = 4
    step: int = 4
    confidence: float = 0.95

    def __post_init__(self):
        if self.start < 2 or self.step < 1 or not 0.5 < self.confidence < 1:
            raise ValueError(
                f"adaptive breadth has start {self.start}, step {self.step} and confidence {self.confidence}; use at "
                f"least 2, at least 1, and between 0.5 and 1."
            )

    def settled(self, messages: Sequence[str]) -> bool:
        """Whether these conclusions agree beyond the test."""
        votes = [n for _, n in Counter(map(answer_key, messages)).most_common(2)] + [0, 0]
        return len(messages) >= self.start and leader_probability(votes[0], votes[1]) >= self.confidence


def leader_probability(a: int, b: int) -> float:
    """P(X > 1/2) for X ~ Beta(a + 1, b + 1), exactly: a sum of binomial coefficients."""
    n = a + b + 1
    return sum(comb(n, k) for k in range(a + 1)) / 2**n


def plurality(messages: Sequence[str]) -> int:
    """The place of the first message with the commonest answer."""
    keys = [answer_key(message) for message in messages]
    winner = Counter(keys).most_common(1)[0][0]
    return keys.index(winner)
