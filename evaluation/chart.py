"""Accuracy against test-time compute: where points, intervals and ticks of the drawing stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

LEFT, RIGHT, TOP, BOTTOM = 46, 22, 14, 44  # pixels around the plot, for its labels
LABEL = 15  # pixels that a label is high


@dataclass(frozen=True)
class Measured:
    """One point, in figures.

    Attributes:
        tokens: of an answer.
        value, low, high: of a score, in [0, 1].
        majority: of a vote of several answers, whose tokens are added up.
    """

    label: str
    tokens: float
    value: float
    low: float
    high: float
    majority: bool = False


@dataclass(frozen=True)
class Point:
    """One point, in pixels from the upper left; `label_y` is the foot of its label."""

    measured: Measured
    x: float
    y: float
    low: float
    high: float
    label_y: float


@dataclass(frozen=True)
class Chart:
    """Ticks are (place in pixels, text)."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    points: tuple[Point, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]


def draw(measured: Sequence[Measured], width: int, height: int) -> Chart | None:
    """The chart, tokens on a logarithmic axis; None where nothing has tokens, as some servers do not count them."""
    measured = [one for one in measured if one.tokens > 0]
    if not measured:
        return None
    ends = [log10(one.tokens) for one in measured]
    first, last = min(ends) - 0.12, max(ends) + 0.12
    if last - first < 1:  # a decade at least, so that nobody takes little for much
        first, last = (first + last - 1) / 2, (first + last + 1) / 2
    step, floor_, ceiling = _range(min(one.low for one in measured), max(one.high for one in measured))
    right, bottom = width - RIGHT, height - BOTTOM

    def x_of(tokens: float) -> float:
        return round(LEFT + (log10(tokens) - first) / (last - first) * (right - LEFT), 1)

    def y_of(value: float) -> float:
        return round(bottom - (value - floor_) / (ceiling - floor_) * (bottom - TOP), 1)

    points: list[Point] = []
    for one in sorted(measured, key=lambda one: one.value, reverse=True):
        x, label_y = x_of(one.tokens), y_of(one.value) - 5
        while any(abs(p.x - x) < 4 * LABEL and abs(p.label_y - label_y) < LABEL for p in points):
            label_y += 3
        points.append(Point(one, x, y_of(one.value), y_of(one.low), y_of(one.high), label_y))
    across = [(x_of(tokens), _tokens(tokens)) for tokens in _ticks(first, last)]
    rows = round((ceiling - floor_) / step)
    up = [(y_of(floor_ + step * row), f"{floor_ + step * row:.0%}") for row in range(rows + 1)]
    return Chart(width, height, LEFT, right, TOP, bottom, tuple(points), tuple(across), tuple(up))


def _range(low: float, high: float) -> tuple[float, float, float]:
    """(step, first, last) of the ticks around these."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2):
        first, last = floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step
        if last - first <= 6 * step:
            break
    return step, first, last if last > first else first + step


def _ticks(first: float, last: float) -> list[float]:
    """1, 2, 5, 10 … where there is room for them, else decades."""
    steps = (1, 2, 5) if last - first < 2.5 else (1,)
    decades = range(floor(first), ceil(last) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return [tick for tick in ticks if first <= log10(tick) <= last]


def _tokens(tokens: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:g}{unit}"
    return f"{tokens:g}"
