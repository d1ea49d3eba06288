"""What a benchmark is whose answers are pictures: tasks for an editor, and a scorer that looks at what it painted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from evaluation.judging import Judge


@dataclass(frozen=True)
class EditTask:
    """One edit.

    Attributes:
        name: of its result in the folder of pictures, a path without its ending, such as `fullset/color_alter/en/KEY`.
        picture: what the editor is given; PIL or a `data:` address.
        source: what the result is compared with, where that is another one.
        groups: what figures are broken down by.
        truth: what the scorer needs besides.
    """

    name: str
    instruction: str
    picture: Image.Image | str = field(hash=False)
    groups: dict[str, str] = field(hash=False)
    source: Image.Image | str | None = field(default=None, hash=False)
    truth: Any = field(default=None, hash=False, compare=False)


@dataclass(frozen=True)
class EditScores:
    """What a scorer says of one result.

    Attributes:
        scores: by name.
        words: of the judge, by what it was asked about; none where rules alone judge.
    """

    scores: dict[str, float]
    words: dict[str, str] = field(default_factory=dict)


class EditBenchmark(Protocol):
    """Tasks plus a scorer; the attributes are those of `Benchmark`.

    Attributes:
        needs_judge: whether a model has to look at the results.
        overall, highest: the name of the score that counts, and the most that it can be.
        shown: the names of the scores that stand for a result in a list.
    """

    name: str
    title: str
    version: str
    splits: tuple[str, ...]
    source: str
    layout: str
    needs_judge: bool
    overall: str
    highest: float
    shown: tuple[str, ...]

    def load(self, location: str | Path | None, split: str, size: int | None = None) -> list[EditTask]:
        """The split's tasks.

        Args:
            location: a local folder in the published layout, or a hub id; None takes `source`.
            size: of pictures that are drawn, in pixels.

        Raises:
            BenchmarkError: no such split, or the data is missing or malformed.
        """
        ...

    def score(self, task: EditTask, result: Image.Image, judge: Judge | None) -> EditScores:
        """Raises BenchmarkError where the result cannot be judged."""
        ...

    def summarize(self, scored: Sequence[tuple[EditTask, dict[str, float]]]) -> dict:
        """The official figures; plain JSON."""
        ...

    def rows(self, figures: dict) -> list[tuple[str, ...]]:
        """What of the figures is shown to people: a heading, then a row each, all of them text."""
        ...
