"""The figures of the world and how sure they are: what `training report` and `evaluation` share."""

import math
from collections import Counter
from collections.abc import Sequence


def wilson(right: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for `right` of `n` (95 % for z = 1.96), as fractions."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def family_figures(rewards: Sequence[float], answers: Sequence[str]) -> dict:
    """Accuracy, its 95 % interval, and what always giving the commonest of the right `answers` would reach."""
    n = len(rewards)
    commonest = Counter(answers).most_common(1)[0][1]
    low, high = wilson(sum(rewards), n)
    return {"accuracy": round(sum(rewards) / n, 4), "n": n, "interval": [round(low, 4), round(high, 4)],
            "majority_baseline": round(commonest / n, 4)}  # fmt: skip


def mean_of(families: dict[str, dict]) -> tuple[float, list[float]]:
    """The unweighted mean of the families' accuracies and its 95 % interval (normal, families independent)."""
    values = [(f["accuracy"], f["n"]) for f in families.values()]
    mean = sum(a for a, _ in values) / len(values)
    half = 1.96 * math.sqrt(sum(a * (1 - a) / n for a, n in values)) / len(values)
    return round(mean, 4), [round(max(0.0, mean - half), 4), round(min(1.0, mean + half), 4)]
